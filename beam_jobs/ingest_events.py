"""Reads events (decisions and rewards), sets aside what cannot be read, and writes the tables of the warehouse.

    python -m beam_jobs.ingest_events --events runs/demo/events --warehouse runs/demo/warehouse
    python -m beam_jobs.ingest_events --events pubsub:projects/P/subscriptions/events --warehouse bigquery:P.bandit

Every event becomes a row of `decisions`, `rewards` or `dead_letters`; one that is logged twice is stored twice, and
removed when the tables are read. A decision that the policy in training cannot learn from is a dead letter as well, if
`--observation-dim` and `--num-actions` say what it must be like: one such decision would keep its whole window from being
exported.

From a folder it is a batch job, and it is checked for each segment that what was written adds up to what was read. Into
a folder (`beam_jobs.warehouse`) only segments that were not ingested yet are read: a segment's files depend on the
segment, and on what those two flags say, alone, and the note that it has been ingested is written after them, so a run
that was killed at any moment is simply run again, told the same. Into BigQuery every segment is loaded, by a job whose id
depends on the table and the segment's rows alone, and which BigQuery runs once.

From a Pub/Sub subscription it is a streaming job, whose guarantee is the runner's: on Dataflow a message is acknowledged
when what came of it is stored, so each is stored at least once. Beam's local runner acknowledges first: what it holds
when it is killed is lost (some ten messages each time; 34 of 2,928 in five kills). `orchestration.emulators` has a
reader for it that acknowledges what is stored; with that one five kills lost none of 7,802.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import apache_beam as beam
import msgspec
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from beam_jobs import options, warehouse
from beam_jobs.files import path_is_local, publish
from beam_jobs.payloads import (
    ANY_SHAPE,
    BYTES_A_BATCH,
    EVENTS_A_BATCH,
    JOB,
    MAX_EVENT_BYTES,
    DecisionShape,
    IngestCounts,
    ParsedEvents,
    ParseEvents,
    PayloadBatch,
    add_counts,
    add_shape_flags,
    shape_from,
)
from beam_jobs.places import SUBSCRIPTION_PREFIX, check_folder, parse_warehouse
from beam_jobs.tables import TableRows
from contracts.errors import InputError
from contracts.event_segments import (
    SEALED_SUFFIX,
    foreign_files,
    is_segment,
    opened_at,
    seal_abandoned,
    sealed_segments,
)
from contracts.records import one_line
from contracts.schemas import DEAD_LETTERS, DECISIONS, REWARDS, TABLES, Table

if TYPE_CHECKING:
    from beam_jobs.bigquery import Dataset

STREAMING_INSERTS, STORAGE_WRITE_API, FILE_LOADS = WRITE_METHODS = (
    "streaming_inserts",
    "storage_write_api",
    "file_loads",
)


class StreamOutputs(NamedTuple):
    """What the streaming job makes, each a PCollection."""

    batches: Any  # PayloadBatch
    parsed: ParsedEvents
    stored: Any  # (name of the batch, IngestCounts) of what is in the tables


class ReadSegmentFn(beam.DoFn):
    """Path of a sealed segment -> PayloadBatch; on `read`, how many events it held."""

    def process(self, segment: str) -> Iterator[Any]:
        """Reads a batch of lines at a time."""
        name = segment.rpartition("/")[2]
        stem = name.removesuffix(SEALED_SUFFIX)
        opened = opened_at(Path(name))
        line = 1
        with FileSystems.open(segment, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            for number, payloads in enumerate(read_lines(file)):
                sources = [f"{name}:{line + place}" for place in range(len(payloads))]
                line += len(payloads)
                yield PayloadBatch(f"{stem}-{number:06d}", payloads, sources, [opened] * len(payloads))
        yield beam.pvalue.TaggedOutput("read", (stem, IngestCounts(events=line - 1)))


def read_lines(file: BinaryIO) -> Iterator[list[bytes]]:
    """Lines without their ends, some at a time, in bounded memory: of a line too large to be an event, the beginning."""
    lines: list[bytes] = []
    size = 0
    while line := file.readline(MAX_EVENT_BYTES + 1):
        end = line
        while len(end) >= MAX_EVENT_BYTES + 1 and not end.endswith(b"\n"):
            end = file.readline(MAX_EVENT_BYTES + 1)
        lines.append(line.removesuffix(b"\n"))
        size += len(line)
        if len(lines) >= EVENTS_A_BATCH or size >= BYTES_A_BATCH:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


class WriteTableFn(beam.DoFn):
    """TableRows -> (name, how many rows are in the embedded warehouse)."""

    def __init__(self, folder: str, table: Table) -> None:
        self._folder = Path(folder)
        self._table = table

    def process(self, element: TableRows) -> Iterator[tuple[str, IngestCounts]]:
        """Writes one batch."""
        warehouse.write(self._folder, self._table, element.name, element.rows)
        yield element.name, IngestCounts(**{self._table.name: element.rows.num_rows})


class StoreEvents(beam.PTransform):
    """ParsedEvents -> PCollection of (name of a batch, IngestCounts): said of rows that are in the tables."""

    def __init__(self, destination: "Path | Dataset", write_method: str = STREAMING_INSERTS) -> None:
        super().__init__()
        self._destination = destination
        self._write_method = write_method

    def expand(self, parsed: Any) -> Any:
        """One writer for each table. What BigQuery refuses becomes a dead letter."""
        if isinstance(self._destination, Path):
            written = [
                rows | f"Write_{table.name}" >> beam.ParDo(WriteTableFn(str(self._destination), table))
                for table, rows in zip(TABLES, parsed, strict=True)
            ]
            return written | "Stored" >> beam.Flatten()
        return self._into_bigquery(parsed, self._destination)

    def _into_bigquery(self, parsed: ParsedEvents, dataset: "Dataset") -> Any:
        from beam_jobs import bigquery

        writers = {
            STREAMING_INSERTS: bigquery.InsertRowsFn,
            STORAGE_WRITE_API: bigquery.AppendRowsFn,
            FILE_LOADS: bigquery.LoadRowsFn,
        }
        writer = writers[self._write_method]
        written = [
            rows | f"Write_{table.name}" >> beam.ParDo(writer(dataset, table)).with_outputs("refused", main="stored")
            for table, rows in ((DECISIONS, parsed.decisions), (REWARDS, parsed.rewards))
        ]
        letters = [parsed.dead_letters, *(outputs.refused for outputs in written)] | "DeadLetters" >> beam.Flatten()
        kept = letters | f"Write_{DEAD_LETTERS.name}" >> beam.ParDo(writer(dataset, DEAD_LETTERS))
        return [*(outputs.stored for outputs in written), kept] | "Stored" >> beam.Flatten()


class CheckAccountedFn(beam.DoFn):
    """(segment, counts) -> the same; what was written must add up to what was read. Notes it in a warehouse folder."""

    def __init__(self, folder: str | None) -> None:
        self._folder = folder

    def process(self, element: tuple[str, IngestCounts]) -> Iterator[tuple[str, IngestCounts]]:
        """Raises RuntimeError when it does not add up: then the segment is not noted."""
        segment, counts = element
        if counts.events != counts.decisions + counts.rewards + counts.dead_letters:
            raise RuntimeError(f"segment {segment}: not every event is accounted for: {counts}")
        if self._folder:
            publish(str(_note(Path(self._folder), segment)), [msgspec.json.encode(counts) + b"\n"])
        yield element


def _note(folder: Path, segment: str) -> Path:
    return folder / warehouse.INGESTED_NAME / f"{segment}.json"


def by_segment(element: tuple[str, IngestCounts]) -> tuple[str, IngestCounts]:
    """The name of a batch is its segment's and a number."""
    name, counts = element
    return name.rpartition("-")[0], counts


