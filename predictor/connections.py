"""A connection that cannot be held for nothing: what uvicorn's leaves to a proxy in front, which may not be there.

A request's head is bounded in time and size, its body and the taking of its answer in time, and connections in number,
below the number of files that the process may open: the event log and the next policy need some as well.
"""

import asyncio
import logging
import resource
from collections.abc import MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from predictor.messages import Refusal
from predictor.metrics import Metrics

_log = logging.getLogger(__name__)

_HEAD_BYTES = 65_536  # and what one read brings, 256 KB at most
_PIPELINED = 100  # requests that may wait behind the one in hand; each takes a hundred times its bytes
_OTHER_FILES = 128  # kept for all that is not a connection
_OVERDUE = "predictor.overdue"


@dataclass(frozen=True)
class Limits:
    """What connections may take."""

    seconds: float  # for a head, for a body, for taking an answer
    connections: int


def limit(seconds: float, connections: int) -> Limits:
    """Limits that the process can keep: raises its limit of open files if it may, or else allows fewer connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if resource.RLIM_INFINITY != soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            connections = max(1, soft - _OTHER_FILES)
            _log.warning("%d open files are allowed: at most %d connections are taken", soft, connections)
    return Limits(seconds, connections)


def overdue(scope: MutableMapping[str, Any]) -> bool:
    """Whether the body of the request of this ASGI scope did not come in time: what was read ends in its middle."""
    return _OVERDUE in scope["state"]


class Connection(HttpToolsProtocol):
    """uvicorn's, with a deadline for whatever the client owes: armed only while it owes something, so a request that
    comes whole, as nearly all do, costs no timer."""

    def __init__(self, *, limits: Limits, metrics: Metrics, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._limits = limits
        self._metrics = metrics
        self._head_bytes = 0  # of the head that is coming
        self._read: object = None  # the last request that has come whole: while it is `cycle`, a head is next
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Takes the connection, or refuses one too many."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{self._limits.connections} connections are open already")
        else:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is owed."""
        super().connection_lost(exc)
        self._disarm()

    def data_received(self, data: bytes) -> None:
        """Reads on; refuses what is no HTTP, and a head too long."""
        self._unset_keepalive_if_required()
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
        """A head has come whole."""
        if not self.parser.should_upgrade():
            super().on_headers_complete()
        elif self.parser.get_method() == b"CONNECT":
            raise ValueError("there is no tunnel to anywhere")

    def on_message_complete(self) -> None:
        """A request has come whole."""
        if self.parser.should_upgrade():
            return
        self._read = self.cycle
        super().on_message_complete()
        if len(self.pipeline) > _PIPELINED:
            raise ValueError(f"more than {_PIPELINED} wait on this connection")

    def on_response_complete(self) -> None:
        """It is answered, perhaps before its end; or the next is begun, whose time begins as well."""
        super().on_response_complete()
        if self._body_due():
            self._disarm()
            self._arm()

    def pause_writing(self) -> None:
        """The client does not take its answers."""
        super().pause_writing()
        self._arm()

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._disarm()
        if self._head_bytes or self._body_due():
            self._arm()

    def _parse(self, data: bytes) -> None:
        """Feeds the parser. A request may offer to go on in another protocol, as clients of HTTP/2 do: the offer is not
        taken. The parser would pass over its body as that protocol's, so it reads such a head again without the offer."""
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
            self._deadline = self.loop.call_later(self._limits.seconds, self._overdue)

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
                self._arm()  # it is we who are late
        elif self._head_bytes:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"headers: must arrive within {self._limits.seconds:g} seconds")
        else:
            self.transport.close()

    def _end_body(self) -> None:
        """Leaves the answer to the app, which may be waiting for the rest."""
        self.cycle.scope["state"][_OVERDUE] = True
        self.cycle.more_body = False
        self.cycle.keep_alive = False
        self.cycle.message_event.set()

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answers in the place of the app, and closes."""
        body = msgspec.json.encode(Refusal(reason))
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
        self._metrics.request("other", status.value, 0.0)
        _log.info("refused", extra={"status": status.value, "reason": reason})
