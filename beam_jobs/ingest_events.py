"""Reads events (decisions, rewards, activations and cancellations), sets unreadable ones aside, and writes the tables of the warehouse.

    python -m beam_jobs.ingest_events --events runs/demo/events --warehouse runs/demo/warehouse
    python -m beam_jobs.ingest_events --events pubsub:projects/P/subscriptions/events --warehouse bigquery:P.bandit

Every event becomes a row of `decisions`, `rewards`, `statuses` or `dead_letters`. An event that is logged twice is stored twice; the
repeat is removed when the tables are read. With `--observation-dim` and `--num-actions`, a decision that the policy in
training cannot learn from becomes a dead letter too.

From a folder or bucket the job is a batch job. It checks for each segment that the rows written add up to the events
read. A warehouse in a folder (`beam_jobs.warehouse`) ingests each segment once. It is safe to kill the job and rerun it
with the same flags: the files written depend only on the segment and those two flags, and the job notes that a segment
is ingested after it has written them. Into BigQuery the job loads every segment; a load job's id depends only on the
table and the segment's rows, and BigQuery runs each id once.

From a Pub/Sub subscription the job is a streaming job, with the runner's guarantee. Dataflow acknowledges a message when
its rows are stored, so each is stored at least once. Beam's local runner acknowledges first: when it is killed, the
messages that it holds are lost (34 of 2,928 in five kills). `orchestration.emulators` has a reader for the local runner
that acknowledges stored messages; with it, five kills lost none of 7,802.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import apache_beam as beam
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from beam_jobs import options
from beam_jobs.files import path_is_local
from beam_jobs.payloads import (
    ANY_SHAPE,
    BYTES_PER_BATCH,
    EVENTS_PER_BATCH,
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
from beam_jobs.places import SUBSCRIPTION_PREFIX, check_folder
from beam_jobs.warehouses import WRITE_METHODS, Sink, Warehouse, open_warehouse
from contracts import command_line
from contracts.errors import InputError
from contracts.event_segments import (
    SEALED_SUFFIX,
    foreign_files,
    is_segment,
    opened_at,
    seal_abandoned,
    sealed_segments,
    stem,
)
from contracts.records import one_line
from contracts.schemas import DEAD_LETTERS, DECISIONS, REWARDS, STATUSES


class StreamOutputs(NamedTuple):
    """The PCollections of the streaming job."""

    batches: Any  # PayloadBatch
    parsed: ParsedEvents
    stored: Any  # (name of a batch, IngestCounts) of the rows that are in the tables


class ReadSegmentFn(beam.DoFn):
    """Path of a sealed segment -> PayloadBatch; on `read`, the number of its events."""

    def process(self, segment: str) -> Iterator[Any]:
        """Reads a batch of lines at a time."""
        name = segment.rpartition("/")[2]
        opened = opened_at(Path(name))
        line = 1
        with FileSystems.open(segment, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            for number, payloads in enumerate(read_lines(file)):
                sources = [f"{name}:{line + place}" for place in range(len(payloads))]
                line += len(payloads)
                yield PayloadBatch(f"{stem(segment)}-{number:06d}", payloads, sources, [opened] * len(payloads))
        yield beam.pvalue.TaggedOutput("read", (stem(segment), IngestCounts(events=line - 1)))


def read_lines(file: BinaryIO) -> Iterator[list[bytes]]:
    """Batches of lines without their line ends, in bounded memory: a line too long to be an event is cut short."""
    lines: list[bytes] = []
    size = 0
    while line := file.readline(MAX_EVENT_BYTES + 1):
        end = line
        while len(end) >= MAX_EVENT_BYTES + 1 and not end.endswith(b"\n"):
            end = file.readline(MAX_EVENT_BYTES + 1)
        lines.append(line.removesuffix(b"\n"))
        size += len(line)
        if len(lines) >= EVENTS_PER_BATCH or size >= BYTES_PER_BATCH:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


class StoreEvents(beam.PTransform):
    """ParsedEvents -> PCollection of (name of a batch, IngestCounts of its rows that are in the tables).

    A row that its table refuses becomes a dead letter.
    """

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def expand(self, parsed: Any) -> Any:
        """One writer per table."""
        written = [
            rows | f"Write_{table.name}" >> beam.ParDo(self._sink(table)).with_outputs("refused", main="stored")
            for table, rows in ((DECISIONS, parsed.decisions), (REWARDS, parsed.rewards), (STATUSES, parsed.statuses))
        ]
        letters = [parsed.dead_letters, *(outputs.refused for outputs in written)] | "DeadLetters" >> beam.Flatten()
        kept = letters | f"Write_{DEAD_LETTERS.name}" >> beam.ParDo(self._sink(DEAD_LETTERS))
        return [*(outputs.stored for outputs in written), kept] | "Stored" >> beam.Flatten()


class CheckAccountedFn(beam.DoFn):
    """(segment, counts) -> the same, once every event of the segment is accounted for; the warehouse then notes it."""

    def __init__(self, destination: Warehouse) -> None:
        self._destination = destination

    def process(self, element: tuple[str, IngestCounts]) -> Iterator[tuple[str, IngestCounts]]:
        """Raises RuntimeError when rows stored do not add up to events read; then the segment is not noted."""
        segment, counts = element
        if counts.events != counts.stored:
            raise RuntimeError(f"segment {segment}: not every event is accounted for: {counts}")
        self._destination.note_ingested(segment, counts)
        yield element


def by_segment(element: tuple[str, IngestCounts]) -> tuple[str, IngestCounts]:
    """(name of a batch, counts) -> (its segment, counts). A batch's name is its segment's and a number."""
    name, counts = element
    return name.rpartition("-")[0], counts


def build_pipeline(
    pipeline: beam.Pipeline,
    segments: Sequence[str],
    destination: Warehouse,
    sink: Sink,
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
    stored = parsed | "StoreEvents" >> StoreEvents(sink)
    return (
        (read.read, stored | "BySegment" >> beam.Map(by_segment))
        | "Counts" >> beam.Flatten()
        | "AddUp" >> beam.CombinePerKey(add_counts)
        | "CheckAccounted" >> beam.ParDo(CheckAccountedFn(destination))
    )


def build_streaming_pipeline(
    pipeline: beam.Pipeline,
    subscription: str,
    sink: Sink,
    timestamp_attribute: str | None = None,
    dead_letter_topic: str | None = None,
    shape: DecisionShape = ANY_SHAPE,
) -> StreamOutputs:
    """The streaming job, which also publishes dead letters to `dead_letter_topic` when there is one."""
    from beam_jobs import pubsub

    batches = pipeline | "ReadEvents" >> pubsub.ReadEvents(subscription, timestamp_attribute)
    parsed = batches | "ParseEvents" >> ParseEvents(shape)
    stored = parsed | "StoreEvents" >> StoreEvents(sink)
    if dead_letter_topic:
        (
            parsed.dead_letters
            | "DeadLetterMessages" >> beam.FlatMap(pubsub.dead_letter_messages)
            | "PublishDeadLetters" >> beam.io.WriteToPubSub(dead_letter_topic, with_attributes=True)
        )
    return StreamOutputs(batches, parsed, stored)


def ingest(events: Path | str, destination: Warehouse, shape: DecisionShape = ANY_SHAPE) -> IngestCounts:
    """Runs the batch job in this process. Returns the counts of the segments that were not ingested yet.

    Segments whose writer died are sealed first. One ingestion at a time runs on an embedded warehouse; others wait.

    Raises InputError when `events` is not an event log, or `destination` cannot be a warehouse; OperationError when a
    file cannot be written or the warehouse does not answer.
    """
    counts = ingest_segments(str(events), destination, destination.sink(), PipelineOptions([]), shape=shape)
    assert counts is not None  # the local runner waits
    return counts


def ingest_segments(
    events: str,
    destination: Warehouse,
    sink: Sink,
    pipeline_options: PipelineOptions,
    *,
    shape: DecisionShape = ANY_SHAPE,
    expiry_days: float | None = None,
) -> IngestCounts | None:
    """The batch job over the sealed segments of the folder or bucket `events`. None when Dataflow took the job."""
    options.local_by_default(pipeline_options)
    check_events(events)
    destination.create(expiry_days)
    with destination.locked():
        ingested = destination.ingested()
        new = [path for path in find_segments(events) if stem(path) not in ingested]
        if not new:
            return IngestCounts()
        pipeline = beam.Pipeline(options=pipeline_options)
        build_pipeline(pipeline, new, destination, sink, shape)
        with options.job_errors():
            result = pipeline.run()
            if options.is_dataflow(pipeline_options):
                return None
            result.wait_until_finish()
    return IngestCounts(**options.counters(result, IngestCounts.__struct_fields__))


def check_events(events: str) -> None:
    """Raises InputError when `events` is a path of this machine that is not a folder."""
    if path_is_local(events) and not Path(events).is_dir():
        raise InputError(f"--events: a folder expected, got {events!r}")


def find_segments(events: str) -> list[str]:
    """Paths of the sealed segments of a folder or bucket, oldest first; in a folder, abandoned ones are sealed first.

    Raises InputError when a bucket cannot be read or holds none.
    """
    if path_is_local(events):
        seal_abandoned(Path(events))
        return [str(path) for path in sealed_segments(Path(events))]
    try:
        [matched] = FileSystems.match([f"{events.rstrip('/')}/*{SEALED_SUFFIX}"])
    except BeamIOError as error:
        raise InputError(f"--events: {events!r} cannot be read: {one_line(str(error), 200)}") from None
    paths = sorted(found.path for found in matched.metadata_list)
    if not (segments := [path for path in paths if is_segment(path.rpartition("/")[2])]):
        raise InputError(f"--events: {events!r} holds no sealed segments")
    return segments


def parser() -> options.JobParser:
    """The job's flags."""
    flags = options.JobParser(JOB, __doc__)
    flags.flag("events", options.TEXT, "folder of the event log, or pubsub:projects/PROJECT/subscriptions/NAME")
    flags.flag(
        "warehouse",
        options.TEXT,
        "folder of the tables, or bigquery:PROJECT.DATASET; tables that do not exist are created",
    )
    flags.flag(
        "write-method",
        options.TEXT,
        "how rows are written to BigQuery (default: streaming_inserts from a subscription, file_loads from a folder)",
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
        "expiry-days",
        options.number(0, above=True),
        "days until the partitions of a newly created table expire",
        default=None,
    )
    add_shape_flags(flags)
    return flags


