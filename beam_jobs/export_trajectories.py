"""Turns one training window of the warehouse into trajectory TFRecords and their manifest.

    python -m beam_jobs.export_trajectories --warehouse runs/demo/warehouse --windows runs/demo/windows \\
        --start 2026-01-01T00:00:00Z --end 2026-01-01T00:00:05Z --reward-window-seconds 2
    python -m beam_jobs.export_trajectories --warehouse bigquery:P.bandit --windows gs://B/windows \\
        --start 2026-01-01T00:00:00Z --follow --window-seconds 300

With `--follow` the job exports one window after the other, each as soon as it has closed: with `--watermark` once the log
is complete up to its closing time, else by the clock. It never exports a window that waits for its events; after
`--watermark-limit-seconds` it fails.

The job joins each decision with its reward in time (several become one by `--reward-rule`), splits the records by a hash
of `decision_id` (a slate by its `slate_id`), and writes files of bounded size. It writes the manifest last. The files depend only on the window's rows
and the settings: exporting the window again elsewhere writes the same bytes.

All records of a window have observations of one length: `--observation-dim`, or the most frequent length (of equally
frequent ones the largest). Decisions with another length are set aside: the manifest counts them, and the log names the
lengths.

A window is exported once. The job leaves a window that has a manifest as it is, and refuses to export it with other
settings. It replaces the files that a killed export left. Rows that come later still are counted in the manifest of the
next window. `--revise` exports a window again, as a revision with them (`contracts.windows`).
"""

import logging
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from beam_jobs import closing, options, revisions, watermark_sources
from beam_jobs.files import alone, clear, read
from beam_jobs.places import check_folder
from beam_jobs.reward_join import JoinRewards
from beam_jobs.tables import choose_dim
from beam_jobs.warehouses import Warehouse, open_warehouse
from beam_jobs.window_files import FIRST_EXPORT, WindowOrigin, WindowShape, WriteWindow
from beam_jobs.window_rows import ReadWindowRows, row_ranges
from contracts import command_line
from contracts.errors import InputError
from contracts.watermarks import WaitSettings
from contracts.windows import MANIFEST_NAME, Manifest, TrainingWindow, WindowSettings, decode_manifest, revision_folder

JOB = "export_trajectories"
MAX_RECORDS_PER_FILE = 100_000
log = logging.getLogger(__name__)


def build_pipeline(
    pipeline: beam.Pipeline,
    source: Warehouse,
    window_folder: str,
    window: TrainingWindow,
    settings: WindowSettings,
    shape: WindowShape,
    origin: WindowOrigin = FIRST_EXPORT,
) -> beam.PCollection[Manifest]:
    """The job for one window. Returns the manifest, once it is written."""
    return (
        pipeline
        | "ReadWindowRows" >> ReadWindowRows(source, row_ranges(window, settings), shape.num_buckets)
        | "JoinRewards" >> JoinRewards(window, settings)
        | "WriteWindow" >> WriteWindow(window_folder, window, settings, shape, origin)
    )


def export(
    source: Warehouse,
    windows: Path | str,
    window: TrainingWindow,
    settings: WindowSettings,
    pipeline_options: PipelineOptions | None = None,
    *,
    max_records_per_file: int = MAX_RECORDS_PER_FILE,
    observation_dim: int | None = None,
) -> Manifest:
    """Exports `window` of the warehouse `source` below the folder `windows`, unless it is there already.

    Args:
      source: where the events are.
      windows: folder of all windows, on this machine or in a bucket.
      window: its times carry a time zone.
      settings: how decisions become records.
      pipeline_options: Beam's; without a runner, the local one.
      max_records_per_file: at least 1; decides only how the records are cut into files.
      observation_dim: length of the observations to keep; None for the most frequent one.

    Raises:
      InputError: `source` has no tables, a setting is out of its bounds, a time has no time zone, or the folder holds
        another window, one of other settings, or no window.
      OperationError: the warehouse does not answer, or a file cannot be written.
    """
    settings = _checked(settings)
    window_folder = _window_folder(windows, window)
    with alone(windows, "--windows"):
        if (manifest := _exported(window_folder, window, settings, observation_dim)) is not None:
            return manifest
        shape = _prepare(source, window_folder, window, observation_dim, max_records_per_file)
        origin = _first_export(source, str(windows), window, settings)
        beam_options = options.local_by_default(pipeline_options or PipelineOptions([]))
        with options.job_errors(), beam.Pipeline(options=beam_options) as pipeline:
            build_pipeline(pipeline, source, window_folder, window, settings, shape, origin)
    manifest = _exported(window_folder, window, settings, observation_dim)
    assert manifest is not None
    return manifest


