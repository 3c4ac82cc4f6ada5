"""Shows what a loop does now, on a page that updates every second.

    python -m orchestration.page --root runs/latest

It reads what the loop's parts write down (event log, journal, audits, policies) and asks the predictor for its health. The
loop starts one for itself and prints its address. On another host than this machine, reading needs the key as well.

A change from the page (roll back, hold, release, be a viewer) needs the key at the end of the address. Set it with the
environment variable PAGE_KEY; otherwise it is drawn at random. ROOT/page.json holds address and key while the page runs.
"""

import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated

import msgspec
import uvicorn
from msgspec import Meta

from contracts.command_line import FlagParser, add_flags, from_flags, run_main
from contracts.errors import InputError
from orchestration.loop.run_folder import LivePage, RunFolder
from orchestration.page.access import Access
from orchestration.page.actions import Actions
from orchestration.page.monitor import Monitor
from orchestration.page.server import Feed, build_app

PROGRAM = "orchestration.page"
KEY_VARIABLE = "PAGE_KEY"
NICENESS = 5  # what serves and learns goes first


class PageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the page is served, and what it shows."""

    root: Annotated[str, Meta(description="folder of a loop's run, or the root of pipelines", min_length=1)] = (
        "runs/latest"
    )
    host: Annotated[str, Meta(description="address to listen on", min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(description="port to listen on; 0: a free one", ge=0, le=65535)] = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until SIGINT or SIGTERM; returns the exit code."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    parser = FlagParser(prog=f"python -m {PROGRAM}", documentation=__doc__)
    add_flags(parser, PageSettings)
    serve(from_flags(parser.parse_args(argv), PageSettings))


def serve(settings: PageSettings) -> None:
    """Serves the page until SIGINT or SIGTERM. Raises InputError for a root or an address that cannot be used."""
    root = Path(settings.root)
    if not root.is_dir():
        raise InputError(f"--root: a folder expected, got {root}")
    key = os.environ.get(KEY_VARIABLE) or secrets.token_urlsafe(16)
    folder = RunFolder(root)
    monitor = Monitor(root)
    listener = _listen(settings)
    app, feed = build_app(monitor, Actions(monitor.sources), Access(settings.host, key))
    page = LivePage(url=f"http://{_shown(settings.host)}:{listener.getsockname()[1]}/", key=key)
    config = uvicorn.Config(
        app, access_log=False, log_level="warning", server_header=False, timeout_graceful_shutdown=2, ws="none"
    )
    server = _Server(config, feed)

    def stop(*_: object) -> None:
        feed.ended = True
        server.should_exit = True

    # uvicorn handles signals while it serves, and raises them again once it has shut down. These handlers see those that
    # come before it serves, and make the exit code 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    os.nice(NICENESS)
    folder.write_page(page)
    sys.stdout.write(f"{page.address}\n")
    sys.stdout.flush()
    try:
        server.run(sockets=[listener])
    finally:
        folder.page.unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """Ends the streams when it is asked to stop: it would wait for them."""

    def __init__(self, config: uvicorn.Config, feed: Feed) -> None:
        super().__init__(config)
        self._feed = feed

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles SIGTERM and SIGINT."""
        self._feed.ended = True
        super().handle_exit(sig, frame)


def _listen(settings: PageSettings) -> socket.socket:
    where = f"{settings.host}:{settings.port}"
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise InputError(f"--port: cannot listen on {where}: {error.strerror or error}") from None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    sys.exit(main())
