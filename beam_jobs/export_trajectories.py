"""Turns one training window of the warehouse into trajectory TFRecords and their manifest.

    python -m beam_jobs.export_trajectories --warehouse runs/demo/warehouse --windows runs/demo/windows \\
        --start 2026-01-01T00:00:00Z --end 2026-01-01T00:00:05Z --reward-window-seconds 2
    python -m beam_jobs.export_trajectories --warehouse bigquery:P.bandit --windows gs://B/windows \\
        --start 2026-01-01T00:00:00Z --follow --window-seconds 300

With `--follow` it goes on: it exports one window after the other, each as soon as it has closed.

Joins each decision with its first reward in time (`beam_jobs.reward_join`), splits by a hash of `decision_id`, and
writes files of bounded size, the manifest last. What is written is a function of the window's rows and the settings
alone: exporting it again elsewhere gives the same bytes.

A window is exported once: one that has a manifest is left as it is, and asking for it with other settings is an error.
Whatever a killed export left is replaced. A window
must have closed (`contracts.windows`): rows that arrive later than `--settle-seconds` after it are not in it, and a
decision among them is in no window.
"""

import fcntl
import hashlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions

from beam_jobs import options, warehouse
from beam_jobs.files import clear, path_is_local, publish, read
from beam_jobs.places import check_folder, parse_warehouse
from beam_jobs.reward_join import (
    KEY_COLUMNS,
    JoinedBucket,
    JoinRewards,
    JoinSettings,
    in_holdback,
    observations,
    split_into_buckets,
)
from contracts import command_line
from contracts.errors import InputError
from contracts.schemas import DECISIONS, REWARDS, Table
from contracts.windows import (
    MANIFEST_NAME,
    Manifest,
    Split,
    TrainingWindow,
    WindowCounts,
    WindowFile,
    WindowSettings,
    decode_manifest,
    encode_manifest,
)

if TYPE_CHECKING:
    from beam_jobs.bigquery import Dataset

JOB = "export_trajectories"
MAX_RECORDS_PER_FILE = 100_000
NO_COUNTS = WindowCounts(**dict.fromkeys(WindowCounts.__struct_fields__, 0))


class WrittenBucket(NamedTuple):
    """What one bucket adds to the manifest."""

    files: list[WindowFile]
    counts: WindowCounts
    policy_versions: dict[str, int]
    observation_dims: dict[int, str]  # each length seen, and a decision that has it


class RowRange(NamedTuple):
    """One read: rows of `table` in `[start, end)`, for the join's input `name`."""

    name: str
    table: Table
    start: datetime
    end: datetime
    columns: tuple[str, ...] | None


def row_ranges(window: TrainingWindow, settings: WindowSettings) -> list[RowRange]:
    """What the join of `window` needs."""
    reward_window = timedelta(seconds=settings.reward_window_seconds)
    earliest = window.start - timedelta(seconds=settings.late_horizon_seconds)
    just_after = timedelta(microseconds=1)  # a reward at the very end of its reward window is in time
    return [
        RowRange("decisions", DECISIONS, window.start, window.end, None),
        RowRange("earlier", DECISIONS, earliest, window.start, KEY_COLUMNS),
        RowRange("rewards", REWARDS, window.start - reward_window, window.end + reward_window + just_after, None),
    ]


class ReadWarehouseFn(beam.DoFn):
    """RowRange -> (bucket, RecordBatch), from the embedded warehouse, on the output of that name."""

    def __init__(self, folder: str, num_buckets: int) -> None:
        self._folder = Path(folder)
        self._num_buckets = num_buckets

    def process(self, rows: RowRange) -> Iterator[Any]:
        """Reads one range."""
        table = warehouse.read_all(self._folder, rows.table, rows.start, rows.end, rows.columns)
        for bucket in split_into_buckets(table, self._num_buckets):
            yield beam.pvalue.TaggedOutput(rows.name, bucket)


class OpenStreamsFn(beam.DoFn):
    """RowRange -> (its name, ReadStream), the streams of one BigQuery read session."""

    def __init__(self, dataset: "Dataset") -> None:
        self._dataset = dataset

    def process(self, rows: RowRange) -> Iterator[Any]:
        """Opens a session."""
        from beam_jobs import bigquery

        for stream in bigquery.open_streams(self._dataset, rows.table, rows.start, rows.end, rows.columns):
            yield rows.name, stream