def submit(
    source: Warehouse,
    windows: str,
    window: TrainingWindow,
    settings: WindowSettings,
    pipeline_options: PipelineOptions,
    *,
    max_records_per_file: int = MAX_RECORDS_PER_FILE,
    observation_dim: int | None = None,
) -> bool:
    """Like `export`, but returns once the runner has accepted the job; False when the window is there already."""
    settings = _checked(settings)
    window_folder = _window_folder(windows, window)
    if _exported(window_folder, window, settings, observation_dim) is not None:
        return False
    shape = _prepare(source, window_folder, window, observation_dim, max_records_per_file)
    origin = _first_export(source, windows, window, settings)
    pipeline = beam.Pipeline(options=pipeline_options)
    build_pipeline(pipeline, source, window_folder, window, settings, shape, origin)
    pipeline.run()
    return True


def revise(
    source: Warehouse,
    windows: Path | str,
    window: TrainingWindow,
    settings: WindowSettings,
    pipeline_options: PipelineOptions | None = None,
    *,
    max_records_per_file: int = MAX_RECORDS_PER_FILE,
) -> Manifest | None:
    """Exports `window` again as its next revision, with the rows that came since; None if that changes nothing.

    On Dataflow it returns None once the job is accepted. Raises InputError for a window that was not exported, and
    otherwise as `export` does.
    """
    settings = _checked(settings)
    with alone(windows, "--windows"):
        first_folder = _window_folder(windows, window)
        before = revisions.newest(str(windows), window)
        if before is None or _exported(first_folder, window, settings, None) is None:
            raise InputError(f"--revise: an exported window expected, got {first_folder}")
        folder = FileSystems.join(str(windows), revision_folder(window, before.revision + 1))
        shape = _prepare(source, folder, window, before.observation_dim or None, max_records_per_file)
        beam_options = options.local_by_default(pipeline_options or PipelineOptions([]))
        pipeline = beam.Pipeline(options=beam_options)
        build_pipeline(pipeline, source, folder, window, settings, shape, WindowOrigin(revises=before))
        with options.job_errors():
            result = pipeline.run()
            if options.is_dataflow(beam_options):
                return None
            result.wait_until_finish()
        after = revisions.newest(str(windows), window)
    return after if after != before else None


def revise_late(
    source: Warehouse,
    windows: Path | str,
    until: datetime,
    settings: WindowSettings,
    pipeline_options: PipelineOptions | None = None,
    *,
    max_records_per_file: int = MAX_RECORDS_PER_FILE,
) -> list[Manifest]:
    """The revisions that it made of windows that ended by `until`, within the late horizon, and have rows since."""
    late = _late_rows(source, str(windows), until, settings)
    made = [
        revise(source, windows, window, settings, pipeline_options, max_records_per_file=max_records_per_file)
        for window in late
    ]
    return [manifest for manifest in made if manifest is not None]


def _late_rows(source: Warehouse, windows: str, until: datetime, settings: WindowSettings) -> dict[TrainingWindow, int]:
    """Rows that came after the export of windows that ended by `until`, as far back as the late horizon."""
    begin = until - timedelta(seconds=settings.late_horizon_seconds)
    return revisions.late_rows(source, revisions.exported_between(windows, begin, until))


def _first_export(source: Warehouse, windows: str, window: TrainingWindow, settings: WindowSettings) -> WindowOrigin:
    late = {one.folder: count for one, count in _late_rows(source, windows, window.start, settings).items()}
    for folder, count in late.items():
        log.warning("%s: rows that came after it was exported: %d; --revise takes them in", folder, count)
    return WindowOrigin(late_rows=late)


def _checked(settings: WindowSettings) -> WindowSettings:
    """The settings with every number a float, so that 2 and 2.0 give the same bytes; InputError when out of bounds."""
    return command_line.build(WindowSettings, msgspec.structs.asdict(settings), command_line.flag_name)


