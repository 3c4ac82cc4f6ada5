"""The pipeline commands: what they print, and the exit code for each way in which a run can end."""

import pytest

from orchestration import cli
from orchestration.pipelines import local_run, runs


@pytest.mark.parametrize(("failure", "code"), [("input", 2), ("operation", 3), ("bug", 1), (None, 0)])
def test_run_local_ends_with_the_exit_code_of_the_failure(tmp_path, monkeypatch, failure, code):
    report = runs.RunReport(
        run_id="r",
        pipeline="retrain",
        outcome="failed" if failure else "promoted",
        reason="train: InputError: of another kind than the record has",
        version="",
        ended_at="2026-01-01T00:00:00Z",
        seconds={},
        failure=failure,
    )
    monkeypatch.setattr(local_run, "run", lambda name, loaded, given: report)
    assert cli.main(["run-local", "retrain", "--config", "local", "--set", f"root={tmp_path}"]) == code


def test_a_run_of_wrong_input_ends_with_2_in_a_real_process_per_step(tmp_path, capsys):
    """A retraining without champion, as a person runs it."""
    assert cli.main(["run-local", "retrain", "--config", "local", "--set", f"root={tmp_path}"]) == 2
    assert "has no champion: run the bootstrap pipeline first" in capsys.readouterr().out
    assert cli.main(["history", "--root", str(tmp_path)]) == 2  # there is no policy store yet


def test_check_and_compile(tmp_path, capsys):
    assert cli.main(["check", "--config", "local"]) == 0
    assert capsys.readouterr().out == "local: bootstrap, retrain, tune compile\n"
    out = tmp_path / "retrain.yaml"
    assert cli.main(["compile", "retrain", "--config", "prod", "--project", "films", "--out", str(out)]) == 0
    assert "PIPELINE DEFINITION" in out.read_text()
    nowhere = str(tmp_path / "no" / "x.yaml")
    assert cli.main(["compile", "retrain", "--config", "local", "--out", nowhere]) == 2
    assert cli.main(["compile", "retrain", "--config", "local", "--set", "speed=1", "--out", str(out)]) == 2
    assert "--set speed: retrain has no such parameter" in capsys.readouterr().err
