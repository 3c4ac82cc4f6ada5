"""The line of each window."""

import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from contracts.policies import Evaluation
from orchestration.loop.progress import Progress
from orchestration.loop.run_folder import RunFolder
from orchestration.loop.truth import ServedDecision, SessionStart, TruthLog
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


def test_the_window_that_is_open_is_shown_as_it_goes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    begin = START.timestamp()

    def served(seconds: float, expected: float) -> ServedDecision:
        moment = f"{round(1000 * (begin + seconds)):012x}"
        return ServedDecision(f"{moment[:8]}-{moment[8:]}-7b45-b47d-ec416c31efa4", "v", 0, 0, 0.5, expected, 2.0, 0.0)

    progress = Progress(folder, runs.viewers(), SETTINGS)
    assert progress.status(begin) == ""
    truth = TruthLog(folder.truth / "viewers-0000.jsonl")
    truth.append([SessionStart(begin, 1), served(1.0, 1.0), served(5.5, 1.0), served(6.0, 2.0)])
    truth.close()
    progress._read()
    assert progress.status(begin - 1) == "the viewers are about to come"
    assert progress.status(begin + 7) == "window 2/10: 2 decisions so far, reward 1.500 = 75.0% of oracle; 3 s left"
    assert progress.status(begin + 11) == "window 3/10: 0 decisions so far; 4 s left"
    assert progress.status(begin + 50.5) == "the last windows are being processed"


def test_a_terminal_is_redrawn_and_a_log_has_lines_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(RunFolder(tmp_path), runs.viewers(), SETTINGS)
    progress.show()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    progress.show()
    progress.show()  # too soon
    assert capsys.readouterr().out == "\r\x1b[2K"
