import numpy as np
import pytest

from contracts.errors import InputError
from orchestration.loop.truth import (
    RequestFailure,
    ServedDecision,
    SessionStart,
    TruthLog,
    TruthReader,
    decided_milliseconds,
    windows_passed,
)


def test_the_truth_survives_a_torn_line_and_is_read_once(tmp_path):
    log = TruthLog(tmp_path / "viewers.jsonl")
    served = ServedDecision("id", "v", 1, 2, 0.5, 3.0, 4.0, 1.5)
    reader = TruthReader(tmp_path)
    log.append([served])
    assert reader.read() == [served]
    with (tmp_path / "viewers.jsonl").open("ab") as file:
        file.write(b'["served","id2"')
    assert reader.read() == []
    assert TruthReader(tmp_path).read() == [served]
    log.close()


def test_the_clock_of_tastes_stands_still_while_nobody_comes():
    sessions = [SessionStart(100.0, 1), SessionStart(1000.0, 4)]
    moments = np.array([50.0, 100.0, 112.5, 1000.0, 1002.5])
    assert windows_passed(sessions, moments, 5.0).tolist() == [0, 0, 2.5, 3, 3.5]
    assert windows_passed([], moments, 5.0).tolist() == [0] * 5


def test_a_line_that_is_not_an_entry_is_wrong_input_that_names_the_file(tmp_path):
    (tmp_path / "viewers-0000.jsonl").write_text('["served"]\n')
    with pytest.raises(InputError, match=r"viewers-0000\.jsonl: "):
        TruthReader(tmp_path).read()


def test_the_files_of_a_resumed_run_are_read_in_order(tmp_path):
    for session in (1, 0):
        log = TruthLog(tmp_path / "truth" / f"viewers-{session:04d}.jsonl")
        log.append([SessionStart(100.0 * session, 1), RequestFailure("ConnectError", session)])
        log.close()
    reader = TruthReader(tmp_path / "truth")
    entries = reader.read()
    assert [entry.start for entry in entries if isinstance(entry, SessionStart)] == [0.0, 100.0]
    assert len(entries) == 4
    assert reader.read() == []


def test_a_decision_id_says_when_it_was_made():
    assert decided_milliseconds("019b76da-a800-7000-8000-000000000000") == 0x019B76DAA800
