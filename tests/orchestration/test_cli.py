import errno
import subprocess
import sys
from datetime import UTC, datetime

import msgspec
import pytest

from contracts import policies
from contracts.windows import TrainingWindow
from orchestration import cli, policy_store
from orchestration.audit.guard import GuardState
from orchestration.gate import GateResult
from orchestration.loop import report_page
from orchestration.loop.run_folder import JournalEntry, RunFolder
from orchestration.loop.settings import LoopSettings
from orchestration.watch import Look
from tests.linear_policies import write_policy
from tests.orchestration.loop import runs
from tests.orchestration.loop.reports import kept, window


@pytest.fixture
def store(tmp_path):
    """Two policies, the second one champion."""
    for day, version in ((1, "v1"), (2, "v2")):
        write_policy(tmp_path / version)
        policy_store.roll_out(tmp_path, version, f"reason {day}", datetime(2026, 1, day, tzinfo=UTC))
    return tmp_path


def test_status_shows_what_serves_and_what_served(store, capsys):
    assert cli.main(["status", "--policies", str(store)]) == 0
    assert capsys.readouterr().out == ("  2026-01-01 00:00:00 v1  reason 1\n→ 2026-01-02 00:00:00 v2  reason 2\n")


def test_rollback_goes_back_in_one_step_and_is_remembered(store, capsys):
    assert cli.main(["rollback", "--policies", str(store), "--reason", "reward fell"]) == 0
    assert capsys.readouterr().out == "v1 is the champion\n"
    assert [past.reason for past in policy_store.history(store)] == ["reason 1", "reason 2", "reward fell"]


def test_rolling_back_twice_does_not_go_forward(store, capsys):
    command = ["rollback", "--policies", str(store), "--reason", "reward fell"]
    assert cli.main(command) == 0
    assert cli.main(command) == 2
    assert "has no earlier champion to go back to" in capsys.readouterr().err
    assert cli.main(["status", "--policies", str(store)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" v1  reward fell")


def test_a_policy_without_its_arrays_does_not_become_the_champion(store, capsys):
    (store / "v1" / policies.LINEAR_NAME).unlink()
    before = {path: path.read_bytes() for path in store.iterdir() if path.is_file()}
    for command in (["promote", "v1"], ["rollback"]):
        assert cli.main([*command, "--policies", str(store), "--reason", "x"]) == 2
        error = capsys.readouterr().err
        assert "v1" in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in store.iterdir() if path.is_file()} == before


def test_a_torn_history_stops_neither_status_nor_rollback(store, capsys):
    with (store / policy_store.HISTORY_NAME).open("ab") as file:
        file.write(b'{"version":"v')
    assert cli.main(["status", "--policies", str(store)]) == 0
    assert capsys.readouterr().out.count("\n") == 2
    assert cli.main(["rollback", "--policies", str(store), "--reason", "reward fell"]) == 0
    assert len(policy_store.history(store)) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--policies", "{}/none"],
        ["rollback", "--policies", "{}/none", "--reason", "x"],
        ["report", "--out", "{}"],
        ["loop", "--resume", "--out", "{}"],
        ["loop", "--windows"],
        ["loop", "--window", "3"],
        ["loop", "--missing-reward", "maybe"],
        ["loup"],
        [],
    ],
)
def test_wrong_input_is_one_line(tmp_path, capsys, arguments):
    assert cli.main([argument.format(tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("orchestration.cli: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/out/journal.jsonl"),
        RuntimeError("OSError: [Errno 28] No space left on device [while running 'WriteBucket']"),  # as Beam wraps it
        ValueError("ResourceExhausted\n/out/saved_model.pb; No space left on device"),  # as TensorFlow does
    ],
)
def test_a_full_disk_is_one_line_and_a_failed_operation(store, capsys, monkeypatch, error):
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(policy_store, "replace_file", full)
    assert cli.main(["promote", "v1", "--policies", str(store), "--reason", "x"]) == 3
    line = capsys.readouterr().err
    assert line.startswith("orchestration.cli: failed: cannot write: ") and "No space left on device" in line
    assert line.count("\n") == 1


def test_an_error_that_is_a_bug_keeps_its_traceback(store, monkeypatch):
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(policy_store, "replace_file", broken)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["promote", "v1", "--policies", str(store), "--reason", "x"])


