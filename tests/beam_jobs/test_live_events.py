import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from beam_jobs.live_events import SegmentTail
from beam_jobs.payloads import PayloadBatch
from contracts.event_segments import OPEN_SUFFIX, SEALED_SUFFIX, opened_at, seal, segment_name

START = datetime(2026, 1, 1, tzinfo=UTC)
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def segment(folder: Path, second: int, data: bytes, suffix: str = SEALED_SUFFIX) -> Path:
    path = folder / f"{segment_name(START + timedelta(seconds=second), 'writer')}{suffix}"
    with path.open("ab") as file:
        file.write(data)
    return path


def lines(batches: list[PayloadBatch]) -> list[bytes]:
    return [payload for batch in batches for payload in batch.payloads]


def test_each_line_is_read_once_sealed_or_not(tmp_path: Path) -> None:
    tail = SegmentTail(tmp_path, LONG_AGO)
    assert lines(tail.poll().batches) == []
    growing = segment(tmp_path, 1, b"a\nb\nhal", OPEN_SUFFIX)
    found = tail.poll()
    assert (lines(found.batches), found.events_read, found.caught_up) == ([b"a", b"b"], 2, True)
    segment(tmp_path, 1, b"f\n", OPEN_SUFFIX)
    assert lines(tail.poll().batches) == [b"half"]
    segment(tmp_path, 1, b"c\ntorn", OPEN_SUFFIX)
    seal(growing)
    segment(tmp_path, 2, b"d\n")
    found = tail.poll()
    assert (lines(found.batches), found.events_read) == ([b"c", b"torn", b"d"], 6)
    assert lines(tail.poll().batches) == []


def test_the_folder_is_complete_until_the_poll(tmp_path: Path) -> None:
    segment(tmp_path, 1, b"a\n")
    before = datetime.now(UTC)
    found = SegmentTail(tmp_path, LONG_AGO).poll()
    assert found.complete_until is not None
    assert before <= found.complete_until <= datetime.now(UTC)


def test_a_long_log_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_jobs.live_events.MAX_EVENT_BYTES", 20)
    for second in range(3):
        segment(tmp_path, second, b"".join(b"%d-%02d\n" % (second, line) for line in range(20)))
    tail = SegmentTail(tmp_path, LONG_AGO, bytes_per_poll=50)
    read, polls = [], 0
    while True:
        found = tail.poll()
        polls += 1
        read += lines(found.batches)
        if found.caught_up:
            break
        assert found.complete_until is not None
        assert found.complete_until <= START + timedelta(seconds=len(read) // 20)  # the first with lines left
    assert polls >= 6
    assert read == [b"%d-%02d" % (second, line) for second in range(3) for line in range(20)]
    assert tail.poll().batches == []


def test_segments_that_were_finished_before_are_left(tmp_path: Path) -> None:
    old, new = segment(tmp_path, 1, b"a\n"), segment(tmp_path, 2, b"b\n")
    os.utime(old, (100, 100))
    os.utime(new, (200, 200))
    assert lines(SegmentTail(tmp_path, datetime.fromtimestamp(150, UTC)).poll().batches) == [b"b"]


def test_other_files_are_left(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x\n")
    (tmp_path / "x.jsonl").write_text("x\n")
    assert SegmentTail(tmp_path, LONG_AGO).poll().batches == []


def test_events_have_the_time_at_which_their_segment_was_opened(tmp_path: Path) -> None:
    path = segment(tmp_path, 7, b"a\nb\n")
    [batch] = SegmentTail(tmp_path, LONG_AGO).poll().batches
    assert batch.received_at == [opened_at(path)] * 2


def test_a_folder_that_does_not_change_is_not_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    growing = segment(tmp_path, 1, b"a\n", OPEN_SUFFIX)
    os.utime(tmp_path, (100, 100))
    tail = SegmentTail(tmp_path, LONG_AGO)
    listed = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or real(folder))
    assert lines(tail.poll().batches) == [b"a"]
    segment(tmp_path, 1, b"b\n", OPEN_SUFFIX)
    assert lines(tail.poll().batches) == [b"b"]
    assert len(listed) == 1
    seal(growing)
    segment(tmp_path, 2, b"c\n")
    assert lines(tail.poll().batches) == [b"c"]
    segment(tmp_path, 3, b"d\n")
    assert lines(tail.poll().batches) == [b"d"]