class ReadStreamFn(beam.DoFn):
    """(name, ReadStream) -> (bucket, RecordBatch), on the output of that name."""

    def __init__(self, num_buckets: int) -> None:
        self._num_buckets = num_buckets

    def process(self, element: Any) -> Iterator[Any]:
        """Reads one stream."""
        from beam_jobs import bigquery

        name, stream = element
        for batch in bigquery.read_stream(stream):
            for bucket in split_into_buckets(pa.Table.from_batches([batch]), self._num_buckets):
                yield beam.pvalue.TaggedOutput(name, bucket)


class ReadRows(beam.PTransform):
    """PBegin -> {name: PCollection of (bucket, RecordBatch)} for each of `ranges`."""

    def __init__(self, source: "Path | Dataset", ranges: Sequence[RowRange], num_buckets: int) -> None:
        super().__init__()
        self._source = source
        self._ranges = ranges
        self._num_buckets = num_buckets

    def expand(self, pipeline: Any) -> Any:
        """From the embedded warehouse, or from BigQuery."""
        names = [rows.name for rows in self._ranges]
        ranges = pipeline | "Ranges" >> beam.Create(self._ranges)
        if isinstance(self._source, Path):
            read = ranges | beam.ParDo(ReadWarehouseFn(str(self._source), self._num_buckets)).with_outputs(*names)
        else:
            read = (
                ranges
                | "OpenStreams" >> beam.ParDo(OpenStreamsFn(self._source))
                | "Spread" >> beam.Reshuffle()
                | "ReadStream" >> beam.ParDo(ReadStreamFn(self._num_buckets)).with_outputs(*names)
            )
        return {name: read[name] for name in names}


