import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from contracts import event_segments
from contracts.errors import InputError
from predictor.event_log import Counters, EventLog


def lines(folder):
    return [line for path in event_segments.sealed_segments(folder) for line in path.read_bytes().splitlines()]


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)


def test_every_event_once_in_order_and_sealed_on_close(tmp_path):
    log = EventLog(tmp_path / "events", "w", segment_seconds=60)
    for i in range(0, 1000, 10):
        assert log.append(b"".join(b"%d\n" % j for j in range(i, i + 10)), 10)
    assert log.close() == Counters(logged=1000, delivered=1000, dropped=0, pending=0, retried=0)
    assert lines(tmp_path / "events") == [b"%d" % i for i in range(1000)]
    assert event_segments.open_segments(tmp_path / "events") == []
    with pytest.raises(ValueError, match="the event log is closed"):
        log.append(b"late\n", 1)


def test_nothing_logged_leaves_nothing(tmp_path):
    assert EventLog(tmp_path, "w").close() == Counters(0, 0, 0, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_seals_by_timer_when_traffic_stops(tmp_path):
    log = EventLog(tmp_path, "w", segment_seconds=0.2)
    log.append(b"1\n", 1)
    wait_until(lambda: lines(tmp_path) == [b"1"])
    assert event_segments.open_segments(tmp_path) == []
    log.append(b"2\n", 1)
    wait_until(lambda: lines(tmp_path) == [b"1", b"2"])
    log.close()
    assert len(event_segments.sealed_segments(tmp_path)) == 2


def test_open_segment_is_written_before_it_is_sealed_and_is_not_taken_for_abandoned(tmp_path):
    log = EventLog(tmp_path, "w", segment_seconds=60)
    log.append(b"1\n", 1)
    wait_until(lambda: log.counters().delivered == 1)
    (segment,) = event_segments.open_segments(tmp_path)
    assert segment.read_bytes() == b"1\n"
    assert event_segments.seal_abandoned(tmp_path) == []
    log.close()
    assert lines(tmp_path) == [b"1"]


def test_seals_by_size(tmp_path):
    log = EventLog(tmp_path, "w", segment_seconds=60, segment_bytes=100)
    for i in range(3):
        log.append(b"x" * 99 + b"\n", 1)
        wait_until(lambda i=i: len(event_segments.sealed_segments(tmp_path)) == i + 1)
    log.close()
    assert len(lines(tmp_path)) == 3


def test_overload_drops_and_counts(tmp_path):
    log = EventLog(tmp_path, "w", buffer_bytes=100, flush_seconds=60)
    assert log.append(b"".join(b"%09d\n" % i for i in range(8)), 8)
    assert not log.append(b"".join(b"%09d\n" % i for i in range(3)), 3)  # all of a request or nothing
    assert log.has_room(20)
    assert not log.has_room(21)
    assert log.append(b"%09d\n" % 8, 1)
    assert log.counters() == Counters(logged=12, delivered=0, dropped=3, pending=9, retried=0)
    assert log.close() == Counters(logged=12, delivered=9, dropped=3, pending=0, retried=0)
    assert lines(tmp_path) == [b"%09d" % i for i in range(9)]


def test_many_callers(tmp_path):
    log = EventLog(tmp_path, "w", segment_seconds=0.02, flush_seconds=0.001)

    def call(name):
        for i in range(500):
            log.append(b"%d-%d\n%d-%d!\n" % (name, i, name, i), 2)

    callers = [threading.Thread(target=call, args=(name,)) for name in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert log.close().delivered == 8000
    written = lines(tmp_path)
    assert len(written) == len(set(written)) == 8000


def test_a_disk_that_refuses_is_tried_again_and_nothing_is_written_twice(tmp_path):
    folder = tmp_path / "events"
    log = EventLog(folder, "w", segment_seconds=60)
    log.append(b"1\n", 1)
    wait_until(lambda: log.counters().delivered == 1)
    # A file-size limit makes a write stop half way, as a full disk does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        log.append(b"".join(b"%09d\n" % i for i in range(200)), 200)
        wait_until(lambda: log.counters().retried >= 2)
        assert lines(folder) == [b"1"]  # sealed before its time: to remove it may be what makes room
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    counters = log.close()
    assert (counters.delivered, counters.dropped) == (201, 0)
    assert lines(folder) == [b"1", *(b"%09d" % i for i in range(200))]


def test_a_folder_that_is_deleted_is_made_again_and_nothing_is_lost(tmp_path):
    folder = tmp_path / "events"
    log = EventLog(folder, "w", segment_seconds=60)
    log.append(b"1\n", 1)
    wait_until(lambda: log.counters().pending == 0)
    shutil.rmtree(folder)  # with the segment that is open
    log.append(b"2\n", 1)
    assert log.close() == Counters(logged=2, delivered=2, dropped=0, pending=0, retried=0)
    assert lines(folder) == [b"1", b"2"]
    log = EventLog(folder, "w2", segment_seconds=0.05)
    log.append(b"3\n", 1)
    wait_until(lambda: lines(folder)[-1:] == [b"3"])
    shutil.rmtree(folder)  # between two segments
    log.append(b"4\n", 1)
    wait_until(lambda: lines(folder) == [b"4"])
    log.close()


def test_a_new_segment_is_never_taken_for_abandoned(tmp_path):
    """Another thread looks for abandoned segments all the time, as a publisher does."""
    stop = threading.Event()

    def look():
        while not stop.is_set():
            assert event_segments.seal_abandoned(tmp_path) == []

    looking = [threading.Thread(target=look) for _ in range(2)]
    for thread in looking:
        thread.start()
    log = EventLog(tmp_path, "w", segment_seconds=1e-4, flush_seconds=1e-4)
    for i in range(300):
        log.append(b"%d\n" % i, 1)
        wait_until(lambda: log.counters().pending == 0)
    assert log.close().retried == 0
    stop.set()
    for thread in looking:
        thread.join()
    assert lines(tmp_path) == [b"%d" % i for i in range(300)]
    assert all(segment.stat().st_size for segment in event_segments.sealed_segments(tmp_path))


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^events: cannot make the folder .*/file/events: Not a directory$"):
        EventLog(tmp_path / "file" / "events", "w")


WRITER = """
import sys, time
from pathlib import Path
from predictor.event_log import EventLog
log = EventLog(Path(sys.argv[1]), "w", segment_seconds=0.2)
number = 0
while True:
    log.append(b"%d %d\\n" % (number, time.monotonic_ns()), 1)
    number += 1
    print(number, time.monotonic_ns(), flush=True)
    time.sleep(0.0005)
"""


def test_sigkill_loses_at_most_what_was_gathered(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        answered = []
        for line in process.stdout:
            answered.append(line)
            if len(answered) == 1000:
                break
        process.kill()
        answered += process.stdout.readlines()
    event_segments.seal_abandoned(tmp_path)
    written = lines(tmp_path)
    assert [int(line.split()[0]) for line in written] == list(range(len(written)))  # a prefix: no hole, nothing twice
    last_written, last_answered = int(written[-1].split()[1]), int(answered[-1].split()[1])
    # 20 ms are gathered; the rest is what a very busy machine may add.
    assert last_answered - last_written < 5e9
