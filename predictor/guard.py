"""A wrapper around all routes: limits the requests in hand, checks keys and ports, adds request ids, measures latency.

It is plain ASGI, because the frameworks' own middleware costs more than a prediction.
"""

import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from predictor.keys import HEADER, Keys
from predictor.messages import Refusal
from predictor.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,64}")
_OWN_SITES = (b"none", b"same-origin")  # browsers say where a request comes from; other clients do not send it


@dataclass(frozen=True)
class Rules:
    """Which requests the guard lets through.

    `work` are the routes that the limit of requests in hand applies to. Health and metrics are not among them, so they
    answer even when the server is flooded. `keys` are asked for by route. With an `operations_port`, the routes of
    `operations` answer there alone, and those of `work` do not answer there. Browsers may call the routes `from_pages` from
    pages of `origins`. `route_of` maps a path to its route, for routes with an id in their path; `key_headers` has the
    header of the key where it is not x-api-key.
    """

    work: frozenset[str]
    max_in_flight: int
    keys: Mapping[str, Keys] = field(default_factory=dict)
    operations: frozenset[str] = frozenset()
    operations_port: int | None = None
    origins: frozenset[bytes] = frozenset()
    from_pages: frozenset[str] = frozenset()
    route_of: Callable[[str], str] = str
    key_headers: Mapping[str, bytes] = field(default_factory=dict)


class Guard:
    """Wraps `app`. Requests to routes that are not `rules.work` are counted as "other"."""

    def __init__(self, app: App, metrics: Metrics, rules: Rules) -> None:
        self._app = app
        self._metrics = metrics
        self._rules = rules
        self._prefix = secrets.token_hex(4).encode()  # so that request ids differ between servers and restarts
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, as ASGI defines it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = b"%s-%x" % (self._prefix, next(self._numbers))
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
                if origin is not None:
                    message["headers"] += [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
            await send(message)

        route = self._rules.route_of(scope["path"])
        guarded = route in self._rules.work
        origin = self._allowed_origin(route, headers)
        self._metrics.in_flight += guarded
        try:
            if origin is not None and scope["method"] == "OPTIONS":
                await _preflight(send_with_id)
            elif refusal := self._refusal(scope, route, headers, origin):
                await _refuse(send_with_id, *refusal)
            else:
                await self._app(scope, receive, send_with_id)
        finally:
            self._metrics.in_flight -= guarded
            seconds = time.perf_counter() - begin
            counted = route if guarded else "other"
            self._metrics.request(counted, status, seconds)
            if status >= 400 and _log.isEnabledFor(logging.INFO):
                _log.info(
                    "refused",
                    extra={
                        "request_id": request_id.decode(),
                        "method": scope["method"],
                        "route": counted,
                        "status": status,
                        "seconds": round(seconds, 6),
                    },
                )

    def _allowed_origin(self, route: str, headers: dict[bytes, bytes]) -> bytes | None:
        """The origin of the page that sent the request, if it may call the route."""
        origin = headers.get(b"origin")
        return origin if route in self._rules.from_pages and origin in self._rules.origins else None

    def _refusal(
        self, scope: Scope, route: str, headers: dict[bytes, bytes], origin: bytes | None
    ) -> tuple[int, str] | None:
        rules, guarded = self._rules, route in self._rules.work
        if rules.operations_port is not None:
            at_operations = scope["server"][1] == rules.operations_port
            if route in (rules.work if at_operations else rules.operations):
                return 404, "Not Found"
        if guarded and self._metrics.in_flight > rules.max_in_flight:
            return 429, f"{rules.max_in_flight} requests are in hand already, try again later"
        header = rules.key_headers.get(route, HEADER)
        if (keys := rules.keys.get(route)) is not None and not keys.admit(headers.get(header, b"")):
            return 401, f"{header.decode()}: is missing or wrong"
        if guarded and origin is None and headers.get(b"sec-fetch-site", b"none") not in _OWN_SITES:
            return 403, "sec-fetch-site: requests from pages of other sites are refused"
        return None


async def _preflight(send: Send) -> None:
    """Answers a browser that asks whether a page may send a request."""
    headers = [
        (b"access-control-allow-methods", b"POST"),
        (b"access-control-allow-headers", b"content-type, x-api-key"),
        (b"access-control-max-age", b"600"),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = msgspec.json.encode(Refusal(reason))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class JsonFormatter(logging.Formatter):
    """One JSON object per line, with the fields that Cloud Logging knows."""

    _OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        """`record` as one line of JSON."""
        line: dict[str, object] = {
            "severity": record.levelname,
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in self._OWN}
        if record.exc_info:
            line["stack_trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()