def _window_folder(windows: Path | str, window: TrainingWindow) -> str:
    if window.start.tzinfo is None or window.end.tzinfo is None:
        raise InputError(f"--start, --end: must carry a time zone, got [{window.start}, {window.end})")
    return FileSystems.join(str(windows), window.folder)


def _prepare(
    source: Warehouse,
    window_folder: str,
    window: TrainingWindow,
    observation_dim: int | None,
    max_records_per_file: int,
) -> WindowShape:
    """Clears what a killed export left; returns the layout that fits the window's decisions."""
    dims = source.observation_dims(window.start, window.end)
    chosen = choose_dim(dims, observation_dim)
    if others := [dim for dim in dims if dim.length != chosen]:
        described = ", ".join(f"{dim.length} ({dim.decisions} decisions, such as {dim.example})" for dim in others)
        log.warning("%s: observations of length %s are kept; set aside: %s", window_folder, chosen, described)
    clear(window_folder)
    decisions = sum(dim.decisions for dim in dims)
    return WindowShape(chosen, max(1, -(-decisions // max_records_per_file)), max_records_per_file)


def _exported(
    window_folder: str, window: TrainingWindow, settings: WindowSettings, observation_dim: int | None
) -> Manifest | None:
    path = FileSystems.join(window_folder, MANIFEST_NAME)
    if (data := read(path)) is None:
        return None
    manifest = decode_manifest(data, path)
    if manifest.window != window:
        raise InputError(f"{path}: another window was exported there: it ends at {manifest.window.end.isoformat()}")
    wanted: dict[str, Any] = msgspec.structs.asdict(settings)
    if observation_dim is not None and manifest.files:
        wanted["observation_dim"] = observation_dim
    for name, value in wanted.items():
        # None: exported before the manifest had this setting.
        if (found := getattr(manifest, name)) not in (value, None):
            flag = command_line.flag_name(name)
            raise InputError(f"{path}: this window was exported with {flag} {found}, got {value}: remove it first")
    return manifest


def parser() -> options.JobParser:
    """The job's flags."""
    flags = options.JobParser(JOB, __doc__)
    flags.flag("warehouse", options.TEXT, "folder of the tables that ingest_events wrote, or bigquery:PROJECT.DATASET")
    flags.flag(
        "windows",
        options.TEXT,
        "folder, or gs://BUCKET/FOLDER, for the windows (window=<start>/); created when it does not exist",
    )
    flags.flag("start", options.MOMENT, "start of the (first) window, as 2026-01-01T00:00:00Z")
    flags.flag("end", options.MOMENT, "end of the (last) window, which is not in it", default=None)
    flags.flag("window-seconds", options.number(0, above=True), "length of a window; replaces --end", default=None)
    flags.switch("follow", "export one window after the other from --start, until --end or until stopped")
    flags.settings(WindowSettings, reward_window_seconds=60.0, settle_seconds=60.0)
    flags.flag(
        "watermark",
        options.TEXT,
        "wait until the log is complete: folder of the event log, file that the ingest job writes, or"
        " pubsub:projects/PROJECT/subscriptions/NAME (default: windows close by the clock)",
        default=None,
    )
    flags.settings(WaitSettings)
    flags.switch(
        "revise",
        "export the window again if rows came since, as its next revision; with --follow, all within the horizon",
    )
    flags.flag("max-records-per-file", options.whole(1), "records in a file, at most", default=MAX_RECORDS_PER_FILE)
    flags.flag(
        "observation-dim",
        options.whole(1),
        "length of the observations to keep; decisions with another one are set aside (default: the most frequent)",
        default=None,
    )
    return flags


def run(argv: Sequence[str] | None) -> None:
    """Parses flags and runs the job."""
    arguments, pipeline_options = parser().parse_with_beam(argv)
    settings = command_line.from_flags(arguments, WindowSettings)
    window = _first_window(arguments)
    source = open_warehouse(arguments.warehouse, pipeline_options)
    check_folder("--windows", arguments.windows, pipeline_options)
    _check_closed(window, settings, arguments, pipeline_options)
    wait = _waiting(arguments, source)
    layout = {"max_records_per_file": arguments.max_records_per_file, "observation_dim": arguments.observation_dim}
    if options.is_dataflow(pipeline_options) and not (arguments.follow or arguments.revise):
        wait(_closes_at(window, settings))
        started = submit(source, arguments.windows, window, settings, pipeline_options, **layout)
        print("submitted" if started else "exported already", _window_folder(arguments.windows, window))
        return
    for each in closing.closed_windows(window, settings, wait, until=arguments.end) if arguments.follow else [window]:
        if arguments.follow or not arguments.revise:
            wait(_closes_at(each, settings))
            _print(arguments.windows, export(source, arguments.windows, each, settings, pipeline_options, **layout))
        if arguments.revise:
            for manifest in (revised := _revised(source, each, settings, arguments, pipeline_options)):
                _print(arguments.windows, manifest)
            if not (revised or arguments.follow):
                print(f"{_window_folder(arguments.windows, each)}: no rows came that change it")


def _revised(
    source: Warehouse,
    window: TrainingWindow,
    settings: WindowSettings,
    arguments: Any,
    pipeline_options: PipelineOptions,
) -> list[Manifest]:
    """The revisions made: of `window`, or with --follow of the windows before it."""
    layout = {"max_records_per_file": arguments.max_records_per_file}
    if arguments.follow:
        return revise_late(source, arguments.windows, window.start, settings, pipeline_options, **layout)
    made = revise(source, arguments.windows, window, settings, pipeline_options, **layout)
    return [made] if made is not None else []


def _print(windows: str, manifest: Manifest) -> None:
    counts = ", ".join(f"{name} {value}" for name, value in msgspec.to_builtins(manifest.counts).items())
    folder = FileSystems.join(windows, manifest.folder)
    command_line.say(f"{folder}: {manifest.records('train', 'holdback')} trajectories ({counts})")


def _waiting(arguments: Any, source: Warehouse) -> Callable[[datetime], object]:
    """How to wait until a window may be exported: for the watermark, or without one by the clock."""
    wait_settings = command_line.from_flags(arguments, WaitSettings)
    if arguments.watermark is None:
        return closing.sleep_until
    mark = watermark_sources.open_watermark(arguments.watermark, source)
    return lambda moment: closing.wait_until_complete(mark, moment, wait_settings, command_line.say, give_up=True)


def _check_closed(
    window: TrainingWindow, settings: WindowSettings, arguments: Any, pipeline_options: PipelineOptions
) -> None:
    """Raises InputError when the job would have to wait for the window but cannot, or it lies outside the calendar."""
    closes_at = _closes_at(window, settings)
    if arguments.follow:
        if pipeline_options.view_as(GoogleCloudOptions).template_location:
            raise InputError("--follow: not available in a template, which starts one job")
    elif closes_at > datetime.now(UTC):
        raise InputError(
            f"--start, --end: the window [{window.start.isoformat()}, {window.end.isoformat()}) closes at"
            f" {closes_at.isoformat()}; until then its events may still arrive (--follow waits)"
        )


def _first_window(arguments: Any) -> TrainingWindow:
    """The window from --start to --end, or of --window-seconds from --start."""
    if arguments.follow and arguments.window_seconds is None:
        raise InputError("--follow: requires --window-seconds, the length of each window")
    if arguments.window_seconds is None and arguments.end is None:
        raise InputError("--end: required unless --window-seconds is given")
    if arguments.window_seconds is not None and arguments.end is not None and not arguments.follow:
        raise InputError("--end, --window-seconds: give one of them")
    try:
        if arguments.window_seconds is None:
            return TrainingWindow(arguments.start, arguments.end)
        window = TrainingWindow(arguments.start, arguments.start + timedelta(seconds=arguments.window_seconds))
    except (ValueError, OverflowError) as error:
        raise InputError(f"--start, --end: {error}") from None
    if arguments.end is not None and arguments.end < window.end:
        raise InputError(f"--end: the first window ends at {window.end.isoformat()}, got {arguments.end.isoformat()}")
    return window


def _closes_at(window: TrainingWindow, settings: WindowSettings) -> datetime:
    try:
        row_ranges(window, settings)
        return window.closes_at(settings.reward_window_seconds, settings.settle_seconds)
    except OverflowError:
        raise InputError(
            f"--start, --end: [{window.start.isoformat()}, {window.end.isoformat()}) and the time read before and after"
            " it must lie in the years 1 to 9999"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point."""
    return command_line.run_main(f"beam_jobs.{JOB}", run, argv)


if __name__ == "__main__":
    # By its module name: Beam pickles a function of `__main__` with all its globals.
    from beam_jobs import export_trajectories

    sys.exit(export_trajectories.main())
