"""The command line of a Beam job: its own flags, then Beam's.

A job declares its flags once, on the parser that its `parser()` returns. The flex template's metadata derives from
that parser.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult

from contracts.command_line import FlagParser, time_flag
from contracts.errors import InputError, OperationError

# Full names: a bare DirectRunner first tries to download another runner, so it differs between machines.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
LOCAL_STREAMING_RUNNER = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"


@dataclass(frozen=True)
class Kind:
    """The values of a flag: how its text is read, and the pattern that a template's parameter must match."""

    parse: Callable[[str], Any]
    pattern: str | None = None

    def __call__(self, text: str) -> Any:
        """Reads `text`; raises argparse.ArgumentTypeError."""
        return self.parse(text)


TEXT = Kind(str)


class JobParser(FlagParser):
    """A job's flags, spelt with hyphens; it accepts underscores too, as Dataflow's template parameters have them.

    `--help` shows the job's docstring: what it does, and the commands that run it.
    """

    def __init__(self, job: str, documentation: str) -> None:
        super().__init__(prog=f"python -m beam_jobs.{job}", documentation=documentation)
        self.epilog = (
            f"{self.epilog}\nBeam's own options may follow (--runner, --project, --region, --temp_location …)."
        )

    def flag(self, name: str, kind: Kind, help: str, **settings: Any) -> None:
        """Adds `--name`. A flag without a default is required."""
        if "default" not in settings:
            settings["required"] = True
        elif settings["default"] is not None:
            help = f"{help} (default: {settings['default']})"
        settings.setdefault("metavar", None if "choices" in settings else name.split("-")[-1].upper())
        self.add_argument(f"--{name}", type=kind, help=help.replace("%", "%%"), **settings)

    def settings(self, struct: type[msgspec.Struct], **defaults: Any) -> None:
        """Adds one flag for each field of `struct`, with its description and bounds.

        `defaults` of the job, by field, replace those of the struct.
        """
        for field in msgspec.inspect.type_info(struct).fields:  # type: ignore[attr-defined]
            annotated = field.type
            choices = (
                {"choices": annotated.type.values} if isinstance(annotated.type, msgspec.inspect.LiteralType) else {}
            )
            self.flag(
                field.name.replace("_", "-"),
                kind_of(annotated.type),
                annotated.extra_json_schema["description"],
                default=defaults.get(field.name, field.default),
                **choices,
            )

    def switch(self, name: str, help: str) -> None:
        """Adds `--name`, which is on when it is given alone or as `--name=true`, as template parameters are."""
        self.add_argument(
            f"--{name}", nargs="?", type=YES_OR_NO, const=True, default=False, metavar="true|false", help=help
        )

    def _hyphenated(self, argument: str) -> str:
        """`argument` with hyphens, when it is one of the job's flags spelt with underscores."""
        name, equals, value = argument.partition("=")
        hyphenated = name.replace("_", "-")
        return hyphenated + equals + value if hyphenated in self._option_string_actions else argument

    def parse_with_beam(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, PipelineOptions]:
        """The job's arguments, and Beam's options. Raises InputError for a flag that neither has."""
        arguments, rest = self.parse_known_args(
            [self._hyphenated(argument) for argument in (sys.argv[1:] if argv is None else argv)]
        )
        beam_flags = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
        for options in PipelineOptions.__subclasses__():
            options._add_argparse_args(beam_flags)
        try:
            _, unknown = beam_flags.parse_known_args(rest)
        except argparse.ArgumentError as error:
            raise InputError(str(error)) from None
        if unknown:
            raise InputError(f"unrecognized argument: {unknown[0]}")
        pipeline_options = PipelineOptions(rest)
        FileSystems.set_options(pipeline_options)  # credentials for files that are read before the pipeline runs
        return arguments, pipeline_options


def local_by_default(pipeline_options: PipelineOptions, runner: str = LOCAL_RUNNER) -> PipelineOptions:
    """The same options, with `runner` when they name none."""
    standard = pipeline_options.view_as(StandardOptions)
    standard.runner = standard.runner or runner
    return pipeline_options


def is_dataflow(pipeline_options: PipelineOptions) -> bool:
    """Whether the job is submitted to Dataflow, where it runs after this process has ended."""
    return (pipeline_options.view_as(StandardOptions).runner or "").endswith("DataflowRunner")


@contextmanager
def job_errors() -> Iterator[None]:
    """Raises InputError and OperationError of a pipeline's steps without the step's name, which Beam's runner appends."""
    try:
        yield
    except (InputError, OperationError) as error:
        raise type(error)(str(error).partition(" [while running ")[0]) from None


def counters(result: PipelineResult, names: Iterable[str]) -> dict[str, int]:
    """The values of the counters with those names once a pipeline has ended; 0 for one that never counted."""
    found = {counter.key.metric.name: counter.committed for counter in result.metrics().query()["counters"]}
    return {name: found.get(name, 0) for name in names}


# An ISO 8601 time with its time zone, read as UTC.
MOMENT = Kind(time_flag, r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:\d{2})$")


def whole(low: int) -> Kind:
    """Whole numbers from `low`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"a whole number from {low} expected, got {text!r:.60}")
        return value

    return Kind(parse, r"^\d+$" if low == 0 else r"^0*[1-9]\d*$")


def number(low: float, high: float = float("inf"), *, above: bool = False, below: bool = False) -> Kind:
    """Finite numbers in [low, high]; without `low` itself with `above`, without `high` itself with `below`."""
    limits = f"above {low:g}" if above else f"from {low:g}"
    if high < float("inf"):
        limits += f" to below {high:g}" if below else f" to {high:g}"
    elif low == float("-inf"):
        limits = "that is finite"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        inside = low <= value <= high and abs(value) < float("inf")
        if not inside or (above and value == low) or (below and value == high):
            raise argparse.ArgumentTypeError(f"a number {limits} expected, got {text!r:.60}")
        return value

    sign = "-?" if low < 0 else ""
    return Kind(parse, rf"^{sign}(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")


def kind_of(declared: msgspec.inspect.Type) -> Kind:
    """What the flag of a struct's field takes, by the field's type and its bounds."""
    match declared:
        case msgspec.inspect.FloatType(gt=gt, ge=ge, lt=lt, le=le):
            low = next((bound for bound in (gt, ge) if bound is not None), float("-inf"))
            high = next((bound for bound in (lt, le) if bound is not None), float("inf"))
            return number(low, high, above=gt is not None, below=lt is not None)
        case msgspec.inspect.IntType(ge=low) if low is not None:
            return whole(low)
        case msgspec.inspect.LiteralType():
            return TEXT
        case _:
            raise TypeError(f"no flag is declared for fields of {declared}")


def _yes_or_no(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false expected, got {text!r:.60}")
    return text == "true"


YES_OR_NO = Kind(_yes_or_no, "^(true|false)$")
