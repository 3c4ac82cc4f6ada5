"""The server of the Vertex AI prediction contract.

    python -m predictor.app --policy runs/latest/policies --events runs/latest/events --port 8080

`POST /predict` takes `{"instances": [{"observation": [...], "user_id": "...", "candidates": [...]}]}` and answers
`{"predictions": [{"decision_id", "action", "propensity", "policy_version", "item_id", "title"}]}`; each prediction is
a logged decision. `"parameters": {"slate_size": 3}` asks for a slate. `POST /rewards` takes the rewards of decisions.
`GET /health` answers 503 until a policy serves. Prometheus reads `/metrics`; `/docs` documents the requests.

With `--live` the live versions of the policy, which learn from windows that are still open, decide in its place.

With `--topic` a separate process publishes the events to Pub/Sub. During an outage of Pub/Sub they wait on the disk.

On Vertex AI the port, the routes and the policy come from `AIP_HTTP_PORT`, `AIP_HEALTH_ROUTE`, `AIP_PREDICT_ROUTE` and
`AIP_STORAGE_URI`; a flag overrides its variable.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline

from contracts.command_line import run_main
from contracts.errors import InputError
from predictor import connections, openapi, personalizer, storage
from predictor.batcher import Batcher
from predictor.follower import PolicyFollower
from predictor.guard import Guard, JsonFormatter, Rules
from predictor.live import LiveVersions
from predictor.logs import Logs
from predictor.metrics import Metrics
from predictor.personalizer_routes import PersonalizerRoutes
from predictor.routes import DOCS_ROUTES, FEEDBACK_ROUTES, METRICS_ROUTE, Routes, State
from predictor.settings import Settings, parse


def build_app(state: State, fail: Callable[[BaseException], None]) -> FastAPI:
    """The application: its routes, and the follower beside them. Calls `fail` with the error if no policy can serve."""

    async def serve_policy() -> None:
        await asyncio.to_thread(state.follower.start)
        _announce(state.settings, state.follower)
        await state.follower.follow(state.settings.limits.poll_seconds)

    def report(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            fail(error)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        serving_task = asyncio.create_task(serve_policy())
        serving_task.add_done_callback(report)
        yield
        serving_task.cancel()
        await asyncio.gather(serving_task, return_exceptions=True)

    def document() -> dict[str, Any]:
        line_up = state.follower.line_up
        plain = get_openapi(title=app.title, version="1", routes=app.routes)
        return openapi.complete(plain, line_up.serving.card if line_up else None)

    # The scripts of /docs come with the package: a page of this server loads none from elsewhere.
    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/static",
        title="Recommendation policy",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    routes = Routes(state)
    routes.add_to(app)
    if (behaviour := state.settings.personalizer) != "off":
        PersonalizerRoutes(routes, behaviour).add_to(app)
    app.openapi = document  # type: ignore[method-assign]
    return app


def _announce(settings: Settings, follower: PolicyFollower) -> None:
    assert follower.line_up is not None
    version = follower.line_up.serving.card.version
    operations = f", operations on port {settings.operations_port}" if settings.operations_port is not None else ""
    sys.stderr.write(f"serving {version} on http://{settings.host}:{settings.port}{operations}\n")
    sys.stderr.flush()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError when the port is taken or the host is not this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        raise InputError(f"port: cannot listen on {host}:{port}: {error.strerror or error}") from None
    return listener


def rules(settings: Settings) -> Rules:
    """Which requests are let through."""
    operations = frozenset({METRICS_ROUTE, *DOCS_ROUTES})
    keys = dict.fromkeys(operations, settings.operations_keys)
    keys |= {settings.predict_route: settings.predict_keys, **dict.fromkeys(FEEDBACK_ROUTES, settings.rewards_keys)}
    work: set[str] = {settings.predict_route, *FEEDBACK_ROUTES}
    key_headers: dict[str, bytes] = {}
    if settings.personalizer != "off":
        keys |= {personalizer.RANK_ROUTE: settings.predict_keys, personalizer.EVENTS_ROUTE: settings.rewards_keys}
        key_headers = dict.fromkeys((personalizer.RANK_ROUTE, personalizer.EVENTS_ROUTE), personalizer.KEY_HEADER)
        work |= key_headers.keys()
    return Rules(
        work=frozenset(work),
        max_in_flight=settings.limits.max_in_flight,
        keys={route: known for route, known in keys.items() if known is not None},
        operations=operations,
        operations_port=settings.operations_port,
        origins=frozenset(origin.encode() for origin in settings.cors_origins),
        from_pages=frozenset(FEEDBACK_ROUTES),
        route_of=personalizer.counted_as if settings.personalizer != "off" else str,
        key_headers=key_headers,
    )


def http_server(app: Guard, metrics: Metrics, limits: connections.Limits) -> uvicorn.Server:
    """The HTTP server in front of `app`. Call it once all modules are imported, as it tunes the garbage collector."""
    # What is loaded by now stays until the end, and requests leave no reference cycles: rare collections are enough.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=partial(connections.Connection, ports=connections.Ports(limits), metrics=metrics),  # type: ignore[arg-type]  # called only
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            # Google's load balancers keep connections for 600 s. If the server closed first, requests could be lost.
            timeout_keep_alive=620,
            timeout_graceful_shutdown=20,  # seconds; the default --body-seconds is half of it
        )
    )


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the requests in hand and seals the event log.

    Raises:
      InputError: the policy does not load, the port is taken, or the events folder cannot be written to.
      OperationError: the policy store cannot be reached, or the disk fails.
    """
    live = LiveVersions(storage.place(settings.live), settings.live_serving) if settings.live else None
    follower = PolicyFollower(settings.policy, settings.baseline, live)
    listeners = [listen(settings.host, settings.port)]
    settings = msgspec.structs.replace(settings, port=listeners[0].getsockname()[1])
    if settings.operations_port is not None:
        listeners.append(listen(settings.host, settings.operations_port))
        settings = msgspec.structs.replace(settings, operations_port=listeners[1].getsockname()[1])
    logs, metrics, limits = Logs(settings), Metrics(), settings.limits
    failures: list[BaseException] = []

    def fail(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    state = State(
        settings,
        follower,
        logs,
        metrics,
        Batcher(follower, logs.events, logs.shadows, metrics, settings.limits.observation_lengths == "any"),
    )
    app = Guard(build_app(state, fail), metrics, rules(settings))
    allowed = connections.limit(limits.body_seconds, limits.max_connections, settings.operations_port)
    server = http_server(app, metrics, allowed)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn raises the signal again once it has shut down; with these handlers the exit code is 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        server.run(sockets=listeners)
    finally:
        logs.close()
        follower.close()
    if failures:
        raise failures[0]


def command(argv: Sequence[str] | None) -> None:
    """Serves with these flags."""
    settings, logging_settings = parse(argv, os.environ, __doc__)
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter()
        if logging_settings.log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging_settings.log_level.upper(), handlers=[handler])
    serve(settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_main("predictor.app", command, argv)


if __name__ == "__main__":
    sys.exit(main())