@pytest.mark.parametrize("command", [["status"], ["rollback", "--reason", "x"], ["promote", "v1", "--reason", "x"]])
def test_no_command_on_a_store_loads_tensorflow_or_writes_its_lines(store, command):
    script = "import sys; from orchestration import cli; code = cli.main(sys.argv[1:]); "
    script += "sys.exit(9 if 'tensorflow' in sys.modules else code)"
    ran = subprocess.run(
        [sys.executable, "-c", script, *command, "--policies", str(store)], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_folder_that_cannot_take_a_run_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    script = "import sys; from orchestration import cli; code = cli.main(sys.argv[1:]); "
    script += "sys.exit(9 if 'tensorflow' in sys.modules else code)"
    for out in ("file", "file/run"):
        flags = ["loop", "--out", str(tmp_path / out)]
        ran = subprocess.run([sys.executable, "-c", script, *flags], capture_output=True, text=True)
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
        assert ran.stderr.startswith("orchestration.cli: error: --out: must be a folder")


def test_a_run_in_which_a_version_was_rolled_back_says_so_in_its_last_lines(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    look = Look(
        version="v2",
        anchor="v1",
        anchor_share=0.1,
        outcome="on probation",
        decisions=900,
        gain=-0.2,
        low=-0.5,
        high=0.1,
        margin=0.05,
        needed=400,
        needed_at_equal_share=200,
        cost=-18.0,
        reason="too early",
    )
    start = datetime(2026, 1, 1, tzinfo=UTC)
    entry = JournalEntry(
        number=1,
        window=TrainingWindow(start, start.replace(second=5)),
        interrupted=False,
        candidate="v3",
        gate=GateResult(verdict="undecided", promoted=True, reason="", evaluation=None),
        true_value=None,
        ingest_seconds=0.0,
        export_seconds=0.0,
        train_seconds=0.0,
        gate_seconds=0.0,
        serving_at=None,
        look=look,
    )
    folder.append(entry)
    assert cli._rolled_back(folder) == 0
    worse = msgspec.structs.replace(look, outcome="rolled back", reason="earns less")
    folder.append(msgspec.structs.replace(entry, number=2, look=worse))
    assert cli._rolled_back(folder) == 7
    first, second = capsys.readouterr().out.splitlines()
    assert first == "ROLLED BACK v2 to v1: earns less"
    assert "audit --accept WINDOW" in second


def test_a_run_that_is_held_says_so_in_its_last_lines(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    assert cli._held(folder) == 0
    state = GuardState(
        held=True, changed_at=datetime(2026, 1, 1, tzinfo=UTC), verb="hold", reason="replayed action: 3 of 9 differ"
    )
    folder.guard.write_bytes(msgspec.json.encode(state))
    assert cli._held(folder) == 5
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("HELD by the guard since ") and first.endswith("replayed action: 3 of 9 differ")
    assert f"audit --root {tmp_path}" in second


def test_compare_prints_a_table_and_writes_a_page(tmp_path, capsys):
    first = kept(tmp_path / "first", [window(1), window(2)], LoopSettings())
    second = kept(tmp_path / "second", [window(1)], LoopSettings(alpha=0.9))
    page = tmp_path / "comparison.html"
    assert cli.main(["compare", str(first), str(second), "--page", str(page)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["runs", "first", "second"]
    assert any(line.split() == ["alpha", "0.2", "0.9"] for line in printed)
    assert "alpha=0.9" in page.read_text()
    assert cli.main(["compare", str(tmp_path / "none")]) == 2
    assert "a run with its report.json expected" in capsys.readouterr().err


def test_a_window_that_waited_too_long_is_named_in_the_last_lines(tmp_path, capsys):
    viewers = runs.viewers()
    folder, _ = runs.make(tmp_path / "run", viewers)
    [bootstrap] = folder.journal()
    report_page.write(folder, viewers)
    assert cli._overdue(folder) == 0
    late = {"number": 1, "ingest_seconds": 75.04, "held_by": "segment x, still open", "overdue": True}
    folder.append(msgspec.structs.replace(bootstrap, **late))
    page = report_page.write(folder, viewers)
    assert cli._overdue(folder) == 6
    line = "window 1 waited 75.0 s for its events: held by segment x, still open"
    assert capsys.readouterr().out == f"✗ {line}; the limit is 60 s\n"
    assert [window.overdue for window in page.windows] == [True]
    assert line in folder.report_html.read_text()
