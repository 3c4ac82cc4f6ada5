"""What every command line shares: the flag parser, the reading of times, and how a command ends.

Exit codes: 0 done, 1 a bug (with its traceback), 2 wrong input, 3 a failed operation, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from contracts.errors import InputError, OperationError

INTERRUPTED = 130


class FlagParser(argparse.ArgumentParser):
    """A command line that refuses abbreviated flags and reports a mistake as one line.

    Given `documentation` (a module's docstring), its first paragraph becomes the description above the flags and the
    rest the text below them.
    """

    def __init__(self, *, documentation: str | None = None, **settings: Any) -> None:
        if documentation is not None:
            summary, _, rest = documentation.partition("\n\n")
            settings |= {"description": summary, "epilog": rest}
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raises InputError instead of printing the usage."""
        raise InputError(f"{message} (--help lists the flags)")


def run_main(program: str, command: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None) -> int:
    """Runs `command(argv)` and returns the exit code of the process.

    Args:
      program: the module's name, as in `python -m <program>`; it begins the line about an error.
      command: returns its own exit code, or None for 0.
      argv: the flags; None for those of the process.
    """
    try:
        return command(argv) or 0
    except (InputError, OperationError) as error:
        return report_error(program, error)
    except KeyboardInterrupt:
        return INTERRUPTED


def report_error(program: str, error: InputError | OperationError) -> int:
    """Prints `error` as one line on stderr and returns its exit code."""
    kind = "error" if isinstance(error, InputError) else "failed"
    sys.stderr.write(f"{program}: {kind}: {error}\n")
    return error.exit_code


def parse_time(text: str, where: str) -> datetime:
    """An ISO 8601 time with a time zone, in UTC. Raises InputError that begins with `where`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InputError(f"{where}: a time with its time zone, such as 2026-01-01T00:00:00Z, got {text!r:.60}")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise InputError(f"{where}: a time that exists in UTC, got {text!r:.60}") from None


def time_flag(text: str) -> datetime:
    """`parse_time` as the `type` of a flag. Raises argparse.ArgumentTypeError."""
    try:
        return parse_time(text, "expected")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