class WriteBucketFn(beam.DoFn):
    """JoinedBucket -> WrittenBucket: its trajectories as TFRecord files in `folder`."""

    def __init__(self, folder: str, holdback_share: float, max_records_per_file: int) -> None:
        self._folder = folder
        self._holdback_share = holdback_share
        self._max_records_per_file = max_records_per_file
        self._counters = {name: Metrics.counter(JOB, name) for name in WindowCounts.__struct_fields__}

    def process(self, bucket: JoinedBucket) -> Iterator[WrittenBucket]:
        """Writes one bucket."""
        for name, counter in self._counters.items():
            counter.inc(getattr(bucket.counts, name))
        rows = bucket.interactions
        held_back = in_holdback(rows.column("decision_id"), self._holdback_share)
        splits: tuple[tuple[Split, np.ndarray], ...] = (("train", ~held_back), ("holdback", held_back))
        yield WrittenBucket(
            files=[
                self._write(f"part-{split}-{bucket.bucket:05d}{suffix}", split, part)
                for split, chosen in splits
                for suffix, part in self._parts(rows.filter(pa.array(chosen)))
            ],
            counts=bucket.counts,
            policy_versions=dict(Counter(rows.column("policy_version").to_pylist())),
            observation_dims={len(rows.column("observation")[0]): rows.column("decision_id")[0].as_py()}
            if rows.num_rows
            else {},
        )

    def _parts(self, rows: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        """Pieces that fit into a file; the first one has no suffix."""
        for number, begin in enumerate(range(0, rows.num_rows, self._max_records_per_file)):
            yield f"-{number}" if number else "", rows.slice(begin, self._max_records_per_file)

    def _write(self, name: str, split: Split, rows: pa.RecordBatch) -> WindowFile:
        import tensorflow as tf

        from contracts import trajectories

        batch = trajectories.TrajectoryBatch(
            observation=observations(rows),
            action=rows.column("action").to_numpy().astype(np.int32),
            reward=rows.column("reward").to_numpy().astype(np.float32),
            propensity=rows.column("propensity").to_numpy().astype(np.float32),
            defaulted=rows.column("defaulted").to_numpy(zero_copy_only=False),
        )
        name += ".tfrecord"
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / name
            with tf.io.TFRecordWriter(str(path)) as writer:
                for record in trajectories.encode(batch):
                    writer.write(record)
            data = path.read_bytes()
        publish(FileSystems.join(self._folder, name), [data])
        return WindowFile(
            name=name, split=split, records=rows.num_rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )


class WriteManifestFn(beam.DoFn):
    """All that was written -> the manifest, written."""

    def __init__(self, folder: str, window: TrainingWindow, settings: WindowSettings) -> None:
        self._folder = folder
        self._window = window
        self._settings = settings

    def process(self, written: WrittenBucket) -> Iterator[Manifest]:
        """Writes the manifest. Raises ValueError when observations differ in length."""
        dims = sorted(written.observation_dims.items())
        if len(dims) > 1:
            raise ValueError(describe_mixed_dims(dims))
        manifest = Manifest(
            window=self._window,
            **msgspec.structs.asdict(self._settings),
            observation_dim=dims[0][0] if dims else 0,
            files=sorted(written.files, key=lambda file: file.name),
            counts=written.counts,
            policy_versions=dict(sorted(written.policy_versions.items())),
        )
        publish(FileSystems.join(self._folder, MANIFEST_NAME), [encode_manifest(manifest)])
        yield manifest


def describe_mixed_dims(dims: Sequence[tuple[int, str]]) -> str:
    """One line on observations of several lengths."""
    found = ", ".join(f"{length} (decision_id={decision_id})" for length, decision_id in dims)
    return f"observations of one window must have the same length, got {found}"


def add_up(buckets: Iterable[WrittenBucket]) -> WrittenBucket:
    """All of `buckets` as one."""
    files: list[WindowFile] = []
    counts = dict.fromkeys(WindowCounts.__struct_fields__, 0)
    policy_versions: Counter[str] = Counter()
    dims: dict[int, str] = {}
    for bucket in buckets:
        files += bucket.files
        for name in counts:
            counts[name] += getattr(bucket.counts, name)
        policy_versions.update(bucket.policy_versions)
        dims |= bucket.observation_dims
    return WrittenBucket(files, WindowCounts(**counts), dict(policy_versions), dims)


def build_pipeline(
    pipeline: beam.Pipeline,
    source: "Path | Dataset",
    window_folder: str,
    window: TrainingWindow,
    settings: WindowSettings,
    num_buckets: int,
    max_records_per_file: int,
) -> beam.PCollection[Manifest]:
    """The job for one window. Returns the manifest, once it is written."""
    join = JoinSettings(window, settings.reward_window_seconds, settings.missing_reward, settings.default_reward)
    return (
        pipeline
        | "ReadRows" >> ReadRows(source, row_ranges(window, settings), num_buckets)
        | "JoinRewards" >> JoinRewards(join)
        | "WriteBucket" >> beam.ParDo(WriteBucketFn(window_folder, settings.holdback_share, max_records_per_file))
        | "AddUp" >> beam.CombineGlobally(add_up)
        | "WriteManifest" >> beam.ParDo(WriteManifestFn(window_folder, window, settings))
    )


def export(
    source: "Path | Dataset",
    windows: Path | str,
    window: TrainingWindow,
    settings: WindowSettings,
    pipeline_options: PipelineOptions | None = None,
    max_records_per_file: int = MAX_RECORDS_PER_FILE,
) -> Manifest:
    """Exports `window` of the warehouse `source` below `windows`, unless it is there already.

    `max_records_per_file` (at least 1) decides only how the records are cut into files.

    Raises InputError when `source` is no warehouse, when observations differ in length, when the window's moments carry
    no time zone, when a setting is out of its bounds, or when what is there already is another window, one of other
    settings, or not a window.
    """
    settings = _checked(settings)
    window_folder = _window_folder(windows, window)
    with _alone(windows):
        if (manifest := _exported(window_folder, window, settings)) is not None:
            return manifest
        num_buckets = _prepare(source, window_folder, window, max_records_per_file)
        with beam.Pipeline(options=options.local_by_default(pipeline_options or PipelineOptions([]))) as pipeline:
            build_pipeline(pipeline, source, window_folder, window, settings, num_buckets, max_records_per_file)
    manifest = _exported(window_folder, window, settings)
    assert manifest is not None
    return manifest


def submit(
    source: "Path | Dataset",
    windows: str,
    window: TrainingWindow,
    settings: WindowSettings,
    pipeline_options: PipelineOptions,
    max_records_per_file: int = MAX_RECORDS_PER_FILE,
) -> bool:
    """Like `export`, but returns once the runner has taken the job; False when there is nothing to do."""
    settings = _checked(settings)
    window_folder = _window_folder(windows, window)
    if _exported(window_folder, window, settings) is not None:
        return False
    num_buckets = _prepare(source, window_folder, window, max_records_per_file)
    pipeline = beam.Pipeline(options=pipeline_options)
    build_pipeline(pipeline, source, window_folder, window, settings, num_buckets, max_records_per_file)
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


def _prepare(source: "Path | Dataset", window_folder: str, window: TrainingWindow, max_records_per_file: int) -> int:
    """Clears what a killed export left; returns how many buckets the window's decisions are worth."""
    if isinstance(source, Path):
        dims = warehouse.observation_dims(source, window.start, window.end)
    else:
        from beam_jobs import bigquery

        dims = bigquery.observation_dims(source, window.start, window.end)
    if len(dims) > 1:
        raise InputError(describe_mixed_dims([(dim.length, dim.example) for dim in dims]))
    decisions = sum(dim.decisions for dim in dims)
    clear(window_folder)
    return max(1, -(-decisions // max_records_per_file))


def _exported(window_folder: str, window: TrainingWindow, settings: WindowSettings) -> Manifest | None:
    path = FileSystems.join(window_folder, MANIFEST_NAME)
    if (data := read(path)) is None:
        return None
    manifest = decode_manifest(data, path)
    if manifest.window != window:
        raise InputError(f"{path}: another window was exported there: it ends at {manifest.window.end.isoformat()}")
    for name, wanted in msgspec.structs.asdict(settings).items():
        # None: exported before the manifest had this setting.
        if (found := getattr(manifest, name)) not in (wanted, None):
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{path}: this window was exported with {flag} {found}, got {wanted}: remove it first")
    return manifest


@contextmanager
def _alone(windows: Path | str) -> Iterator[None]:
    """One export at a time into a folder of this machine; the next one then finds the window there."""
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
    flags.flag("warehouse", options.TEXT, "folder of the tables that ingest_events writes, or bigquery:PROJECT.DATASET")
    flags.flag(
        "windows", options.TEXT, "folder, or gs://BUCKET/FOLDER, to write window=<start>/ into (created if need be)"
    )
    flags.flag("start", options.MOMENT, "first moment of the window, as 2026-01-01T00:00:00Z")
    flags.flag("end", options.MOMENT, "the moment after the (last) window's last", default=None)
    flags.flag("window-seconds", options.number(0, above=True), "length of a window, in place of --end", default=None)
    flags.switch("follow", "export one window after the other, from --start on, until --end or for ever")
    flags.settings(WindowSettings, reward_window_seconds=60.0, settle_seconds=60.0)
    flags.flag("max-records-per-file", options.whole(1), "records in a file, at most", default=MAX_RECORDS_PER_FILE)
    return flags


def run(argv: Sequence[str] | None) -> None:
    """Parses flags and runs the job."""
    arguments, pipeline_options = parser().parse_with_beam(argv)
    settings = command_line.from_flags(arguments, WindowSettings)
    window = _first_window(arguments)
    source = parse_warehouse(arguments.warehouse, pipeline_options)
    check_folder("--windows", arguments.windows, pipeline_options)
    closes_at = _closes_at(window, settings)
    if arguments.follow:
        if pipeline_options.view_as(GoogleCloudOptions).template_location:
            raise InputError("--follow: is not for a template, which starts one job: run it where it can go on")
    elif closes_at > datetime.now(UTC):
        raise InputError(
            f"--start, --end: the window [{window.start.isoformat()}, {window.end.isoformat()}) closes at"
            f" {closes_at.isoformat()}: what belongs to it may still be on its way (--follow waits)"
        )
    if options.is_dataflow(pipeline_options) and not arguments.follow:
        started = submit(source, arguments.windows, window, settings, pipeline_options, arguments.max_records_per_file)
        print("submitted" if started else "exported already", _window_folder(arguments.windows, window))
        return
    windows = closed_windows(window, settings, until=arguments.end) if arguments.follow else [window]
    for window in windows:
        manifest = export(source, arguments.windows, window, settings, pipeline_options, arguments.max_records_per_file)
        counts = ", ".join(f"{name} {value}" for name, value in msgspec.structs.asdict(manifest.counts).items())
        folder = _window_folder(arguments.windows, manifest.window)
        print(f"{folder}: {manifest.records('train', 'holdback')} trajectories ({counts})", flush=True)


def _first_window(arguments: Any) -> TrainingWindow:
    """The window that --start and --end, or --start and --window-seconds, say."""
    if arguments.follow and arguments.window_seconds is None:
        raise InputError("--follow: --window-seconds must say how long each window is")
    if arguments.window_seconds is None and arguments.end is None:
        raise InputError("--end: needed, unless --window-seconds says how long the window is")
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
            f"--start, --end: [{window.start.isoformat()}, {window.end.isoformat()}), with the time before and after it"
            " that is read, must lie in the years 1 to 9999"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point."""
    return options.run_main(JOB, run, argv)


if __name__ == "__main__":
    # Under its own name: what is pickled to workers from `__main__` would be pickled with all its globals.
    from beam_jobs import export_trajectories

    sys.exit(export_trajectories.main())
