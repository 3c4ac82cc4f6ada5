import fcntl
from datetime import UTC, datetime

import pytest

from contracts.event_segments import (
    OPEN_SUFFIX,
    SEALED_SUFFIX,
    compact_time,
    foreign_files,
    open_segments,
    opened_at,
    parse_compact_time,
    seal,
    seal_abandoned,
    sealed_segments,
    segment_name,
)

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def test_names_say_when_and_sort_by_it(tmp_path):
    assert parse_compact_time(compact_time(MOMENT)) == MOMENT
    assert opened_at(tmp_path / (segment_name(MOMENT, "writer-1") + SEALED_SUFFIX)) == MOMENT
    with pytest.raises(ValueError, match="not an event segment"):
        opened_at(tmp_path / "notes.jsonl")


def test_sealing_moves_a_segment_from_open_to_sealed_and_foreign_files_are_left_alone(tmp_path):
    (tmp_path / "notes.jsonl").write_text("{}")
    for suffix in (OPEN_SUFFIX, SEALED_SUFFIX):
        (tmp_path / f"99999999T999999.000000Z-no-such-moment{suffix}").write_text("{}")
    segment = tmp_path / (segment_name(MOMENT, "w") + OPEN_SUFFIX)
    segment.write_text("{}\n")
    assert (open_segments(tmp_path), sealed_segments(tmp_path)) == ([segment], [])
    assert len(foreign_files(tmp_path)) == 3
    sealed = seal(segment)
    assert (open_segments(tmp_path), sealed_segments(tmp_path)) == ([], [sealed])


def test_only_a_segment_whose_writer_is_gone_is_sealed_for_it(tmp_path):
    alive, dead = (tmp_path / (segment_name(MOMENT, name) + OPEN_SUFFIX) for name in ("alive", "dead"))
    dead.write_text('{"kind"')
    with alive.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert [path.name for path in seal_abandoned(tmp_path)] == [dead.name.removesuffix(OPEN_SUFFIX) + SEALED_SUFFIX]
        assert open_segments(tmp_path) == [alive]


def test_a_folder_that_is_not_there_has_no_segments(tmp_path):
    assert (
        sealed_segments(tmp_path / "none")
        == open_segments(tmp_path / "none")
        == seal_abandoned(tmp_path / "none")
        == []
    )
