"""Up to when a log is complete: by its segments, and by two stages one after the other."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from contracts import watermarks
from contracts.errors import InputError
from contracts.event_segments import OPEN_SUFFIX, SEALED_SUFFIX, segment_name
from contracts.watermarks import BEGINNING, TwoStages, Watermark

START = datetime(2026, 1, 1, tzinfo=UTC)


def moment(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def segment(folder: Path, seconds: float, suffix: str, content: bytes = b"{}\n") -> str:
    name = segment_name(moment(seconds), "predictor")
    (folder / f"{name}{suffix}").write_bytes(content)
    return name


def test_an_idle_log_is_complete_until_now(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    stored = {segment(tmp_path, 0, SEALED_SUFFIX)}
    mark = watermarks.of_segments(tmp_path, lambda: stored)
    assert before <= mark.complete_until <= mark.at <= datetime.now(UTC)
    assert mark.held_by == ""
    assert watermarks.of_segments(tmp_path / "not there yet", frozenset).held_by == ""


@pytest.mark.parametrize(
    ("suffix", "content", "said"),
    [(OPEN_SUFFIX, b"", "still open"), (OPEN_SUFFIX, b"{", "still open"), (SEALED_SUFFIX, b"{}\n", "not stored yet")],
)
def test_the_oldest_segment_that_is_not_stored_holds_it(tmp_path: Path, suffix: str, content: bytes, said: str) -> None:
    stored = {segment(tmp_path, 0, SEALED_SUFFIX)}
    name = segment(tmp_path, 5, suffix, content)
    segment(tmp_path, 9, SEALED_SUFFIX)
    mark = watermarks.of_segments(tmp_path, lambda: stored)
    assert mark.complete_until == moment(5)
    assert mark.held_by == f"segment {name}, {said} and 1 more"


def test_a_segment_that_is_stored_while_the_folder_is_read_holds_nothing(tmp_path: Path) -> None:
    """`stored` is asked last: a segment that was stored before it answered is not waited for."""
    names: set[str] = set()

    def stored() -> set[str]:
        names.add(segment_name(START, "predictor"))
        return names

    segment(tmp_path, 0, SEALED_SUFFIX)
    assert watermarks.of_segments(tmp_path, stored).held_by == ""


def test_two_stages_are_complete_until_what_the_second_has_stored_of_what_the_first_passed_on() -> None:
    stages = TwoStages()

    def look(at: float, spool: float, queue: float) -> tuple[float, str]:
        mark = stages.add(
            Watermark(complete_until=moment(spool), at=moment(at), held_by="" if spool == at else "spool"),
            Watermark(complete_until=moment(queue), at=moment(at), held_by="queue"),
        )
        return (mark.complete_until - START).total_seconds(), mark.held_by

    assert look(10, spool=10, queue=8)[0] == (BEGINNING - START).total_seconds()  # sent until 10, perhaps after 8
    assert look(11, spool=11, queue=10) == (10, "queue")
    assert look(12, spool=11.5, queue=11.9) == (11, "queue")  # what left at 12 may have come after 11.9
    assert look(13, spool=11.5, queue=13) == (11.5, "spool")
    assert look(14, spool=14, queue=13) == (11.5, "queue")
    assert look(15, spool=15, queue=15) == (15, "")


def test_a_watermark_survives_the_way_through_json() -> None:
    mark = Watermark(complete_until=START, at=moment(1), held_by="segment x")
    assert watermarks.decode(watermarks.encode(mark), "w") == mark
    with pytest.raises(InputError, match=r"^status.json: not a watermark: "):
        watermarks.decode(b"17", "status.json")