def build_pipeline(
    pipeline: beam.Pipeline,
    segments: Sequence[str],
    destination: "Path | Dataset",
    write_method: str = FILE_LOADS,
    shape: DecisionShape = ANY_SHAPE,
) -> Any:
    """The batch job. Returns a PCollection of (segment, counts), each once all of the segment is stored."""
    read = (
        pipeline
        | "Segments" >> beam.Create(segments)
        | "Spread" >> beam.Reshuffle()
        | "ReadSegment" >> beam.ParDo(ReadSegmentFn()).with_outputs("read", main="batches")
    )
    parsed = read.batches | "ParseEvents" >> ParseEvents(shape)
    stored = parsed | "StoreEvents" >> StoreEvents(destination, write_method)
    folder = str(destination) if isinstance(destination, Path) else None
    return (
        (read.read, stored | "BySegment" >> beam.Map(by_segment))
        | "Counts" >> beam.Flatten()
        | "AddUp" >> beam.CombinePerKey(add_counts)
        | "CheckAccounted" >> beam.ParDo(CheckAccountedFn(folder))
    )


def build_streaming_pipeline(
    pipeline: beam.Pipeline,
    subscription: str,
    destination: "Path | Dataset",
    write_method: str = STREAMING_INSERTS,
    timestamp_attribute: str | None = None,
    dead_letter_topic: str | None = None,
    shape: DecisionShape = ANY_SHAPE,
) -> StreamOutputs:
    """The streaming job."""
    from beam_jobs import pubsub

    batches = pipeline | "ReadEvents" >> pubsub.ReadEvents(subscription, timestamp_attribute)
    parsed = batches | "ParseEvents" >> ParseEvents(shape)
    stored = parsed | "StoreEvents" >> StoreEvents(destination, write_method)
    if dead_letter_topic:
        (
            parsed.dead_letters
            | "DeadLetterMessages" >> beam.FlatMap(pubsub.dead_letter_messages)
            | "PublishDeadLetters" >> beam.io.WriteToPubSub(dead_letter_topic, with_attributes=True)
        )
    return StreamOutputs(batches, parsed, stored)


