"""The commands of a project folder besides `init`: `up`, and `status`."""

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.command_line import say
from orchestration.project.folder import ProjectFolder

if TYPE_CHECKING:
    from contracts.command_line import FlagParser

_UP = """Starts everything for a project folder on this machine, and keeps it running until Ctrl-C.

    up news

The predictor answers the app, the learner makes a better policy of each window of traffic, and the live page shows both. A
process that ends is started again. The traffic comes from your app; see docs/own-items.md.
"""


def add_commands(subparsers: "argparse._SubParsersAction[FlagParser]") -> None:
    """Adds `up`."""
    parser = subparsers.add_parser("up", description=_UP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a project folder")
    parser.set_defaults(command=_up)


def _up(arguments: argparse.Namespace) -> int:
    from orchestration.project.supervisor import Supervisor  # Beam

    try:
        Supervisor(ProjectFolder(arguments.folder)).run()
    except KeyboardInterrupt:
        say("Stopped; what was logged is kept. The same command goes on from there.")
    return 0


def show_status(path: Path) -> int:
    """Prints the state of a project folder, and returns the exit code."""
    from orchestration.project import status  # Beam

    told, code = status.lines(ProjectFolder(path), datetime.now(UTC))
    for text in told:
        say(text)
    return code
