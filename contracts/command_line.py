"""What every command line shares: the flag parser, flags derived from structs, the reading of times, and exit codes.

Exit codes: 0 done, 1 a bug (with its traceback), 2 wrong input, 3 a failed operation, 4 done but the records do not add
up, 5 held by the guard, 6 done but a window waited for its events longer than it may, 7 done but a version was rolled
back, 130 interrupted.
"""

import argparse
import errno
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from contracts.errors import InputError, OperationError

UNACCOUNTED = 4
HELD = 5
OVERDUE = 6
ROLLED_BACK = 7
INTERRUPTED = 130
_CLEAR = "\r\x1b[2K"  # to the beginning of the line, and erase it
_METAVARS = {
    "seconds": "SECONDS",
    "life": "WINDOWS|auto",
    "ratings": "SOURCE",
    "out": "FOLDER",
    "str": "NAME",
    "int": "N",
    "float": "X",
}

T = TypeVar("T", bound=msgspec.Struct)


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
    except Exception as error:
        if (line := _about_a_full_disk(error)) is None:
            raise
        return report_error(program, OperationError(line))


def _about_a_full_disk(error: BaseException) -> str | None:
    """The line that says which write found no space; None when the error has another cause.

    Beam and TensorFlow raise exceptions without the error number, so the text of the system decides.
    """
    for number in (errno.ENOSPC, errno.EDQUOT):
        for line in reversed(str(error).splitlines()):
            if os.strerror(number) in line:
                return f"cannot write: {line.strip()}"
    cause = error.__cause__ or error.__context__
    return _about_a_full_disk(cause) if cause is not None else None


def say(line: str) -> None:
    """Prints a line at once, also into a pipe; in a terminal it takes the place of a status."""
    sys.stdout.write(f"{_CLEAR if sys.stdout.isatty() else ''}{line}\n")
    sys.stdout.flush()


def show_status(text: str) -> None:
    """Writes what goes on into the last line of a terminal, in place of what stood there. A pipe or a file gets nothing."""
    if sys.stdout.isatty():
        sys.stdout.write(f"{_CLEAR}{text[: shutil.get_terminal_size().columns - 1]}")
        sys.stdout.flush()


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


def add_flags(parser: argparse.ArgumentParser, settings: type[msgspec.Struct], leave_out: Container[str] = ()) -> None:
    """Adds one flag per field of `settings`, spelt with hyphens, with its description and default as the help.

    Fields in `leave_out` get none: the program adds them itself, under the name of the field (`dest`).

    A field's type is `Annotated[…, Meta(description=…)]`; nested annotations may add bounds. `Meta(extra={"default": …})`
    is shown as the default instead of the field's own.
    """
    for field in msgspec.structs.fields(settings):
        if field.name in leave_out:
            continue
        kind, *metas = get_args(field.type)
        choices = get_args(kind) if get_origin(kind) is Literal else None
        description = next(meta.description for meta in reversed(metas) if meta.description)
        extra: dict[str, Any] = next((meta.extra for meta in metas if meta.extra), {})
        default = extra.get("default", field.default)
        required = default is msgspec.NODEFAULT
        parser.add_argument(
            flag_name(field.name),
            dest=field.name,
            metavar=None if choices else _METAVARS.get(field.name.split("_")[-1]) or _METAVARS[kind.__name__],
            choices=choices,
            required=required,
            default=argparse.SUPPRESS,  # so that a flag that was given differs from one that was not
            help=description.replace("%", "%%") + ("" if required else f" (default: {default})"),
        )


def owned(owner: type[msgspec.Struct], field: str) -> Meta:
    """The bounds and the description of that field of `owner`, for a struct that passes its value on."""
    kinds = {one.name: one.type for one in msgspec.structs.fields(owner)}
    meta: Meta = get_args(kinds[field])[1]
    return meta


def flag_name(field: str) -> str:
    """The flag of a field: `--reward-window-seconds` of `reward_window_seconds`."""
    return f"--{field.replace('_', '-')}"


def from_flags(arguments: argparse.Namespace, kind: type[T], otherwise: T | None = None) -> T:
    """The settings in parsed flags; a flag that was not given is as in `otherwise`, or as declared.

    Raises InputError that names the flag, the fact and the value.
    """
    given = {name: value for name, value in vars(arguments).items() if name in kind.__struct_fields__}
    return build(kind, (msgspec.structs.asdict(otherwise) if otherwise else {}) | given, flag_name)


def build(kind: type[T], values: Mapping[str, Any], name: Callable[[str], str] = str) -> T:
    """A struct made of values, which may be text; bounds are those declared on the struct, and numbers must be finite.

    Args:
      kind: the struct; its fields' annotations hold the bounds.
      values: by field.
      name: how an error calls a field, such as `flag_name`.

    Raises InputError `<name>: <fact>, got <value>`.
    """
    try:
        settings = msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        fact, _, path = str(error).partition(" - at ")
        field = re.sub(r"[^a-z0-9_].*", "", path.strip("`").removeprefix("$."))
        fact = fact.removesuffix(", got `str`")  # the type of a flag's text is no news
        where = f"{name(field)}: " if field else ""
        raise InputError(f"{where}{fact}" + (f", got {values[field]!r}" if field in values else "")) from None
    for field, value in msgspec.structs.asdict(settings).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name(field)}: must be finite, got {values[field]!r}")
    return settings
