"""The records and the report of a run, however its steps end."""

import subprocess
import sys
import textwrap
from datetime import UTC, datetime

import msgspec
import pytest

from contracts.errors import InputError, OperationError
from orchestration.pipelines import runs

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_step_that_is_killed_is_the_one_that_failed(tmp_path):
    script = f"""
        import os, signal
        from orchestration.pipelines import runs
        with runs.step({str(tmp_path)!r}, "r", "resolve_windows") as record:
            record.said = "1 window"
        with runs.step({str(tmp_path)!r}, "r", "train"):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, stdout=subprocess.DEVNULL)
    assert [(record.step, record.error) for record in runs.records(tmp_path, "r")] == [
        ("resolve_windows", ""),
        ("train", runs.KILLED),
    ]
    report = runs.close(tmp_path, "r", "retrain", "FAILED", "Task exit-handler-1 failed.", NOW)
    assert (report.outcome, report.reason) == ("failed", f"train: {runs.KILLED}")
    assert (report.failure, report.exit_code) == ("operation", 3)
    assert runs.reports(tmp_path) == [report]


def test_a_task_that_never_came_to_its_step_is_said_to_be_after_the_last_one(tmp_path):
    assert runs.close(tmp_path, "r", "retrain", "FAILED", "no quota", NOW).reason == "before the first step: no quota"
    with runs.step(str(tmp_path), "r", "export_windows") as record:
        record.said = "1 window"
    report = runs.close(tmp_path, "r", "retrain", "FAILED", "no quota", NOW)
    assert report.reason == "after the step export_windows: no quota"
    assert runs.close(tmp_path, "r", "retrain", "CANCELLED", "", NOW).reason == (
        "after the step export_windows: the pipeline ended in state CANCELLED"
    )


def test_steps_of_one_name_add_up(tmp_path):
    for _ in range(3):
        with runs.step(str(tmp_path), "r", "export_trajectories") as record:
            record.outcome = "nothing new"
    records = runs.records(tmp_path, "r")
    assert len(records) == 3
    report = runs.close(tmp_path, "r", "retrain", "SUCCEEDED", "", NOW)
    assert report.seconds["export_trajectories"] == pytest.approx(sum(record.seconds for record in records))


def test_a_report_that_is_half_written_is_none_and_a_broken_one_is_one_line(tmp_path):
    report = runs.close(tmp_path, "r", "retrain", "FAILED", "the worker was lost", NOW)
    (tmp_path / "runs" / ".later.json").write_text('{"run_id"')
    assert runs.reports(tmp_path) == [report]
    (tmp_path / "runs" / "later.json").write_text('{"run_id"')
    with pytest.raises(InputError, match=r"later.json: not the report of a run: Input data was truncated"):
        runs.reports(tmp_path)


@pytest.mark.parametrize(
    ("error", "failure", "exit_code"),
    [
        (InputError("windows: a folder, got 3"), "input", 2),
        (OperationError("the region is down"), "operation", 3),
        (KeyError("InputError: not what it says"), "bug", 1),
        (KeyboardInterrupt(), "operation", 3),
    ],
)
def test_a_failure_has_a_kind_and_an_exit_code(tmp_path, error, failure, exit_code):
    with pytest.raises(type(error)), runs.step(str(tmp_path), "r", "train"):
        raise error
    assert runs.records(tmp_path, "r")[-1].failure == failure
    report = runs.close(tmp_path, "r", "retrain", "FAILED", "", NOW)
    assert runs.reports(tmp_path) == [report]
    assert (report.failure, report.exit_code) == (failure, exit_code)


def test_a_killed_step_and_a_task_that_never_began_are_failed_operations(tmp_path):
    assert runs.close(tmp_path, "early", "retrain", "FAILED", "no quota", NOW).exit_code == 3
    with runs.step(str(tmp_path), "good", "gate") as record:
        record.outcome = "refused"
    report = runs.close(tmp_path, "good", "retrain", "SUCCEEDED", "", NOW)
    assert (report.failure, report.exit_code) == (None, 0)


@pytest.mark.parametrize(
    ("outcome", "exit_code"), [("on probation", 0), ("undecided", 0), ("rolled back", 7), ("held", 5)]
)
def test_what_became_of_a_candidate_has_an_exit_code(tmp_path, outcome, exit_code):
    with runs.step(str(tmp_path), "r", "withdraw") as record:
        record.outcome = outcome
    report = runs.close(tmp_path, "r", "retrain", "SUCCEEDED", "", NOW)
    assert (report.outcome, report.exit_code) == (outcome, exit_code)


def test_a_report_of_an_earlier_version_can_be_read(tmp_path):
    runs.close(tmp_path, "r", "retrain", "FAILED", "no quota", NOW)
    path = tmp_path / "runs" / "r.json"
    known = msgspec.json.decode(path.read_bytes())
    del known["failure"]
    path.write_bytes(msgspec.json.encode(known))
    (report,) = runs.reports(tmp_path)
    assert (report.outcome, report.exit_code) == ("failed", 1)
