import argparse
from datetime import UTC, datetime
from typing import Annotated

import apache_beam as beam
import msgspec
import pytest
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions
from msgspec import Meta

from beam_jobs import options
from contracts.command_line import from_flags
from contracts.errors import InputError, OperationError
from contracts.windows import WindowSettings


def parser() -> options.JobParser:
    flags = options.JobParser("some_job", "Does a thing.\n\n    python -m beam_jobs.some_job")
    flags.flag("some-name", options.TEXT, "a name", default="x")
    flags.flag("start", options.MOMENT, "a time", default=None)
    flags.switch("follow", "go on")
    return flags


@pytest.mark.parametrize("flag", ["--some-name=y", "--some_name=y"])
def test_a_flag_has_hyphens_or_underscores(flag: str) -> None:
    arguments, _ = parser().parse_with_beam([flag])
    assert arguments.some_name == "y"


@pytest.mark.parametrize(("flags", "on"), [([], False), (["--follow"], True), (["--follow=false"], False)])
def test_a_switch_is_given_alone_or_with_its_value(flags: list[str], on: bool) -> None:
    assert parser().parse_with_beam(flags)[0].follow is on


def test_what_is_left_belongs_to_beam() -> None:
    _, beam_options = parser().parse_with_beam(["--project=my-project", "--temp_location=gs://b/t"])
    assert beam_options.view_as(GoogleCloudOptions).project == "my-project"
    for flag in ("--no-such-flag", "--some-nam=y", "--projec=x"):
        with pytest.raises(InputError, match="unrecognized argument"):
            parser().parse_with_beam([flag])


def test_a_time_is_read_as_utc() -> None:
    assert parser().parse_args(["--start", "2026-01-01T02:00:00+02:00"]).start == datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(InputError, match=r"argument --start: .*a time with its time zone"):
        parser().parse_args(["--start", "2026-01-01"])


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (options.number(0), ["0", "1e9", ".5"], ["-1", "nan", "inf", "x"]),
        (options.number(0, above=True), ["0.1"], ["0"]),
        (options.number(0, 1, below=True), ["0", "0.99"], ["1", "2"]),
        (options.number(-1, 1), ["-1", "1"], ["-1.1", "1.1"]),
        (options.whole(1), ["1", "007"], ["0", "1.5", "x"]),
        (options.whole(0), ["0"], ["-1"]),
    ],
)
def test_numbers_have_limits(kind: options.Kind, good: list[str], bad: list[str]) -> None:
    assert [kind(text) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="expected, got"):
            kind(text)


def test_the_flags_of_a_struct_have_its_bounds_and_defaults() -> None:
    flags = options.JobParser("some_job", "Does a thing.")
    flags.settings(WindowSettings, settle_seconds=9.0)
    assert from_flags(flags.parse_args([]), WindowSettings) == WindowSettings(settle_seconds=9.0)
    given = ["--holdback-share", "0.5", "--missing-reward", "drop"]
    assert from_flags(flags.parse_args(given), WindowSettings) == WindowSettings(
        settle_seconds=9.0, holdback_share=0.5, missing_reward="drop"
    )
    for name, text in (("holdback-share", "1"), ("reward-window-seconds", "0"), ("missing-reward", "x")):
        with pytest.raises(InputError, match=f"argument --{name}: "):
            flags.parse_args([f"--{name}", text])


def test_a_field_without_a_kind_is_a_bug() -> None:
    class Odd(msgspec.Struct):
        things: Annotated[list[int], Meta(description="things")] = []

    with pytest.raises(TypeError, match="no flag is declared for fields of"):
        options.JobParser("some_job", "Does a thing.").settings(Odd)


def test_the_runner_is_the_local_one_unless_another_is_named() -> None:
    local = options.local_by_default(PipelineOptions([]))
    assert local.view_as(StandardOptions).runner == options.LOCAL_RUNNER
    assert not options.is_dataflow(local)
    assert options.is_dataflow(options.local_by_default(PipelineOptions(["--runner=DataflowRunner"])))


def fail(number: int) -> int:
    raise {1: InputError("a: wanted, got b"), 2: OperationError("c: no answer"), 3: ValueError("a bug")}[number]


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (1, InputError, "a: wanted, got b"),
        (2, OperationError, "c: no answer"),
        (3, ValueError, "a bug [while running 'Map(fail)']"),
    ],
)
def test_an_error_of_a_step_keeps_its_kind(number: int, kind: type[Exception], message: str) -> None:
    beam_options = options.local_by_default(PipelineOptions([]))
    with pytest.raises(kind) as caught, options.job_errors(), beam.Pipeline(options=beam_options) as pipeline:
        pipeline | beam.Create([number]) | beam.Map(fail)
    assert (type(caught.value), str(caught.value)) == (kind, message)


def count(number: int) -> int:
    Metrics.counter("test", "seen").inc(number)
    return number


def test_counters_that_never_counted_are_0() -> None:
    pipeline = beam.Pipeline(options=options.local_by_default(PipelineOptions([])))
    pipeline | beam.Create([1, 2]) | beam.Map(count)
    result = pipeline.run()
    result.wait_until_finish()
    assert options.counters(result, ["seen", "never"]) == {"seen": 3, "never": 0}