def ingest(
    events: Path, folder: Path, shape: DecisionShape = ANY_SHAPE, pipeline_options: PipelineOptions | None = None
) -> IngestCounts:
    """Ingests the segments of `events` that the warehouse `folder` has not yet, and says what they held.

    Segments whose writer died are sealed first. One ingestion at a time runs on a warehouse; another one waits.

    Raises InputError when there is no event log at `events`, or `folder` cannot be one.
    """
    if not events.is_dir():
        raise InputError(f"--events: {str(events)!r} is not a folder")
    warehouse.create(folder)
    with warehouse.locked(folder):
        seal_abandoned(events)
        ingested = {note.stem for note in (folder / warehouse.INGESTED_NAME).glob("*.json")}
        new = [path for path in sealed_segments(events) if path.name.removesuffix(SEALED_SUFFIX) not in ingested]
        if new:
            beam_options = pipeline_options or PipelineOptions([f"--runner={options.LOCAL_RUNNER}"])
            with beam.Pipeline(options=beam_options) as pipeline:
                build_pipeline(pipeline, [str(path) for path in new], folder, shape=shape)
        notes = (_note(folder, path.name.removesuffix(SEALED_SUFFIX)) for path in new)
        return add_counts(msgspec.json.decode(note.read_bytes(), type=IngestCounts) for note in notes)


def load_into_bigquery(
    events: str,
    dataset: "Dataset",
    write_method: str,
    pipeline_options: PipelineOptions,
    expiry_days: float | None = None,
    shape: DecisionShape = ANY_SHAPE,
) -> IngestCounts | None:
    """The batch job over all sealed segments of the folder or bucket `events`, into BigQuery.

    Returns None when the job was submitted, and runs on elsewhere.
    """
    from beam_jobs import bigquery

    if not (segments := find_segments(events)):
        raise InputError(f"--events: {events!r} holds no sealed segments")
    bigquery.ensure_tables(dataset, expiry_days)
    pipeline = beam.Pipeline(options=pipeline_options)
    build_pipeline(pipeline, segments, dataset, write_method, shape)
    result = pipeline.run()
    if options.is_dataflow(pipeline_options):
        return None
    result.wait_until_finish()
    return IngestCounts(**options.counters(result, IngestCounts.__struct_fields__))


def find_segments(events: str) -> list[str]:
    """Paths of the sealed segments of a folder (in which abandoned ones are sealed first) or bucket, oldest first."""
    if path_is_local(events):
        if not Path(events).is_dir():
            raise InputError(f"--events: {events!r} is not a folder")
        seal_abandoned(Path(events))
        return [str(path) for path in sealed_segments(Path(events))]
    try:
        [matched] = FileSystems.match([f"{events.rstrip('/')}/*{SEALED_SUFFIX}"])
    except BeamIOError as error:
        raise InputError(f"--events: {events!r} cannot be read: {one_line(str(error), 200)}") from None
    paths = sorted(found.path for found in matched.metadata_list)
    return [path for path in paths if is_segment(path.rpartition("/")[2])]


