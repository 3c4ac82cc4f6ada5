"""Installs the emulators of Google Cloud's services, or runs them.

    python -m orchestration.emulators install           create `.emulators/`, the environment of the BigQuery and Cloud
                                                        Storage emulators, and check that the Pub/Sub emulator is there
    python -m orchestration.emulators up --root ROOT    run the Pub/Sub and BigQuery emulators, and the streaming ingest
                                                        job between them, until ctrl-C

`up` writes the addresses to `ROOT/emulators.json`, where `run-local --config emulators` finds them.

Exit codes: 0 done, 2 wrong input or an emulator that is not installed, 3 an emulator that does not start or dies.
"""

import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from beam_jobs.payloads import add_shape_flags, shape_from
from contracts.command_line import FlagParser, run_main
from orchestration.emulators import servers

PROGRAM = "orchestration.emulators"


def main(argv: Sequence[str] | None = None) -> int:
    """Installs the emulators, or runs them until SIGINT or SIGTERM; returns the exit code."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.command == "install":
        servers.install()
        servers.pubsub_program()
        return
    shape = shape_from(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    servers.up(arguments.root, shape, stop)


def _parser() -> FlagParser:
    parser = FlagParser(prog=f"python -m {PROGRAM}", documentation=__doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="command")
    install = "create the environment of the BigQuery and Cloud Storage emulators"
    commands.add_parser("install", help=install, description=install)
    up = "run the Pub/Sub and BigQuery emulators, and the streaming ingest job between them, until ctrl-C"
    run = commands.add_parser("up", help=up, description=up)
    run.add_argument(
        "--root",
        type=Path,
        default=Path("runs/emulators"),
        metavar="FOLDER",
        help="root folder of the pipelines that will use the emulators (default: %(default)s)",
    )
    add_shape_flags(run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
