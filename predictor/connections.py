"""An HTTP connection with the limits that uvicorn leaves to a reverse proxy.

The head of a request is limited in time and size, its body and the reading of its answer in time. The number of
connections stays below the process's limit of open files, because the event log and the next policy need files too.
When all connections are taken, a new one replaces the connection that has been idle longest. So clients that keep
connections without using them cannot keep others out.
"""

import asyncio
import logging
import resource
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from predictor.messages import Refusal
from predictor.metrics import Metrics

_log = logging.getLogger(__name__)

_HEAD_BYTES = 65_536  # plus at most one read of 256 KB
_PIPELINED = 100  # requests that may wait behind the current one; each takes a hundred times its bytes in memory
_OTHER_FILES = 128  # reserved for everything else
_OPERATIONS_CONNECTIONS = 64  # on the port for operations; they are not counted among the others
_OVERDUE = "predictor.overdue"


@dataclass(frozen=True)
class Limits:
    """Limits per connection, and of their number."""

    seconds: float  # for a head, for a body, and for reading an answer
    connections: int
    operations_port: int | None = None


@dataclass
class _Open:
    """The open connections of one port; the idle ones in the order in which they became idle."""

    most: int
    count: int = 0
    idle: dict["Connection", None] = field(default_factory=dict)


class Ports:
    """The connections of all ports of one server, and their limits."""

    def __init__(self, limits: Limits) -> None:
        self.seconds = limits.seconds
        self._operations_port = limits.operations_port
        self._main = _Open(limits.connections)
        self._operations = _Open(_OPERATIONS_CONNECTIONS)

    def of(self, transport: asyncio.Transport) -> _Open:
        """The connections of the port on which `transport` was accepted."""
        local = transport.get_extra_info("sockname")
        return self._operations if local and local[1] == self._operations_port else self._main


def limit(seconds: float, connections: int, operations_port: int | None = None) -> Limits:
    """The limits that the process can keep. Raises its limit of open files if possible, or else allows fewer connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = _OTHER_FILES + (_OPERATIONS_CONNECTIONS if operations_port is not None else 0)
    wanted = connections + others
    if resource.RLIM_INFINITY != soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            connections = max(1, soft - others)
            _log.warning("the process may open %d files: at most %d connections are accepted", soft, connections)
    return Limits(seconds, connections, operations_port)


def overdue(scope: MutableMapping[str, Any]) -> bool:
    """Whether the body of this ASGI request was late. What was read of it is then incomplete."""
    return _OVERDUE in scope["state"]


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with a deadline while the client has to send or read something.

    Nearly all requests arrive in one piece, and those cost no timer.
    """

    def __init__(self, *, ports: Ports, metrics: Metrics, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._ports = ports
        self._metrics = metrics
        self._head_bytes = 0  # of the head that is being received
        self._read: object = None  # the last request received in full; while it is `cycle`, a head is next
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Accepts the connection, in place of the longest idle one if need be. Answers 503 if all are in use."""
        super().connection_made(transport)
        self._open = self._ports.of(transport)
        self._open.count += 1
        if self._open.count > self._open.most:
            if not self._open.idle:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{self._open.most} connections are in use already")
                return
            longest_idle = next(iter(self._open.idle))
            del self._open.idle[longest_idle]
            longest_idle.transport.close()
            self._metrics.replaced_connections += 1
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the deadline."""
        super().connection_lost(exc)
        self._open.count -= 1
        self._open.idle.pop(self, None)
        self._disarm()

    def data_received(self, data: bytes) -> None:
        """Parses the data. Answers 400 if it is not HTTP, 431 if the head is too long."""
        self._unset_keepalive_if_required()
        self._open.idle.pop(self, None)
        before, head_due = self.cycle, self._read is self.cycle
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"not a request in HTTP/1.1: {error.__context__ or error}")
            return
        if self.cycle is not before:
            self._head_bytes = 0
            self._disarm()
            if self._body_due():
                self._arm()
        elif head_due:
            self._head_bytes += len(data)
            self._arm()
            if self._head_bytes > _HEAD_BYTES:
                reason = f"headers: must be at most {_HEAD_BYTES} bytes"
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, reason)
        elif not self._body_due():
            self._disarm()

    def on_headers_complete(self) -> None:
        """Starts the request. Raises ValueError for CONNECT."""
        if not self.parser.should_upgrade():
            super().on_headers_complete()
        elif self.parser.get_method() == b"CONNECT":
            raise ValueError("CONNECT is not supported")

    def on_message_complete(self) -> None:
        """Ends the request. Raises ValueError if too many wait on this connection."""
        if self.parser.should_upgrade():
            return
        self._read = self.cycle
        super().on_message_complete()
        if len(self.pipeline) > _PIPELINED:
            raise ValueError(f"more than {_PIPELINED} requests wait on this connection")

    def on_response_complete(self) -> None:
        """Restarts the deadline for the rest of a body that was answered early, or for the next request."""
        super().on_response_complete()
        if self._body_due():
            self._disarm()
            self._arm()
        elif self.cycle.response_complete and not self._head_bytes and not self.transport.is_closing():
            self._open.idle[self] = None

    def pause_writing(self) -> None:
        """Starts the deadline: the client is not reading its answers."""
        super().pause_writing()
        self._arm()

    def resume_writing(self) -> None:
        """Cancels the deadline: the client reads again."""
        super().resume_writing()
        self._disarm()
        if self._head_bytes or self._body_due():
            self._arm()

    def _parse(self, data: bytes) -> None:
        """Feeds the parser, and declines each offer to upgrade the protocol, such as those of HTTP/2 clients.

        After an offer the parser would skip the body, so it parses the head again without the offer.
        """
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                (head_ends,) = upgrade.args
                version = self.parser.get_http_version().encode()
                lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
                lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
                data = b"\r\n".join([*lines, b"", b""]) + data[head_ends:]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's

    def _body_due(self) -> bool:
        return self._read is not self.cycle

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._ports.seconds, self._overdue)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _overdue(self) -> None:
        self._deadline = None
        if self.flow.write_paused:
            self.transport.abort()
        elif self.cycle is not None and not self.cycle.response_complete:
            if self._body_due() and not self.pipeline:
                self._end_body()
            else:
                self._arm()  # the server is late, not the client
        elif self._head_bytes:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"headers: must arrive within {self._ports.seconds:g} seconds")
        else:
            self.transport.close()

    def _end_body(self) -> None:
        """Ends the wait for the rest of the body; the application then answers 408."""
        self.cycle.scope["state"][_OVERDUE] = True
        self.cycle.more_body = False
        self.cycle.keep_alive = False
        self.cycle.message_event.set()

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answers without the application, and closes the connection."""
        body = msgspec.json.encode(Refusal(reason))
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
        self._metrics.request("other", status.value, 0.0)
        _log.info("refused", extra={"status": status.value, "reason": reason})
