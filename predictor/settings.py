"""The server's flags and the variables of Vertex AI, parsed and checked once."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from contracts.command_line import FlagParser, add_flags, from_flags
from contracts.errors import InputError
from predictor.keys import Keys
from predictor.live import LiveServing
from predictor.publisher import DrainSeconds

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?")
_ROUTE = re.compile(r"/[A-Za-z0-9._~:/-]*")
_TAKEN = ("/rewards", "/activate", "/cancel", "/metrics", "/docs", "/openapi.json")


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits, intervals and the reaction to overload; each field is a flag. Their bounds are declared here alone."""

    segment_seconds: Annotated[float, Meta(gt=0, description="seal a segment of the event log this often")] = 0.5
    poll_seconds: Annotated[
        float, Meta(gt=0, description="look for a new champion this often; at least 0.5 on gs://")
    ] = 0.1
    max_body_bytes: Annotated[int, Meta(gt=0, description="larger requests are refused")] = 1_500_000
    max_instances: Annotated[int, Meta(gt=0, description="most decisions per request: instances times slate_size")] = (
        1024
    )
    max_in_flight: Annotated[int, Meta(gt=0, description="most requests at a time; more are refused")] = 128
    max_connections: Annotated[int, Meta(gt=0, description="most open connections; more are refused")] = 2048
    body_seconds: Annotated[float, Meta(gt=0, description="slower headers and bodies are refused")] = 10.0
    buffer_bytes: Annotated[int, Meta(gt=0, description="most bytes of events in memory, waiting for the disk")] = (
        64 * 2**20
    )
    on_overload: Annotated[
        Literal["drop", "block"],
        Meta(
            description="when the event log is full: drop answers decisions, counts them and does not log them; block"
            " makes requests wait up to --body-seconds and then refuses them. Rewards are refused either way"
        ),
    ] = "drop"
    drain_seconds: DrainSeconds = 10.0
    observation_lengths: Annotated[
        Literal["exact", "any"],
        Meta(
            description="exact refuses observations of another length than the policy's; any takes them while a context"
            " changes: the policy reads the first numbers, 0 where there are none, and the log has what was sent"
        ),
    ] = "exact"


class LoggingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the server writes its own log to stderr."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="info lists each refused request")
    ] = "warning"
    log_format: Annotated[
        Literal["text", "json"],
        Meta(description="json suits Cloud Logging", extra={"default": "text; json with AIP_HTTP_PORT"}),
    ] = "text"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What to serve, and where."""

    policy: str
    live: str | None
    events: Path
    baseline: Path | None
    topic: str | None
    port: int
    host: str
    health_route: str
    predict_route: str
    operations_port: int | None
    predict_keys: Keys | None
    rewards_keys: Keys | None
    operations_keys: Keys | None
    limits: ServerLimits
    live_serving: LiveServing
    personalizer: Literal["off", "online", "apprentice"] = "off"
    cors_origins: tuple[str, ...] = ()


def parse(
    argv: Sequence[str] | None, environment: Mapping[str, str], documentation: str | None
) -> tuple[Settings, LoggingSettings]:
    """The settings in the flags `argv` and in Vertex AI's variables. Raises InputError that names the flag."""
    given = _parser(environment, documentation).parse_args(argv)
    for name in ("policy", "events"):
        if not getattr(given, name):
            raise InputError(f"--{name}: is missing")
    _check_routes(given.health_route, given.predict_route)
    port, operations_port = _port("--port", given.port), None
    if given.operations_port is not None:
        operations_port = _port("--operations-port", given.operations_port)
        if operations_port == port != 0:
            raise InputError(f"--operations-port: must differ from the port, got {port}")
    predict_keys, rewards_keys, operations_keys = (
        Keys(flag, path) if path is not None else None
        for flag, path in (
            ("--api-key-file", given.api_key_file),
            ("--rewards-key-file", given.rewards_key_file),
            ("--operations-key-file", given.operations_key_file),
        )
    )
    settings = Settings(
        policy=given.policy,
        live=given.live,
        events=given.events,
        baseline=given.baseline,
        topic=given.topic,
        port=port,
        host=given.host,
        health_route=given.health_route,
        predict_route=given.predict_route,
        operations_port=operations_port,
        predict_keys=predict_keys,
        rewards_keys=rewards_keys or predict_keys,
        operations_keys=operations_keys,
        limits=from_flags(given, ServerLimits),
        live_serving=from_flags(given, LiveServing),
        personalizer=given.personalizer,
        cors_origins=tuple(map(_origin, given.cors_origin or [])),
    )
    in_container = LoggingSettings(log_format="json" if environment.get("AIP_HTTP_PORT") else "text")
    return settings, from_flags(given, LoggingSettings, in_container)


