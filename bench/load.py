"""A load tool: keeps the connections of a server busy, or sends at a given rate, and times every answer.

Requests are whole, made beforehand and all different, so that nothing but the server is measured. Each answer's status
is looked at, and the decision ids in it are kept, so that what was answered can be compared with what was logged.
"""

import asyncio
import re
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import uvloop

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_DECISION = re.compile(rb'"decision_id":"([0-9a-f-]{36})"')


@dataclass
class Report:
    """What came of a load."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    decision_ids: list[bytes] = field(default_factory=list)
    failures: list[bytes] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def milliseconds(self, quantile: float) -> float:
        """A quantile of the latency."""
        return float(np.quantile(self.latencies, quantile)) * 1e3


def post(path: str, body: bytes) -> bytes:
    """A whole request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def as_fast_as_answered(
    port: int, requests: list[bytes], connections: int, seconds: float | None = None, count: int | None = None
) -> Report:
    """Each connection sends its next request when the last is answered, for `seconds` or until `count` are answered."""
    return uvloop.run(_run(port, requests, connections, seconds, count, None))


def at_rate(port: int, requests: list[bytes], connections: int, rate: float, seconds: float) -> Report:
    """`rate` requests a second, whether the earlier ones are answered or not; a request that finds no free connection
    waits for one, and its waiting counts."""
    return uvloop.run(_run(port, requests, connections, seconds, None, rate))


class _Connection(asyncio.Protocol):
    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._received = b""
        self._due = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._received, 0, end)
        assert length is not None
        if len(self._received) >= end + 4 + int(length[1]):
            answer, self._received = self._received, b""
            self._load.answered(self, answer, time.perf_counter() - self._due)

    def connection_lost(self, error: Exception | None) -> None:
        self._load.lost(error)

    def close(self) -> None:
        self._transport.abort()


class _Load:
    def __init__(self, requests: list[bytes], count: int | None, rate: float | None) -> None:
        self.report = Report()
        self.done = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._sent = 0
        self._begin = 0.0
        self._until = float("inf")
        self._count = count or float("inf")
        self._rate = rate
        self._waiting: deque[float] = deque()  # when each was due
        self._idle: deque[_Connection] = deque()

    def start(self, connections: list[_Connection], seconds: float | None) -> None:
        self._begin = time.perf_counter()
        self._until = self._begin + seconds if seconds else float("inf")
        if self._rate is None:
            for connection in connections:
                self._send(connection, time.perf_counter())
        else:
            self._idle.extend(connections)
            self._tick()

    def answered(self, connection: _Connection, answer: bytes, seconds: float) -> None:
        self.report.latencies.append(seconds)
        if answer.startswith(b"HTTP/1.1 200 "):
            self.report.decision_ids += _DECISION.findall(answer)
        else:
            self.report.failures.append(answer)
        now = time.perf_counter()
        if now >= self._until or self._sent >= self._count:
            # What is on its way is waited for, so that all that was logged was answered.
            if len(self.report.latencies) == self._sent:
                self._finish(now)
        elif self._rate is None:
            self._send(connection, now)
        elif self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.report.failures.append(repr(error).encode())
            self._finish(time.perf_counter())

    def _send(self, connection: _Connection, due: float) -> None:
        connection.send(self._requests[self._sent % len(self._requests)], due)
        self._sent += 1

    def _tick(self) -> None:
        # Timers are good to a millisecond: what fell due in it goes at once, which is harder on the server, not easier.
        now = time.perf_counter()
        assert self._rate is not None
        if now >= self._until:
            if len(self.report.latencies) == self._sent:
                self._finish(now)
            return
        while self._sent + len(self._waiting) < (now - self._begin) * self._rate:
            if self._idle:
                self._send(self._idle.popleft(), now)
            else:
                self._waiting.append(now)
        asyncio.get_running_loop().call_later(0.001, self._tick)

    def _finish(self, now: float) -> None:
        if not self.done.done():
            self.report.seconds = now - self._begin
            self.done.set_result(None)


async def _run(
    port: int, requests: list[bytes], connections: int, seconds: float | None, count: int | None, rate: float | None
) -> Report:
    loop = asyncio.get_running_loop()
    load = _Load(requests, count, rate)
    opened = [
        (await loop.create_connection(lambda: _Connection(load), "127.0.0.1", port))[1] for _ in range(connections)
    ]
    load.start(list(opened), seconds)
    await load.done
    for connection in opened:
        connection.close()
    return load.report
