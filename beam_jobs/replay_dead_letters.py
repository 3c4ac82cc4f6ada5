"""Parses dead letters again with the current code, and moves those that it can read into their tables.

    python -m beam_jobs.replay_dead_letters --warehouse runs/demo/warehouse \\
        --start 2026-01-01T00:00:00Z --end 2026-01-02T00:00:00Z

A letter that still cannot be read stays as it was. A row that BigQuery refuses again becomes a dead letter with the new
reason. Decisions that no policy could be trained on stay, unless `--observation-dim` and `--num-actions` give the
shape that fits now.

The job removes dead letters in its last step, after it has stored their rows. It is safe to kill and rerun: rows that it
stored twice are removed when the tables are read. BigQuery does not remove rows that were streamed in the last 90
minutes: the job counts them, and a later replay removes them.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any

import apache_beam as beam
import msgspec
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import options
from beam_jobs.ingest_events import StoreEvents
from beam_jobs.payloads import (
    ANY_SHAPE,
    EVENTS_PER_BATCH,
    DecisionShape,
    IngestCounts,
    ParseEvents,
    PayloadBatch,
    ShapeError,
    add_counts,
    add_shape_flags,
    readable,
    shape_from,
)
from beam_jobs.tables import TableRows, arrow_schema, dead_letter_key
from beam_jobs.warehouses import Warehouse, open_warehouse
from contracts import command_line
from contracts.errors import InputError
from contracts.schemas import DEAD_LETTERS

JOB = "replay_dead_letters"


class ReplayCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the dead letters of a range of time: `letters = replayed + remaining`."""

    letters: int = 0
    replayed: int = 0
    remaining: int = 0
    not_removed_yet: int = 0  # of those replayed: BigQuery keeps rows for 90 minutes after they were streamed


def fits(letter: Mapping[str, Any], shape: DecisionShape) -> bool:
    """Whether a row of `dead_letters` can be read now, and trained on."""
    if letter["error_type"] == ShapeError.__name__ and shape == ANY_SHAPE:
        return False  # no flag gives the shape that fits
    return readable(letter["payload"], shape)


def to_payloads(letters: TableRows, shape: DecisionShape) -> PayloadBatch:
    """The dead letters that can be read now, as events that have just arrived."""
    rows = [row for row in letters.rows.to_pylist() if fits(row, shape)]
    # The name derives from the payloads too: a later version reads other ones of these letters, and must replace nothing.
    digest = blake2b(digest_size=16)
    for row in rows:
        digest.update(len(row["payload"]).to_bytes(8) + row["payload"])
    return PayloadBatch(
        f"replay-{letters.name}-{digest.hexdigest()}",
        [row["payload"] for row in rows],
        [row["source"] or "" for row in rows],
        [row["failed_at"] for row in rows],
    )


def replay(
    source: Warehouse,
    start: datetime,
    end: datetime,
    shape: DecisionShape = ANY_SHAPE,
    pipeline_options: PipelineOptions | None = None,
) -> ReplayCounts | None:
    """Replays the dead letters that failed in `[start, end)`. None when Dataflow took the job.

    Raises InputError when there are no tables at `source`; OperationError when `source` does not answer or a file cannot
    be written.
    """
    beam_options = options.local_by_default(pipeline_options or PipelineOptions([]))
    source.check()
    with source.locked():
        pipeline = beam.Pipeline(options=beam_options)
        build_pipeline(pipeline, source, start, end, shape)
        with options.job_errors():
            result = pipeline.run()
            if options.is_dataflow(beam_options):
                return None
            result.wait_until_finish()
    return ReplayCounts(**options.counters(result, ReplayCounts.__struct_fields__))


def build_pipeline(
    pipeline: beam.Pipeline, source: Warehouse, start: datetime, end: datetime, shape: DecisionShape = ANY_SHAPE
) -> beam.PCollection[ReplayCounts]:
    """The job, from reading dead letters to removing them. Returns what became of them."""
    letters = (
        pipeline
        | "Range" >> beam.Create([(start, end)])
        | "ReadDeadLetters" >> beam.ParDo(ReadDeadLettersFn(source))
        | "AsRead" >> beam.Reshuffle()  # what is stored and what is removed are the same letters
    )
    payloads = letters | "Spread" >> beam.Reshuffle() | "ToPayloads" >> beam.Map(to_payloads, shape)
    parsed = payloads | ParseEvents(shape)
    stored = parsed | "StoreEvents" >> StoreEvents(source.sink())
    counts = stored | "WithoutNames" >> beam.Values() | "AddUp" >> beam.CombineGlobally(add_counts)
    total = letters | "Letters" >> beam.Map(count_rows) | "Total" >> beam.CombineGlobally(sum)
    return (
        pipeline
        | "Last" >> beam.Create([(start, end)])
        | "RemoveDeadLetters"
        >> beam.ParDo(
            RemoveDeadLettersFn(source),
            total=beam.pvalue.AsSingleton(total),
            stored=beam.pvalue.AsSingleton(counts),
            keys=beam.pvalue.AsList(letters | "KeysOfReadable" >> beam.FlatMap(keys_of_readable, shape)),
        )
    )


