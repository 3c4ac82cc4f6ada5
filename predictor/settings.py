"""How to serve: the flags, the variables of Vertex AI, and what may be said with them."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NoReturn

import msgspec

from contracts.errors import InputError

_ROUTE = re.compile(r"/[A-Za-z0-9._~:/-]*")
_TAKEN = ("/rewards", "/metrics", "/docs", "/redoc", "/openapi.json")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How to serve; parsed once, by `parse`."""

    policy: str
    events: Path
    baseline: Path | None
    topic: str | None
    port: int
    host: str
    health_route: str
    predict_route: str
    segment_seconds: float
    poll_seconds: float
    max_body_bytes: int
    max_instances: int
    max_in_flight: int
    max_connections: int
    body_seconds: float
    buffer_bytes: int
    drain_seconds: float
    on_overload: Literal["drop", "block"]
    api_key: str | None


class FlagParser(argparse.ArgumentParser):
    """A command line on which a mistake is one line, as all wrong input is."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError in place of printing the usage."""
        raise InputError(message)


def parse(
    argv: list[str], environment: Mapping[str, str], prog: str, description: str | None
) -> tuple[Settings, argparse.Namespace]:
    """The settings, and how to log. Raises InputError, one line that names the flag."""
    given = _parser(environment, prog, description).parse_args(argv)
    for name in ("policy", "events"):
        if not getattr(given, name):
            raise InputError(f"--{name} is missing")
    given.port = _port(given.port)
    for name, value in vars(given).items():
        if isinstance(value, int | float) and name != "port" and not 0 < value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')}: must be above 0, got {value}")
    _check_routes(given.health_route, given.predict_route)
    given.api_key = _read_key(given.api_key_file) if given.api_key_file else None
    return Settings(**{name: getattr(given, name) for name in Settings.__struct_fields__}), given


def _parser(environment: Mapping[str, str], prog: str, description: str | None) -> argparse.ArgumentParser:
    parser = FlagParser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    policy, port = environment.get("AIP_STORAGE_URI"), environment.get("AIP_HTTP_PORT")
    health, predict = environment.get("AIP_HEALTH_ROUTE", "/health"), environment.get("AIP_PREDICT_ROUTE", "/predict")
    # Inside a container nobody could reach the loopback address.
    host = "0.0.0.0" if port else "127.0.0.1"
    add(
        "--policy",
        default=policy,
        help="a policy folder, or a policy store whose champion.json is followed; also gs://bucket/folder",
    )
    add("--events", type=Path, help="the folder of the event log; made if not there")
    add("--topic", help="publish the events to this topic, projects/PROJECT/topics/TOPIC, and empty the folder so")
    add("--baseline", type=Path, help="folder of the policy that serves when another fails (uniform over the arms)")
    add("--host", default=host, help="address to listen on (%(default)s)")
    add("--port", default=port or "8080", help="port to listen on; 0 takes a free one (%(default)s)")
    add("--health-route", default=health, help="%(default)s")
    add("--predict-route", default=predict, help="%(default)s")
    add("--segment-seconds", type=float, default=0.5, help="seal a segment of the event log this often (%(default)s)")
    add(
        "--poll-seconds",
        type=float,
        default=0.1,
        help="look for a new champion this often (%(default)s; 0.5 at least on gs://)",
    )
    add("--max-body-bytes", type=int, default=1_500_000, help="larger requests are refused (%(default)s)")
    add("--max-instances", type=int, default=1024, help="requests for more are refused (%(default)s)")
    add("--max-in-flight", type=int, default=128, help="more requests at a time are refused (%(default)s)")
    add("--max-connections", type=int, default=2048, help="more connections are refused (%(default)s)")
    add("--body-seconds", type=float, default=10.0, help="slower headers and bodies are refused (%(default)s)")
    add("--buffer-bytes", type=int, default=64 * 2**20, help="events that may wait for a slow disk (%(default)s)")
    add(
        "--on-overload",
        choices=("drop", "block"),
        default="drop",
        help="decisions that find the event log full are "
        "answered and not logged, but counted; or they wait, then are refused (%(default)s). Rewards are refused.",
    )
    add("--drain-seconds", type=float, default=10.0, help="time to publish what is left when stopping (%(default)s)")
    add("--api-key-file", type=Path, help="ask for the key in this file, in the header x-api-key")
    add(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="info shows each refused request (%(default)s)",
    )
    add("--log-format", choices=("text", "json"), default="json" if port else "text", help="%(default)s")
    return parser


def _port(text: str) -> int:
    try:
        port = int(text)
    except ValueError:
        raise InputError(f"--port: must be a number, got {text!r}") from None
    if not 0 <= port <= 65535:
        raise InputError(f"--port: must be 0 to 65535, got {port}")
    return port


def _check_routes(health: str, predict: str) -> None:
    for name, route in (("health", health), ("predict", predict)):
        # Also so that a route is no pattern: the limits and the key are for the very path.
        if not _ROUTE.fullmatch(route):
            raise InputError(f"--{name}-route: must be a path of letters, digits and ._~:/-, from /, got {route!r}")
        if route in _TAKEN:
            raise InputError(f"--{name}-route: must not be one of {', '.join(_TAKEN)}, got {route!r}")
    if health == predict:
        raise InputError(f"--predict-route: must differ from the health route, got {predict!r}")


def _read_key(path: Path) -> str:
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"--api-key-file: cannot read {path}") from None
    if not key:
        raise InputError(f"--api-key-file: {path} is empty")
    return key
