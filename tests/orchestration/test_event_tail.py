"""The event log, followed while it is written, and searched."""

import os
from datetime import timedelta

from contracts.event_segments import seal
from orchestration.event_tail import EventTail, find, moment_of
from tests.orchestration.page.events import START, decision, lines, reward, segment


def test_what_is_appended_is_read_once_across_sealing(tmp_path):
    tail = EventTail(tmp_path / "events")
    assert tail.read() == []  # there is no folder yet
    path = segment(tmp_path / "events", 0, [b"one"], sealed=False)
    assert tail.read() == [b"one"]
    with path.open("ab") as file:
        file.write(b"two\nhal")
    assert tail.read() == [b"two"]
    with path.open("ab") as file:
        file.write(b"f\n")
    seal(path)
    assert tail.read() == [b"half"]
    assert tail.read() == []
    segment(tmp_path / "events", 1, [b"next"])
    assert tail.read() == [b"next"]


def test_a_long_log_comes_in_parts_in_order_and_whole(tmp_path):
    written = [f"event {number:05}".encode() for number in range(3000)]
    for number in range(3):
        segment(tmp_path, number, written[1000 * number : 1000 * (number + 1)])
    tail = EventTail(tmp_path)
    read = []
    while part := tail.read(limit_bytes=5000):
        assert len(part) < 1000
        read += part
    assert read == written


def test_a_segment_that_is_removed_is_forgotten(tmp_path):
    path = segment(tmp_path, 0, [b"one"], sealed=False)
    tail = EventTail(tmp_path)
    tail.read()
    path.unlink()
    assert tail.read() == []
    assert (tail._offsets, tail._done) == ({}, set())


def test_what_was_written_before_a_moment_is_left_out(tmp_path):
    old = segment(tmp_path, 0, [b"old"])
    os.utime(old, (START.timestamp(), START.timestamp()))
    segment(tmp_path, 1, [b"new"])
    assert EventTail(tmp_path, since=START + timedelta(seconds=1)).read() == [b"new"]
    assert EventTail(tmp_path, since=START).read() == [b"old", b"new"]


def test_a_decision_is_found_with_its_rewards_in_other_segments_and_by_another_writer(tmp_path):
    wanted, other = decision(1, 10.0), decision(2, 10.0)
    segment(tmp_path, 9.8, lines(other, wanted))
    segment(tmp_path, 11.0, [b"not an event " + wanted.decision_id.encode(), *lines(reward(wanted, 4.0))], sealed=False)
    segment(
        tmp_path,
        11.0,
        lines(wanted, reward(wanted, 4.0), reward(wanted, 2.0, 1.5), reward(other, 1.0)),
        writer="copies",
    )
    found = find(tmp_path, wanted.decision_id, moment_of(wanted.decision_id), timedelta(seconds=60))
    assert found.decision == wanted
    assert [one.reward for one in found.rewards] == [4.0, 2.0]


def test_a_decision_that_is_not_there_is_not_found(tmp_path):
    segment(tmp_path, 0, lines(decision(1)))
    absent = decision(2, 5.0).decision_id
    assert find(tmp_path, absent, moment_of(absent), timedelta(seconds=60)) is None
    assert find(tmp_path / "none", absent, moment_of(absent), timedelta(seconds=60)) is None


def test_a_decision_of_a_long_segment_is_found(tmp_path):
    wanted = decision(1, 3000.0)
    segment(tmp_path, 0, lines(decision(2), wanted))
    assert find(tmp_path, wanted.decision_id, moment_of(wanted.decision_id), timedelta(seconds=1)).decision == wanted


def test_the_moment_is_that_of_the_id():
    assert moment_of(decision(1, 2.5).decision_id) == START + timedelta(seconds=2.5)
