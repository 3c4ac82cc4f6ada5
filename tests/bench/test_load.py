"""The benchmark's load tool, against a server that follows a script."""

import http.server
import threading
import time
from collections import Counter

import pytest

from bench import load

IDS = [f"018f0000-0000-7000-8000-{number:012x}" for number in range(1000)]
REQUESTS = [load.post("/predict", f"{number}".encode()) for number in range(7)]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers after `server.seconds`, each `server.failing`-th with 500; closes the connection after `server.last`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = self.rfile.read(int(self.headers["content-length"]))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(asked)
        time.sleep(self.server.seconds)
        if number >= self.server.last:
            self.close_connection = True
            return
        body = f'{{"predictions":[{{"decision_id":"{IDS[number]}"}}]}}'.encode()
        self.send_response(500 if self.server.failing and number % self.server.failing == 0 else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:10])
        self.wfile.write(body[10:])

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as it:
        it.lock, it.asked, it.seconds, it.failing, it.last = threading.Lock(), [], 0.0, 0, 1000
        thread = threading.Thread(target=it.serve_forever)
        thread.start()
        yield it
        it.shutdown()
        thread.join()


def test_each_request_is_answered_and_timed(server):
    server.seconds = 0.02
    report = load.as_fast_as_answered(server.server_port, REQUESTS, 3, count=20)
    assert sorted(report.decision_ids) == [one.encode() for one in IDS[:20]]
    assert Counter(server.asked) == Counter(b"%d" % (number % 7) for number in range(20))
    assert len(report.latencies) == 20
    assert min(report.latencies) >= 0.02
    for latency, with_waits in zip(report.latencies, report.latencies_with_waits, strict=True):
        assert latency <= with_waits
    assert not report.failures


def test_all_that_fell_due_is_sent_and_answered(server):
    server.seconds = 0.1  # two connections answer 20 a second
    report = load.at_rate(server.server_port, REQUESTS, 2, rate=100, seconds=0.4)
    assert len(report.latencies) == len(server.asked) == len(report.decision_ids)
    assert not report.failures
    # All fell due in 0.4 s, and two at a time take 0.1: the wait for a connection counts.
    assert max(report.latencies) >= len(report.latencies) / 2 * 0.1 - 0.4


@pytest.fixture
def schedule(server):
    """Nothing is sent: `fall_due` is asked at moments of the test's own."""
    made = load._Load(server.server_port, REQUESTS, 1, 1.0, float("inf"), 2000.0)
    sent = []

    def at(seconds):
        due = made.fall_due(seconds, 2000.0)
        made._sent += len(due)
        sent.extend(due)
        return len(due)

    yield at, sent
    for connection in made._connections.values():
        connection.close()
    made._poll.close()


def test_a_rate_is_kept(schedule):
    at, sent = schedule
    assert sum(at(millisecond / 1000) for millisecond in range(101)) == 201
    assert sent == [number / 2000 for number in range(201)]


def test_what_was_missed_is_caught_up_at_twice_the_rate(schedule):
    at, sent = schedule
    for millisecond in range(11):
        at(millisecond / 1000)
    assert len(sent) == 21
    assert at(0.050) == 4  # 80 were missed: not all at once
    counts = [at(millisecond / 1000) for millisecond in range(51, 101)]
    assert max(counts) == 4 and counts[-1] == 2
    assert sent == [number / 2000 for number in range(201)]  # and when each was to be sent is known


def test_failures_are_reported(server):
    server.failing = 5
    report = load.as_fast_as_answered(server.server_port, REQUESTS, 2, count=20)
    assert len(report.failures) == 4
    assert all(failure.startswith(b"HTTP/1.1 500 ") for failure in report.failures)
    assert len(report.decision_ids) == 16


def test_a_server_that_goes_away_ends_the_load(server):
    server.last = 10
    report = load.as_fast_as_answered(server.server_port, REQUESTS, 2, count=100)
    assert 8 <= len(report.latencies) <= 10
    assert report.failures == [repr(ConnectionResetError("the server closed the connection")).encode()]
