"""The server of the page: its files, the stream of documents, and the requests that the page sends.

One task looks once per second, and makes one document for all pages that are open.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse
from msgspec import Meta

from contracts.errors import InputError, OperationError
from orchestration.page.access import COOKIE, Access
from orchestration.page.actions import Actions
from orchestration.page.monitor import Monitor

LOOK_SECONDS = 1.0
MAX_BODY_BYTES = 65_536
_STATIC = Path(__file__).with_name("static")
_FILES = {
    "/": "index.html",
    "/page.js": "page.js",
    "/charts.js": "charts.js",
    "/viewer.js": "viewer.js",
    "/page.css": "page.css",
}
# Nothing but the page's own files, and no page around it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}

_log = logging.getLogger(__name__)


class Feed:
    """The latest document, and those who wait for the next."""

    def __init__(self, monitor: Monitor, actions: Actions) -> None:
        self._monitor = monitor
        self._actions = actions
        self._next = asyncio.Event()
        self.document = b""
        self.ended = False

    async def run(self) -> None:
        """Looks once per second until it is cancelled. What cannot be read is on the page instead of the document."""
        while True:
            try:
                self.document = await asyncio.to_thread(self._look)
            except (InputError, OperationError) as error:
                self.document = msgspec.json.encode({"error": str(error)})
            except Exception as error:  # noqa: BLE001 - the page stays, and says what is wrong
                _log.exception("the page could not be made")
                self.document = msgspec.json.encode({"error": f"{type(error).__name__}: {error}"})
            self._wake()
            await asyncio.sleep(LOOK_SECONDS)

    async def stream(self) -> AsyncIterator[bytes]:
        """The documents from now on, as server-sent events."""
        while not self.ended:
            if self.document:
                yield b"data: " + self.document + b"\n\n"
            await self._next.wait()

    def end(self) -> None:
        """Ends all streams."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    def _look(self) -> bytes:
        self._monitor.follow()
        return msgspec.json.encode(self._monitor.state(self._actions.rewarded(), datetime.now(UTC)))


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a person changes something."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class Ratings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ratings by action, of a viewer who is made."""

    ratings: dict[int, float]


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A viewer who wants a recommendation."""

    observation: Annotated[list[float], Meta(min_length=1, max_length=65_536)]
    user_id: Annotated[str, Meta(max_length=128)] | None = None


class Reward(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A reward for a recommendation that was asked for on the page."""

    decision_id: Annotated[str, Meta(min_length=36, max_length=36)]
    reward: float


def build_app(monitor: Monitor, actions: Actions, access: Access) -> tuple[FastAPI, Feed]:
    """The application, and its feed, to be ended before the server waits for open streams."""
    feed = Feed(monitor, actions)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(feed.run())
        yield
        feed.end()
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)

    app = FastAPI(title="Live page", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guarded(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        response = _refusal(request, access) or await proceed(request)
        for name, value in _HEADERS.items():
            response.headers[name] = value
        return response

    _add_reading(app, feed, actions)
    _add_changes(app, actions)
    return app, feed


def _refusal(request: Request, access: Access) -> Response | None:
    """What a request gets that may not be answered; None for others."""
    key = request.query_params.get("key")
    if request.method == "GET" and request.url.path == "/" and key is not None and access.is_key(key):
        response = RedirectResponse(f"/#key={key}", 303)  # the page sends it along with changes
        response.set_cookie(COOKIE, key, httponly=True, samesite="strict")
        return response
    if not access.may_read(request.headers, request.cookies):
        return _answer({"error": "this page needs its key: open the address that was printed"}, 401)
    if request.method != "GET" and not access.may_change(request.headers):
        return _answer({"error": "this needs the key that was printed with the page's address"}, 403)
    return None


def _add_reading(app: FastAPI, feed: Feed, actions: Actions) -> None:
    for path, name in _FILES.items():
        app.get(path)(_file(_STATIC / name))

    @app.get("/api/events")
    async def events() -> Response:
        return StreamingResponse(feed.stream(), media_type="text/event-stream")

    @app.get("/api/state")
    async def state() -> Response:
        return Response(feed.document or b"{}", media_type="application/json")

    @app.get("/api/decisions/{decision_id}")
    async def decision(decision_id: str) -> Response:
        return await _answered(actions.explain, decision_id)

    @app.get("/api/viewers")
    async def viewers() -> Response:
        return await _answered(actions.viewers)

    @app.get("/api/viewers/{user_id}")
    async def viewer(user_id: int) -> Response:
        return await _answered(actions.viewer, user_id)


def _add_changes(app: FastAPI, actions: Actions) -> None:
    @app.post("/api/viewers")
    async def make_viewer(request: Request) -> Response:
        return await _posted(request, Ratings, lambda body: actions.make_viewer(body.ratings))

    @app.post("/api/recommend")
    async def recommend(request: Request) -> Response:
        return await _posted(request, Ask, lambda body: actions.recommend(body.observation, body.user_id))

    @app.post("/api/reward")
    async def reward(request: Request) -> Response:
        return await _posted(request, Reward, lambda body: actions.reward(body.decision_id, body.reward))

    @app.post("/api/roll-back")
    async def roll_back(request: Request) -> Response:
        return await _posted(request, Reason, lambda body: actions.roll_back(body.reason))

    @app.post("/api/hold")
    async def hold(request: Request) -> Response:
        return await _posted(request, Reason, lambda body: actions.hold(body.reason))

    @app.post("/api/release")
    async def release(request: Request) -> Response:
        return await _posted(request, Reason, lambda body: actions.release(body.reason))


def _file(path: Path) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return FileResponse(path)

    return send


async def _posted(request: Request, kind: type[Any], act: Callable[[Any], object]) -> Response:
    """The answer to a request with a JSON body of that kind."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            return _answer({"error": f"body: at most {MAX_BODY_BYTES} bytes"}, 413)
    try:
        body = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _answer({"error": f"body: {error}"}, 400)
    return await _answered(act, body)


async def _answered(act: Callable[..., object], *arguments: object) -> Response:
    """What `act` returns, called in a thread; its errors with their status."""
    try:
        return _answer(await asyncio.to_thread(act, *arguments))
    except InputError as error:
        return _answer({"error": str(error)}, 400)
    except OperationError as error:
        return _answer({"error": str(error)}, 502)


def _answer(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