def run(argv: Sequence[str] | None) -> None:
    """Parses flags and runs the job."""
    arguments, pipeline_options = parser().parse_with_beam(argv)
    destination = open_warehouse(arguments.warehouse, pipeline_options)
    streaming = arguments.events.startswith(SUBSCRIPTION_PREFIX)
    sink = destination.sink(arguments.write_method, streaming=streaming)
    if streaming:
        run_streaming(arguments, destination, sink, pipeline_options)
        return
    for name in ("timestamp_attribute", "dead_letter_topic"):
        if getattr(arguments, name):
            raise InputError(f"{command_line.flag_name(name)}: requires --events pubsub:…")
    check_folder("--events", arguments.events, pipeline_options)
    counts = ingest_segments(
        arguments.events,
        destination,
        sink,
        pipeline_options,
        shape=shape_from(arguments),
        expiry_days=arguments.expiry_days,
    )
    if counts is None:
        print("submitted")
        return
    print(
        f"{counts.events} events: {counts.decisions} decisions, {counts.rewards} rewards, "
        + (f"{counts.statuses} activations and cancellations, " if counts.statuses else "")
        + f"{counts.dead_letters} dead letters"
    )
    if path_is_local(arguments.events) and (foreign := foreign_files(Path(arguments.events))):
        print(f"{len(foreign)} files without a segment's name were ignored, the first is {foreign[0]}", file=sys.stderr)


