"""The server of the Vertex AI prediction contract.

    python -m predictor.app --policy runs/loop/policies --events runs/loop/events --port 8080

`POST /predict` takes `{"instances": [{"observation": [...], "user_id": "...", "candidates": [...]}]}` and answers
`{"predictions": [{"decision_id", "action", "propensity", "policy_version", "movie_id", "title"}]}`; each prediction is
a logged decision. `"parameters": {"slate_size": 3}` asks for a slate. `POST /rewards` takes what came back for them.
`GET /health` is 503 until a policy serves; `/metrics` is for Prometheus, `/docs` for people.

With `--topic` the events go to Pub/Sub, by way of the folder of the event log: they wait there while Pub/Sub is away.

On Vertex AI the port, the routes and the policy come from `AIP_HTTP_PORT`, `AIP_HEALTH_ROUTE`, `AIP_PREDICT_ROUTE` and
`AIP_STORAGE_URI`; a flag wins over its variable.
"""

import argparse
import asyncio
import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from contracts.errors import InputError
from contracts.policies import Movie
from contracts.records import UNREADABLE, Decision, RewardEvent, describe_error, encoder
from predictor import connections, openapi
from predictor import metrics as metrics_text
from predictor.batcher import Batcher
from predictor.event_log import EventLog
from predictor.guard import Guard, JsonFormatter
from predictor.messages import (
    Prediction,
    PredictRequest,
    PredictResponse,
    Refusal,
    RewardsRequest,
    RewardsResponse,
    Slot,
)
from predictor.metrics import Metrics
from predictor.publisher import PublisherProcess
from predictor.serving import Champion
from predictor.settings import Settings, parse

PROG = "python -m predictor.app"

T = TypeVar("T")

# A client that is cut off while it sends does not see why, so a body up to this many times the limit is read and
# thrown away before it is refused.
_READ_TO_THE_END = 10
# BigQuery's day partitions take rows of about ten years back and one ahead; a moment far off is a mistake anyway.
_OLDEST, _NEWEST = timedelta(days=-5 * 365), timedelta(days=1)
_DECISION_BYTES = 400  # about what an instance leads to, beside its own text; for the event log's room


_predict_decoder = msgspec.json.Decoder(PredictRequest)
_rewards_decoder = msgspec.json.Decoder(RewardsRequest)


class Logs:
    """Where a server's decisions go: the events, what policies in the shadow would have done, and the way to a topic."""

    def __init__(self, settings: Settings) -> None:
        """Raises InputError for a folder that cannot be written to."""
        writer = f"predictor-{os.getpid()}"
        self.events = EventLog(settings.events, writer, settings.segment_seconds, buffer_bytes=settings.buffer_bytes)
        self.shadows = EventLog(settings.events / "shadow", writer, buffer_bytes=settings.buffer_bytes)
        self.publisher = (
            PublisherProcess(settings.events, settings.topic, settings.drain_seconds) if settings.topic else None
        )

    def close(self) -> None:
        """Seals the logs, then gives the publisher its time; what it leaves is on the disk."""
        counters = self.events.close()
        self.shadows.close()
        if counters.dropped:
            logging.error("the event log dropped %d of %d events", counters.dropped, counters.logged)
        if self.publisher:
            self.publisher.stop()