def _parser(environment: Mapping[str, str], documentation: str | None) -> argparse.ArgumentParser:
    parser = FlagParser(prog="python -m predictor.app", documentation=documentation)
    add = parser.add_argument
    policy, port = environment.get("AIP_STORAGE_URI"), environment.get("AIP_HTTP_PORT")
    health, predict = environment.get("AIP_HEALTH_ROUTE", "/health"), environment.get("AIP_PREDICT_ROUTE", "/predict")
    # A container's loopback address cannot be reached from outside.
    host = "0.0.0.0" if port else "127.0.0.1"
    add(
        "--policy",
        default=policy,
        help="a policy folder, or a policy store whose champion.json is followed; also gs://bucket/folder",
    )
    add(
        "--live",
        help="folder of live learning, whose versions of the policy decide in its place; also gs://bucket/folder",
    )
    add("--events", type=Path, help="the folder of the event log, created if missing")
    add("--topic", help="publish the events to projects/PROJECT/topics/TOPIC and remove them from the folder")
    add("--baseline", type=Path, help="folder of the policy that serves when another fails (uniform over the arms)")
    add("--host", default=host, help="address to listen on (default: %(default)s)")
    add("--port", default=port or "8080", help="port to listen on; 0 takes a free one (default: %(default)s)")
    add("--health-route", default=health, help="(default: %(default)s)")
    add("--predict-route", default=predict, help="(default: %(default)s)")
    add(
        "--operations-port",
        help="answer /metrics and /docs on this port alone, and health on both; connections there are not counted among"
        " the others; 0 takes a free one (default: all on --port)",
    )
    _add_client_flags(parser)
    add_flags(parser, ServerLimits)
    add_flags(parser, LiveServing)
    add_flags(parser, LoggingSettings)
    return parser


def _add_client_flags(parser: argparse.ArgumentParser) -> None:
    """Who may call which routes, and in whose form."""
    add = parser.add_argument
    add(
        "--api-key-file",
        type=Path,
        help="predictions and rewards require a key in x-api-key: a line of this file, which may change at any time",
    )
    add(
        "--rewards-key-file",
        type=Path,
        help="rewards, activations and cancellations require a key of this file instead",
    )
    add(
        "--operations-key-file",
        type=Path,
        help="/metrics and /docs require a key of this file; without one, health answers its status alone",
    )
    add(
        "--personalizer",
        choices=["off", "online", "apprentice"],
        default="off",
        help="also answer Azure Personalizer's routes below /personalizer; online: the policy chooses; apprentice: the first"
        " action of each request is answered, and learned from (default: %(default)s)",
    )
    add(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="let browsers send rewards, activations and cancellations from pages of this origin, as https://shop.example;"
        " may be given several times (default: none)",
    )


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise InputError(
            f"--cors-origin: must be http(s)://host or http(s)://host:port, in lower case, got {text!r:.100}"
        )
    return text


def _port(flag: str, text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        raise InputError(f"{flag}: must be a number, got {text!r}") from None
    if not 0 <= port <= 65535:
        raise InputError(f"{flag}: must be 0 to 65535, got {port}")
    return port


def _check_routes(health: str, predict: str) -> None:
    for name, route in (("health", health), ("predict", predict)):
        # FastAPI would read {…} as a pattern, but the limits and the key apply to the exact path.
        if not _ROUTE.fullmatch(route):
            raise InputError(f"--{name}-route: must be a path of letters, digits and ._~:/-, from /, got {route!r}")
        if route in _TAKEN:
            raise InputError(f"--{name}-route: must not be one of {', '.join(_TAKEN)}, got {route!r}")
    if health == predict:
        raise InputError(f"--predict-route: must differ from the health route, got {predict!r}")