def run_streaming(arguments: Any, destination: Warehouse, sink: Sink, pipeline_options: PipelineOptions) -> None:
    """Starts the streaming job; returns when the runner does (Dataflow: once it has accepted the job)."""
    from beam_jobs import pubsub

    subscription = pubsub.parse_subscription(arguments.events)
    pubsub.check_subscription(subscription)
    if arguments.dead_letter_topic:
        pubsub.check_topic(arguments.dead_letter_topic)
    destination.create(arguments.expiry_days)
    pipeline_options.view_as(StandardOptions).streaming = True
    options.local_by_default(pipeline_options, options.LOCAL_STREAMING_RUNNER)
    pipeline = beam.Pipeline(options=pipeline_options)
    build_streaming_pipeline(
        pipeline,
        subscription,
        sink,
        arguments.timestamp_attribute,
        arguments.dead_letter_topic,
        shape_from(arguments),
    )
    with options.job_errors():
        result = pipeline.run()
        if not options.is_dataflow(pipeline_options):
            result.wait_until_finish()


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point."""
    return command_line.run_main(f"beam_jobs.{JOB}", run, argv)


if __name__ == "__main__":
    # By its module name: Beam pickles a function of `__main__` with all its globals.
    from beam_jobs import ingest_events

    sys.exit(ingest_events.main())