def count_rows(letters: TableRows) -> int:
    """How many rows a batch has."""
    return letters.rows.num_rows


def keys_of_readable(letters: TableRows, shape: DecisionShape) -> Iterator[str]:
    """The keys of the dead letters that can be read now."""
    return (dead_letter_key(row) for row in letters.rows.to_pylist() if fits(row, shape))


class ReadDeadLettersFn(beam.DoFn):
    """[start, end) -> TableRows of the dead letters that failed in it; the same batches at each read of the same rows."""

    def __init__(self, source: Warehouse) -> None:
        self._source = source

    def process(self, moments: tuple[datetime, datetime]) -> Iterator[TableRows]:
        """Reads all of them in one worker, because dead letters are few."""
        parts = self._source.parts(DEAD_LETTERS, *moments)
        rows = pa.Table.from_batches([batch for part in parts for batch in part.read()], arrow_schema(DEAD_LETTERS))
        keys = [dead_letter_key(row) for row in rows.to_pylist()]
        order = pa.array(sorted(range(len(keys)), key=keys.__getitem__), pa.int64())
        ordered = rows.take(order).combine_chunks()
        for number, batch in enumerate(ordered.to_batches(max_chunksize=EVENTS_PER_BATCH)):
            yield TableRows(f"{number:06d}", batch)


class RemoveDeadLettersFn(beam.DoFn):
    """[start, end) -> ReplayCounts, once the dead letters that can be read now are stored and removed."""

    def __init__(self, source: Warehouse) -> None:
        self._source = source
        self._counters = {name: Metrics.counter(JOB, name) for name in ReplayCounts.__struct_fields__}

    def process(
        self, moments: tuple[datetime, datetime], total: int, stored: IngestCounts, keys: Sequence[str]
    ) -> Iterator[ReplayCounts]:
        """Raises RuntimeError, and removes nothing, when a dead letter is not accounted for."""
        replayed = stored.stored - stored.dead_letters
        if stored.stored != len(keys):
            raise RuntimeError(f"not every one of {len(keys)} dead letters is accounted for: {stored}")
        removed = self._source.remove_dead_letters(set(keys), *moments)
        counts = ReplayCounts(
            letters=total,
            replayed=replayed,
            remaining=total - replayed,
            not_removed_yet=0 if removed else len(keys),
        )
        for name, counter in self._counters.items():
            counter.inc(getattr(counts, name))
        yield counts


def parser() -> options.JobParser:
    """The job's flags."""
    flags = options.JobParser(JOB, __doc__)
    flags.flag("warehouse", options.TEXT, "folder of the tables, or bigquery:PROJECT.DATASET")
    flags.flag("start", options.MOMENT, "earliest time of failure, as 2026-01-01T00:00:00Z")
    flags.flag("end", options.MOMENT, "end of the range, which is not in it")
    add_shape_flags(flags)
    return flags


def run(argv: Sequence[str] | None) -> None:
    """Parses flags and runs the job."""
    arguments, pipeline_options = parser().parse_with_beam(argv)
    if arguments.end <= arguments.start:
        raise InputError(f"--end must be after --start, got {arguments.end.isoformat()}")
    source = open_warehouse(arguments.warehouse, pipeline_options)
    counts = replay(source, arguments.start, arguments.end, shape_from(arguments), pipeline_options)
    if counts is None:
        print("submitted")
        return
    print(
        f"{counts.letters} dead letters: {counts.replayed} replayed, {counts.remaining} still cannot be read"
        + (f"; {counts.not_removed_yet} not removed yet" if counts.not_removed_yet else "")
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point."""
    return command_line.run_main(f"beam_jobs.{JOB}", run, argv)


if __name__ == "__main__":
    # By its module name: Beam pickles a function of `__main__` with all its globals.
    from beam_jobs import replay_dead_letters

    sys.exit(replay_dead_letters.main())
