"""A load tool: keeps the connections of a server busy, or sends at a given rate, and times every answer.

Requests are whole, made beforehand and all different, so that nothing but the server is measured. Each answer's status
is looked at, and the decision ids in it are kept, so that what was answered can be compared with what was logged.

On a machine that is too small for all, this process waits for a core, too, which is no matter of the server's. So a
latency begins when a request falls due here (it may then wait for a free connection) and ends when the kernel has the answer, which stamps it then (SO_TIMESTAMPNS); and
what could not be sent in time is sent at no more than twice the rate, not all at once. With these waits, from the moment
a request was to be sent until its answer was read, latencies are reported beside.
"""

import re
import select
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_DECISION = re.compile(rb'"decision_id":"([0-9a-f-]{36})"')
_SO_TIMESTAMPNS = 35  # Linux; Python has no name for it
_TIMESPEC = struct.Struct("@ll")  # seconds, nanoseconds; of the wall clock
_TICK_SECONDS = 0.001
_SILENCE_SECONDS = 60.0  # after which no answer is waited for any more


@dataclass
class Report:
    """What came of a load."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)  # seconds
    latencies_with_waits: list[float] = field(default_factory=list)  # seconds, this process's own waits included
    decision_ids: list[bytes] = field(default_factory=list)
    failures: list[bytes] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def milliseconds(self, quantile: float) -> float:
        """A quantile of the latency."""
        return float(np.quantile(self.latencies, quantile)) * 1e3

    def milliseconds_with_waits(self, quantile: float) -> float:
        """A quantile of the latency with this process's own waits."""
        return float(np.quantile(self.latencies_with_waits, quantile)) * 1e3


def post(path: str, body: bytes) -> bytes:
    """A whole request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def as_fast_as_answered(
    port: int, requests: list[bytes], connections: int, seconds: float = float("inf"), count: int | None = None
) -> Report:
    """Each connection sends its next request when the last is answered, for `seconds` or until `count` are answered."""
    return _Load(port, requests, connections, seconds, count or float("inf"), None).run()


def at_rate(port: int, requests: list[bytes], connections: int, rate: float, seconds: float) -> Report:
    """`rate` requests a second, whether the earlier ones are answered or not; a request that finds no free connection
    waits for one, and its waiting counts."""
    return _Load(port, requests, connections, seconds, float("inf"), rate).run()


class _Connection:
    def __init__(self, port: int) -> None:
        self.scheduled = self.due = 0.0  # of the request in hand: when it was to fall due, and did; by the wall clock
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._received = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, request: bytes, scheduled: float, due: float) -> None:
        self.scheduled, self.due = scheduled, due
        self._socket.sendall(request)

    def receive(self) -> tuple[bytes, float] | None:
        """The answer and the time it arrived, or None when there is more of it to come. Raises OSError."""
        data, ancillary, _, _ = self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(_TIMESPEC.size))
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return None
        if not (length := _LENGTH.search(self._received, 0, end)):
            raise OSError(f"an answer without Content-Length: {self._received[:end]!r:.200}")
        if len(self._received) < end + 4 + int(length[1]):
            return None
        if not ancillary:
            raise OSError("the kernel gave an answer without the time it came")
        answer, self._received = self._received, b""
        seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
        return answer, seconds + nanoseconds * 1e-9

    def close(self) -> None:
        self._socket.close()


class _Load:
    def __init__(
        self, port: int, requests: list[bytes], connections: int, seconds: float, count: float, rate: float | None
    ) -> None:
        self._requests = requests
        self._seconds = seconds
        self._count = count
        self._rate = rate
        self._report = Report()
        self._sent = 0
        self._credit, self._credited_at = 1.0, 0.0  # how many may fall due now
        self._waiting: deque[tuple[float, float]] = deque()  # when each was to fall due, and did
        self._connections = {one.fileno(): one for one in (_Connection(port) for _ in range(connections))}
        self._idle = deque(self._connections.values())
        self._poll = select.epoll()
        for number in self._connections:
            self._poll.register(number, select.EPOLLIN)

    def run(self) -> Report:
        begin, begun_at = time.perf_counter(), time.time()
        try:
            while (passed := time.perf_counter() - begin) < self._seconds and self._sent < self._count:
                if self._rate is None:
                    free = int(min(len(self._idle), self._count - self._sent))
                    self._waiting.extend([(begun_at + passed, begun_at + passed)] * free)
                else:
                    due = self.fall_due(passed, self._rate)
                    self._waiting.extend((begun_at + scheduled, begun_at + passed) for scheduled in due)
                self._send()
                self._receive(_TICK_SECONDS if self._rate else _SILENCE_SECONDS)
            # What fell due is sent, and what was sent is waited for: all that was logged was answered.
            while self._waiting or len(self._report.latencies) < self._sent:
                self._send()
                self._receive(_SILENCE_SECONDS)
        except OSError as error:
            self._report.failures.append(repr(error).encode())
        self._report.seconds = time.perf_counter() - begin
        for connection in self._connections.values():
            connection.close()
        self._poll.close()
        return self._report

    def fall_due(self, passed: float, rate: float) -> list[float]:
        """When those were to fall due that do now, in seconds from the beginning, which was `passed` seconds ago."""
        credit = self._credit + 2 * rate * (passed - self._credited_at)
        self._credit, self._credited_at = min(credit, max(2 * rate * _TICK_SECONDS, 1.0)), passed
        first = self._sent + len(self._waiting)
        count = max(0, min(int(passed * rate) + 1 - first, int(self._credit)))
        self._credit -= count
        return [number / rate for number in range(first, first + count)]

    def _send(self) -> None:
        while self._idle and self._waiting:
            request = self._requests[self._sent % len(self._requests)]
            self._idle.popleft().send(request, *self._waiting.popleft())
            self._sent += 1

    def _receive(self, seconds: float) -> None:
        ready = self._poll.poll(seconds)
        if not ready and seconds == _SILENCE_SECONDS:
            raise OSError(f"no answer for {_SILENCE_SECONDS:g} s")
        failed: OSError | None = None
        for number, _ in ready:
            connection = self._connections[number]
            try:
                received = connection.receive()
            except OSError as error:
                failed = error  # the others may have answers all the same
                continue
            if received:
                self._note(connection, *received)
                self._idle.append(connection)
        if failed:
            raise failed

    def _note(self, connection: _Connection, answer: bytes, arrived: float) -> None:
        self._report.latencies.append(arrived - connection.due)
        self._report.latencies_with_waits.append(time.time() - connection.scheduled)
        if answer.startswith(b"HTTP/1.1 200 "):
            self._report.decision_ids += _DECISION.findall(answer)
        else:
            self._report.failures.append(answer)
