"""A wrapper around all routes: limits the requests in hand, checks the optional key, adds request ids, measures latency.

It is plain ASGI, because the frameworks' own middleware costs more than a prediction.
"""

import hmac
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from predictor.messages import Refusal
from predictor.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,64}")


class Guard:
    """Wraps `app`. The limit and the key apply to `routes`; requests to others pass and are counted as "other"."""

    def __init__(
        self, app: App, metrics: Metrics, routes: frozenset[str], max_in_flight: int, api_key: str | None
    ) -> None:
        """Health and metrics are not among `routes`, so they answer even when the server is flooded."""
        self._app = app
        self._metrics = metrics
        self._routes = routes
        self._max_in_flight = max_in_flight
        self._prefix = secrets.token_hex(4).encode()  # so that request ids differ between servers and restarts
        self._numbers = itertools.count(1)
        self._api_key = api_key.encode() if api_key else None

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
            await send(message)

        guarded = scope["path"] in self._routes
        self._metrics.in_flight += guarded
        try:
            if guarded and (refusal := self._refusal(headers)):
                await _refuse(send_with_id, *refusal)
            else:
                await self._app(scope, receive, send_with_id)
        finally:
            self._metrics.in_flight -= guarded
            seconds = time.perf_counter() - begin
            route = scope["path"] if guarded else "other"
            self._metrics.request(route, status, seconds)
            if status >= 400 and _log.isEnabledFor(logging.INFO):
                _log.info(
                    "refused",
                    extra={
                        "request_id": request_id.decode(),
                        "method": scope["method"],
                        "route": route,
                        "status": status,
                        "seconds": round(seconds, 6),
                    },
                )

    def _refusal(self, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        if self._metrics.in_flight > self._max_in_flight:
            return 429, f"{self._max_in_flight} requests are in hand already, try again later"
        if self._api_key and not hmac.compare_digest(headers.get(b"x-api-key", b""), self._api_key):
            return 401, "x-api-key: is missing or wrong"
        return None


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
