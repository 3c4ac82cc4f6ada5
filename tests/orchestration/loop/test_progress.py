"""The line of each window."""

from datetime import timedelta

import msgspec
import pytest

from contracts.policies import Evaluation
from orchestration.loop.progress import Progress
from orchestration.loop.run_folder import RunFolder
from orchestration.loop.truth import ServedDecision, TruthLog
from tests.orchestration.loop import runs
from tests.orchestration.loop.runs import DECISIONS, SETTINGS, START


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder, _ = runs.make(tmp_path_factory.mktemp("run"), runs.viewers())
    return folder


def test_a_window_is_one_line(folder: RunFolder) -> None:
    [entry] = folder.journal()
    truth = TruthLog(folder.truth / "viewers-0001.jsonl")
    milliseconds = round(START.timestamp() * 1e3)
    truth.append(
        ServedDecision(f"{milliseconds + number:012x}"[:8] + "-" + f"{milliseconds + number:012x}"[8:] + "-7b45-b47d-ec416c31efa4",
                       "v", 0, 0, 0.5, 1.5, 2.0, 0.0)
        for number in (0, 1)
    )  # fmt: skip
    truth.close()
    progress = Progress(folder, runs.viewers(), SETTINGS)
    evaluation = Evaluation(
        estimator="dr", value=2.0, low=1.5, high=2.5, effective_sample_size=30.0, decisions=DECISIONS
    )
    judged = msgspec.structs.replace(entry.gate, evaluation=evaluation)
    served = msgspec.structs.replace(
        entry, number=3, gate=judged, true_value=2.1, serving_at=entry.window.end + timedelta(seconds=4)
    )
    line = progress.line(served)
    assert line.startswith("window  3/10 ")
    assert "2 decisions, reward 1.500 = 75.0% of oracle" in line
    assert "next policy 2.00 [1.50, 2.50], truth 2.10" in line
    assert "promoted 4.0 s after the window (train 3.00 s)" in line
    refused = msgspec.structs.replace(served, gate=msgspec.structs.replace(judged, promoted=False, reason="worse"))
    assert "not promoted: worse" in Progress(folder, runs.viewers(), SETTINGS).line(refused)


def test_what_the_warehouse_holds_is_counted(folder: RunFolder) -> None:
    progress = Progress(folder, runs.viewers(), SETTINGS)
    assert progress.decisions_between(START, START + timedelta(seconds=5)) == DECISIONS
    assert progress.decisions_between(START - timedelta(days=1), START) == 0
