"""Turns one training window of the warehouse into trajectory TFRecords and their manifest.

    python -m beam_jobs.export_trajectories --warehouse runs/demo/warehouse --windows runs/demo/windows \\
        --start 2026-01-01T00:00:00Z --end 2026-01-01T00:00:05Z --reward-window-seconds 2
    python -m beam_jobs.export_trajectories --warehouse bigquery:P.bandit --windows gs://B/windows \\
        --start 2026-01-01T00:00:00Z --follow --window-seconds 300

With `--follow` the job exports one window after the other, each as soon as it has closed.

The job joins each decision with its first reward in time, splits the records by a hash of `decision_id` (a slate by its
`slate_id`), and writes files of bounded size. It writes the manifest last. The files depend only on the window's rows
and the settings: exporting the window again elsewhere writes the same bytes.

All records of a window have observations of one length: `--observation-dim`, or the most frequent length (of equally
frequent ones the largest). Decisions with another length are set aside: the manifest counts them, and the log names the
lengths.

A window is exported once. The job leaves a window that has a manifest as it is, and refuses to export it with other
settings. It replaces the files that a killed export left. A window must have closed (`contracts.windows`): rows that
arrive more than `--settle-seconds` later are not in it, and a decision among them is in no window.
"""

import fcntl
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from beam_jobs import options
from beam_jobs.files import clear, path_is_local, read
from beam_jobs.places import check_folder
from beam_jobs.reward_join import JoinRewards
from beam_jobs.tables import ObservationDim
from beam_jobs.warehouses import Warehouse, open_warehouse
from beam_jobs.window_files import WindowShape, WriteWindow
from beam_jobs.window_rows import ReadWindowRows, row_ranges
from contracts import command_line
from contracts.errors import InputError
from contracts.windows import MANIFEST_NAME, Manifest, TrainingWindow, WindowSettings, decode_manifest

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
) -> beam.PCollection[Manifest]:
    """The job for one window. Returns the manifest, once it is written."""
    return (
        pipeline
        | "ReadWindowRows" >> ReadWindowRows(source, row_ranges(window, settings), shape.num_buckets)
        | "JoinRewards" >> JoinRewards(window, settings)
        | "WriteWindow" >> WriteWindow(window_folder, window, settings, shape)
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
    with _alone(windows):
        if (manifest := _exported(window_folder, window, settings, observation_dim)) is not None:
            return manifest
        shape = _prepare(source, window_folder, window, observation_dim, max_records_per_file)
        beam_options = options.local_by_default(pipeline_options or PipelineOptions([]))
        with options.job_errors(), beam.Pipeline(options=beam_options) as pipeline:
            build_pipeline(pipeline, source, window_folder, window, settings, shape)
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
    pipeline = beam.Pipeline(options=pipeline_options)
    build_pipeline(pipeline, source, window_folder, window, settings, shape)
    pipeline.run()
    return True


def closed_windows(
    first: TrainingWindow,
    settings: WindowSettings,
    until: datetime | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[TrainingWindow]:
    """`first` and the windows after it, of the same length, each once it has closed.

    Ends with the last window that ends by `until`; without `until` it never ends.
    """
    window = first
    while until is None or window.end <= until:
        closes_at = window.closes_at(settings.reward_window_seconds, settings.settle_seconds)
        while (seconds := (closes_at - now()).total_seconds()) > 0:
            sleep(seconds)
        yield window
        window = TrainingWindow(window.end, window.end + (window.end - window.start))


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


def choose_dim(dims: Sequence[ObservationDim], wanted: int | None = None) -> int | None:
    """The length of observation that a window keeps: the `wanted` one, or the most frequent, of equals the largest.

    None for a window without decisions when no length is wanted.
    """
    if wanted is not None or not dims:
        return wanted
    return max(dims, key=lambda dim: (dim.decisions, dim.length)).length


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


@contextmanager
def _alone(windows: Path | str) -> Iterator[None]:
    """Lets one process at a time export into a folder of this machine; the next one finds the window there."""
    if not path_is_local(str(windows)):
        yield
        return
    try:
        Path(windows).mkdir(parents=True, exist_ok=True)
        lock = (Path(windows) / ".lock").open("w")
    except OSError as error:
        raise InputError(f"--windows: {str(windows)!r} cannot be written to: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
    layout = {"max_records_per_file": arguments.max_records_per_file, "observation_dim": arguments.observation_dim}
    if options.is_dataflow(pipeline_options) and not arguments.follow:
        started = submit(source, arguments.windows, window, settings, pipeline_options, **layout)
        print("submitted" if started else "exported already", _window_folder(arguments.windows, window))
        return
    for each in closed_windows(window, settings, until=arguments.end) if arguments.follow else [window]:
        manifest = export(source, arguments.windows, each, settings, pipeline_options, **layout)
        counts = ", ".join(f"{name} {value}" for name, value in msgspec.to_builtins(manifest.counts).items())
        folder = _window_folder(arguments.windows, manifest.window)
        print(f"{folder}: {manifest.records('train', 'holdback')} trajectories ({counts})", flush=True)


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
