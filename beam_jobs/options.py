"""The command line of a Beam job: its own flags, then Beam's.

A job's flags are declared once, on the parser that its `parser()` returns; the flex template's metadata derives from
it.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import msgspec
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult

from contracts.errors import InputError

# In full: a bare DirectRunner first tries to download another runner, and so differs by machine.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
LOCAL_STREAMING_RUNNER = "apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner"


@dataclass(frozen=True)
class Kind:
    """What a flag takes: how it is read, and (for a template's parameter) a pattern that it must match."""

    parse: Callable[[str], Any]
    pattern: str | None = None

    def __call__(self, text: str) -> Any:
        """Reads `text`; raises argparse.ArgumentTypeError."""
        return self.parse(text)


TEXT = Kind(str)


class FlagParser(argparse.ArgumentParser):
    """A command line on which a mistake is one line, as all wrong input is."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError in place of printing the usage."""
        raise InputError(message)


class JobParser(FlagParser):
    """Flags spelt with hyphens (and, for Dataflow's template parameters, with underscores); one line for an error.

    `--help` begins with `description`, the job's docstring: what it does and the commands that run it.
    """

    def __init__(self, job: str, description: str) -> None:
        super().__init__(
            prog=f"python -m beam_jobs.{job}",
            description=description,
            epilog="Beam's own options may follow (--runner, --project, --region, --temp_location …).",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
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
        """Adds `--name`, which is on when given (or given as `--name=true`, as template parameters are)."""
        self.add_argument(
            f"--{name}", nargs="?", type=YES_OR_NO, const=True, default=False, metavar="true|false", help=help
        )

    def _hyphenated(self, argument: str) -> str:
        """One of our flags spelt with underscores, as template parameters are, the usual way."""
        name, equals, value = argument.partition("=")
        hyphenated = name.replace("_", "-")
        return hyphenated + equals + value if hyphenated in self._option_string_actions else argument

    def parse_with_beam(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, PipelineOptions]:
        """The job's arguments and Beam's. Raises InputError for a flag that neither knows."""
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
        FileSystems.set_options(pipeline_options)  # credentials for what is read before the pipeline runs
        return arguments, pipeline_options


def local_by_default(pipeline_options: PipelineOptions, runner: str = LOCAL_RUNNER) -> PipelineOptions:
    """The same options; without a runner, with `runner`."""
    standard = pipeline_options.view_as(StandardOptions)
    standard.runner = standard.runner or runner
    return pipeline_options


def is_dataflow(pipeline_options: PipelineOptions) -> bool:
    """Whether the job is submitted to Dataflow, where it runs on after we are gone."""
    return (pipeline_options.view_as(StandardOptions).runner or "").endswith("DataflowRunner")


def counters(result: PipelineResult, names: Iterable[str]) -> dict[str, int]:
    """What the counters of those names stand at, once a pipeline has ended; one that never counted at 0."""
    found = {counter.key.metric.name: counter.committed for counter in result.metrics().query()["counters"]}
    return {name: found.get(name, 0) for name in names}


def _moment(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise argparse.ArgumentTypeError(
            f"a moment with its time zone expected, as 2026-01-01T00:00:00Z, got {text!r:.60}"
        )
    try:
        return parsed.astimezone(UTC)
    except OverflowError:
        raise argparse.ArgumentTypeError(f"no such moment in UTC, got {text!r:.60}") from None


# A moment in ISO 8601 with its time zone, as UTC.
MOMENT = Kind(_moment, r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:\d{2})$")


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
        case msgspec.inspect.LiteralType():
            return TEXT
        case _:
            raise TypeError(f"no flag is declared for fields of {declared}")


def _yes_or_no(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false expected, got {text!r:.60}")
    return text == "true"


YES_OR_NO = Kind(_yes_or_no, "^(true|false)$")


def run_main(prog: str, run: Callable[[Sequence[str] | None], object], argv: Sequence[str] | None) -> int:
    """Runs a job; a wrong input becomes one line on stderr and 2, ctrl-C (how a job ends that goes on for ever) 130."""
    try:
        run(argv)
    except InputError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