def parser() -> options.JobParser:
    """The job's flags."""
    flags = options.JobParser(JOB, __doc__)
    flags.flag("events", options.TEXT, "folder of the event log, or pubsub:projects/PROJECT/subscriptions/NAME")
    flags.flag(
        "warehouse", options.TEXT, "folder of the tables, or bigquery:PROJECT.DATASET (tables are created if need be)"
    )
    flags.flag(
        "write-method",
        options.TEXT,
        "how rows get into BigQuery (default: streaming_inserts from a subscription, file_loads from a folder)",
        choices=WRITE_METHODS,
        default=None,
    )
    flags.flag(
        "timestamp-attribute", options.TEXT, "message attribute that holds the event's time (RFC 3339)", default=None
    )
    flags.flag(
        "dead-letter-topic", options.TEXT, "also publish dead letters to projects/PROJECT/topics/NAME", default=None
    )
    flags.flag(
        "expiry-days", options.number(0, above=True), "days until a table's partitions expire, if created", default=None
    )
    add_shape_flags(flags)
    return flags


def run(argv: Sequence[str] | None) -> None:
    """Parses flags and runs the job."""
    arguments, pipeline_options = parser().parse_with_beam(argv)
    destination = parse_warehouse(arguments.warehouse, pipeline_options)
    write_method = check_flags(arguments, destination)
    if arguments.events.startswith(SUBSCRIPTION_PREFIX):
        run_streaming(arguments, destination, write_method, pipeline_options)
        return
    check_folder("--events", arguments.events, pipeline_options)
    options.local_by_default(pipeline_options)
    counts: IngestCounts | None
    if isinstance(destination, Path):
        counts = ingest(Path(arguments.events), destination, shape_from(arguments), pipeline_options)
    else:
        counts = load_into_bigquery(
            arguments.events,
            destination,
            write_method,
            pipeline_options,
            arguments.expiry_days,
            shape_from(arguments),
        )
    if counts is None:
        print("submitted")
        return
    print(
        f"{counts.events} events: {counts.decisions} decisions, {counts.rewards} rewards, "
        f"{counts.dead_letters} dead letters"
    )
    if path_is_local(arguments.events) and (foreign := foreign_files(Path(arguments.events))):
        print(f"{len(foreign)} files not named as a segment were left alone, {foreign[0]} the first", file=sys.stderr)


def check_flags(arguments: Any, destination: "Path | Dataset") -> str:
    """The write method: the one that was chosen or the default. Raises InputError for flags that do not go together."""
    streaming = arguments.events.startswith(SUBSCRIPTION_PREFIX)
    if isinstance(destination, Path):
        for name in ("write_method", "expiry_days"):
            if getattr(arguments, name) is not None:
                raise InputError(f"--{name.replace('_', '-')}: is for --warehouse bigquery:PROJECT.DATASET")
        if not (streaming or path_is_local(arguments.events)):
            raise InputError(f"--events: into a folder only a folder is ingested, got {arguments.events!r}")
    if streaming:
        if arguments.write_method == FILE_LOADS:
            raise InputError("--write-method: file_loads is for batch, got a subscription")
        return arguments.write_method or STREAMING_INSERTS
    for name in ("timestamp_attribute", "dead_letter_topic"):
        if getattr(arguments, name):
            raise InputError(f"--{name.replace('_', '-')}: is for --events pubsub:…")
    return arguments.write_method or FILE_LOADS


def run_streaming(
    arguments: Any, destination: "Path | Dataset", write_method: str, pipeline_options: PipelineOptions
) -> None:
    """Starts the streaming job; returns when the runner does (Dataflow: once it has been submitted)."""
    from beam_jobs import pubsub

    subscription = pubsub.parse_subscription(arguments.events)
    pubsub.check_subscription(subscription)
    if arguments.dead_letter_topic:
        pubsub.check_topic(arguments.dead_letter_topic)
    if isinstance(destination, Path):
        warehouse.create(destination)
    else:
        from beam_jobs import bigquery

        bigquery.ensure_tables(destination, arguments.expiry_days)
    pipeline_options.view_as(StandardOptions).streaming = True
    options.local_by_default(pipeline_options, options.LOCAL_STREAMING_RUNNER)
    pipeline = beam.Pipeline(options=pipeline_options)
    build_streaming_pipeline(
        pipeline,
        subscription,
        destination,
        write_method,
        arguments.timestamp_attribute,
        arguments.dead_letter_topic,
        shape_from(arguments),
    )
    result = pipeline.run()
    if not options.is_dataflow(pipeline_options):
        result.wait_until_finish()


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point."""
    return options.run_main(JOB, run, argv)


if __name__ == "__main__":
    # Under its own name: what is pickled to workers from `__main__` would be pickled with all its globals.
    from beam_jobs import ingest_events

    sys.exit(ingest_events.main())