def build_app(
    settings: Settings, champion: Champion, logs: Logs, metrics: Metrics, failed: Callable[[BaseException], None]
) -> FastAPI:
    """The routes over a champion and its logs. `failed` is told when there is nothing to serve."""
    events = logs.events
    batcher = Batcher(champion, events, logs.shadows, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        serving_task = asyncio.create_task(serve_policy())
        serving_task.add_done_callback(report)
        yield
        serving_task.cancel()
        await asyncio.gather(serving_task, return_exceptions=True)

    async def serve_policy() -> None:
        await asyncio.to_thread(champion.start)
        _announce(settings, champion)
        await champion.follow(settings.poll_seconds)

    def report(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            failed(error)

    async def room(size: int) -> None:
        """Returns once the event log would take `size` bytes; at once or not at all, unless overload is to block."""
        deadline = asyncio.get_running_loop().time() + settings.body_seconds
        while not events.has_room(batcher.expected_bytes + size):
            if settings.on_overload == "drop" or asyncio.get_running_loop().time() > deadline:
                raise HTTPException(429, "the event log is full, try again later", {"retry-after": "1"})
            await asyncio.sleep(0.005)

    app = FastAPI(title="Movie recommendation policy", lifespan=lifespan, redirect_slashes=False)

    @app.exception_handler(HTTPException)
    async def refuse(_: Request, error: HTTPException) -> Response:
        return _json(Refusal(str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def crash(_: Request, error: Exception) -> Response:
        return _json(Refusal("the server failed; the reason is in its log"), 500)

    @app.post(settings.predict_route, **openapi.predict_route())
    async def predict(request: Request) -> Response:
        body = await _body(request, settings)
        asked = _decode(_predict_decoder, body)
        slate_size = asked.parameters.slate_size if asked.parameters else 1
        if len(asked.instances) * slate_size > settings.max_instances:
            at_most = f"instances: must be at most {settings.max_instances} (times slate_size)"
            raise HTTPException(400, f"{at_most}, got {len(asked.instances) * slate_size}")
        if champion.line_up is None:
            raise HTTPException(503, "no policy is loaded yet")
        size = len(body) + _DECISION_BYTES * len(asked.instances)
        if settings.on_overload == "block":
            await room(size)
        try:
            card, slates = await batcher.decide(asked.instances, slate_size, size)
        except InputError as error:
            raise HTTPException(400, str(error)) from None
        return _json(PredictResponse([_prediction(slate, card.catalogue) for slate in slates]))

    @app.post("/rewards", **openapi.rewards_route())
    async def rewards(request: Request) -> Response:
        sent = _decode(_rewards_decoder, await _body(request, settings)).rewards
        now = datetime.now(UTC)
        for number, reward in enumerate(sent):
            if reward.occurred_at and not now + _OLDEST <= reward.occurred_at <= now + _NEWEST:
                allowed = "must be of the last five years, and at most a day ahead"
                raise HTTPException(
                    400, f"rewards[{number}].occurred_at: {allowed}, got {reward.occurred_at.isoformat()}"
                )
        lines = encoder.encode_lines(
            RewardEvent(decision_id=reward.decision_id, occurred_at=reward.occurred_at or now, reward=reward.reward)
            for reward in sent
        )
        # A reward can be sent again, so it is refused rather than dropped.
        await room(len(lines))
        events.append(lines, len(sent))
        metrics.rewards += len(sent)
        return _json(RewardsResponse(len(sent)), 202)

    @app.get(settings.health_route, **openapi.health_route())
    async def health() -> Response:
        line_up = champion.line_up
        return _json(
            {
                "status": "loading" if line_up is None else "degraded" if champion.load_error else "ok",
                "policy_version": line_up.serving.card.version if line_up else None,
                "candidate": line_up.candidate.card.version if line_up and line_up.candidate else None,
                "candidate_share": line_up.candidate_share if line_up else 0.0,
                "shadow": line_up.shadow.card.version if line_up and line_up.shadow else None,
                "swapped_at": champion.swapped_at,
                "swaps": champion.swaps,
                "fallbacks": metrics.fallbacks,
                "load_error": champion.load_error,
                "events": events.counters(),
                "shadows": logs.shadows.counters(),
                "published": logs.publisher.status() if logs.publisher else None,
            },
            200 if line_up else 503,
        )

    @app.get("/metrics", **openapi.metrics_route())
    async def prometheus() -> Response:
        published = logs.publisher.status() if logs.publisher else None
        text = metrics_text.render(
            metrics, events.counters(), champion.swaps, champion.load_error is not None, published
        )
        return Response(text, media_type="text/plain; version=0.0.4")

    def document() -> dict[str, Any]:
        line_up = champion.line_up
        plain = get_openapi(title=app.title, version="1", routes=app.routes)
        return openapi.complete(plain, line_up.serving.card if line_up else None)

    app.openapi = document  # type: ignore[method-assign]
    return app


def _prediction(slate: list[Decision], catalogue: list[Movie]) -> Prediction:
    first = slate[0]
    movie = catalogue[first.action] if catalogue else None
    return Prediction(
        decision_id=first.decision_id,
        action=first.action,
        propensity=first.propensity,
        policy_version=first.policy_version,
        movie_id=movie.movie_id if movie else None,
        title=movie.title if movie else None,
        slate=[_slot(decision, catalogue) for decision in slate] if len(slate) > 1 else [],
        slate_propensity=math.prod(decision.propensity for decision in slate) if len(slate) > 1 else None,
    )


def _slot(decision: Decision, catalogue: list[Movie]) -> Slot:
    movie = catalogue[decision.action] if catalogue else None
    return Slot(
        decision_id=decision.decision_id,
        action=decision.action,
        propensity=decision.propensity,
        movie_id=movie.movie_id if movie else None,
        title=movie.title if movie else None,
    )


def _announce(settings: Settings, champion: Champion) -> None:
    assert champion.line_up is not None
    version = champion.line_up.serving.card.version
    sys.stderr.write(f"serving {version} on http://{settings.host}:{settings.port}\n")
    sys.stderr.flush()


async def _body(request: Request, settings: Settings) -> bytes:
    """The body, if it is of a bearable size and comes in bearable time."""
    body, size, more = b"", 0, True
    while more and size <= _READ_TO_THE_END * settings.max_body_bytes:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "body: broke off")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size <= settings.max_body_bytes:
            body = body + chunk if body else chunk
    if connections.overdue(request.scope):
        raise HTTPException(408, f"body: must arrive within {settings.body_seconds:g} seconds")
    if size > settings.max_body_bytes:
        raise HTTPException(413, f"body: must be at most {settings.max_body_bytes} bytes")
    return body


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except UNREADABLE as error:
        raise HTTPException(400, describe_error(error, body)) from None


def _json(value: object, status: int = 200, headers: Any = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError when the port is taken or the host is not ours."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        raise InputError(f"port: cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener


def http_server(app: Guard, metrics: Metrics, limits: connections.Limits) -> uvicorn.Server:
    """The HTTP server in front of `app`, and the process made ready to serve: to be called when all is imported."""
    # What is loaded by now stays, and what a request makes goes with it without a search for cycles.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=partial(connections.Connection, limits=limits, metrics=metrics),  # type: ignore[arg-type]  # called only
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            # Longer than Google's load balancers keep theirs (600 s), or they would send to one that is just closing.
            timeout_keep_alive=620,
            timeout_graceful_shutdown=20,  # seconds; a body may take half of it
        )
    )


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the requests in hand and seals the event log.

    Raises InputError for a policy that does not load, a port that is taken, an events folder that cannot be written to.
    """
    champion = Champion(settings.policy, settings.baseline)
    listener = listen(settings.host, settings.port)
    settings = msgspec.structs.replace(settings, port=listener.getsockname()[1])
    logs = Logs(settings)
    metrics = Metrics()
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = Guard(
        build_app(settings, champion, logs, metrics, failed),
        metrics,
        frozenset({settings.predict_route, "/rewards"}),
        settings.max_in_flight,
        settings.api_key,
    )
    server = http_server(app, metrics, connections.limit(settings.body_seconds, settings.max_connections))

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises the signal again once it has shut down: for these to handle, and the exit code to be 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        server.run(sockets=[listener])
    finally:
        logs.close()
        champion.close()
    if failures:
        raise failures[0]


def _log_as(given: argparse.Namespace) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter()
        if given.log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=given.log_level.upper(), handlers=[handler])


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        settings, given = parse(sys.argv[1:] if argv is None else argv, os.environ, PROG, __doc__)
        _log_as(given)
        serve(settings)
    except InputError as error:
        sys.stderr.write(f"{PROG}: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
