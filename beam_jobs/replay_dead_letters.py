"""Sends dead letters through the current code again, and moves those that can be read now into their tables.

    python -m beam_jobs.replay_dead_letters --warehouse runs/demo/warehouse \\
        --start 2026-01-01T00:00:00Z --end 2026-01-02T00:00:00Z

What still cannot be read stays a dead letter, as it was; what BigQuery refuses again is one with the new reason. Decisions
that were set aside because no policy could be trained on them stay, unless `--observation-dim` and `--num-actions` say what
fits now. Rows are stored before their dead letters are removed, which is the job's last step: a replay that was killed is run
again, and what it stored twice is removed when the tables are read. BigQuery does not remove rows that were streamed in the
last 90 minutes: they are counted, and a later replay removes them.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import options, warehouse
from beam_jobs.ingest_events import FILE_LOADS, StoreEvents
from beam_jobs.payloads import (
    ANY_SHAPE,
    EVENTS_A_BATCH,
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
from beam_jobs.places import parse_warehouse
from beam_jobs.tables import TableRows
from contracts.errors import InputError
from contracts.records import utc_microseconds
from contracts.schemas import DEAD_LETTERS

if TYPE_CHECKING:
    from beam_jobs.bigquery import Dataset

JOB = "replay_dead_letters"


class ReplayCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the dead letters of a range of time: `letters = replayed + remaining`."""

    letters: int = 0
    replayed: int = 0
    remaining: int = 0
    not_removed_yet: int = 0  # of those replayed: BigQuery keeps what was streamed a moment ago


def fits(letter: Mapping[str, Any], shape: DecisionShape) -> bool:
    """Whether a row of `dead_letters` can be read now, and trained on."""
    if letter["error_type"] == ShapeError.__name__ and shape == ANY_SHAPE:
        return False  # nobody said what fits
    return readable(letter["payload"], shape)


def to_payloads(letters: TableRows, shape: DecisionShape) -> PayloadBatch:
    """The dead letters that can be read now, as events that have just come."""
    rows = [row for row in letters.rows.to_pylist() if fits(row, shape)]
    # What is stored is named by its payloads too: a later code reads others of the same letters, and replaces nothing.
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
    source: "Path | Dataset",
    start: datetime,
    end: datetime,
    shape: DecisionShape = ANY_SHAPE,
    pipeline_options: PipelineOptions | None = None,
) -> ReplayCounts | None:
    """Replays the dead letters that failed in `[start, end)`; None when the job was submitted, and runs on elsewhere.

    Raises InputError: there are no tables at `source`.
    """
    beam_options = options.local_by_default(pipeline_options or PipelineOptions([]))
    if isinstance(source, Path):
        return _replay_files(source, start, end, shape, beam_options)
    return _replay_bigquery(source, start, end, shape, beam_options)


def _replay_files(
    folder: Path, start: datetime, end: datetime, shape: DecisionShape, beam_options: PipelineOptions
) -> ReplayCounts:
    with warehouse.locked(folder):
        paths = map(Path, warehouse.files(folder, DEAD_LETTERS, start, end))
        chosen = {path: _inside(path, start, end) for path in paths}
        letters = [
            TableRows(path.name.removesuffix(".parquet"), batch)
            for path, (rows, inside) in chosen.items()
            for batch in rows.filter(pa.array(inside)).combine_chunks().to_batches()
        ]
        gone = {
            path: inside & np.array([fits(row, shape) for row in rows.to_pylist()], bool)
            for path, (rows, inside) in chosen.items()
        }
        total = sum(batch.rows.num_rows for batch in letters)
        replayed = sum(int(rows.sum()) for rows in gone.values())
        if replayed:
            with beam.Pipeline(options=beam_options) as pipeline:
                store(pipeline | "DeadLetters" >> beam.Create(letters), folder, shape)
        for path, (rows, _) in chosen.items():
            if gone[path].all():
                path.unlink()
            elif gone[path].any():
                warehouse.write_file(path, DEAD_LETTERS, rows.filter(pa.array(~gone[path])))
        return ReplayCounts(letters=total, replayed=replayed, remaining=total - replayed)


def _inside(path: Path, start: datetime, end: datetime) -> tuple[pa.Table, np.ndarray]:
    """The rows of a file, and which of them failed in `[start, end)`."""
    rows = pq.read_table(path, partitioning=None)
    moments = rows.column(DEAD_LETTERS.partitioned_by).cast(pa.int64()).to_numpy()
    return rows, (moments >= utc_microseconds(start)) & (moments < utc_microseconds(end))


def store(letters: Any, destination: "Path | Dataset", shape: DecisionShape = ANY_SHAPE) -> Any:
    """PCollection[TableRows] of dead letters -> what `StoreEvents` says of those that can be read now."""
    payloads = letters | "Spread" >> beam.Reshuffle() | "ToPayloads" >> beam.Map(to_payloads, shape)
    parsed = payloads | ParseEvents(shape)
    return parsed | "StoreEvents" >> StoreEvents(destination, FILE_LOADS)


def _replay_bigquery(
    dataset: "Dataset", start: datetime, end: datetime, shape: DecisionShape, beam_options: PipelineOptions
) -> ReplayCounts | None:
    from beam_jobs import bigquery

    bigquery.ensure_tables(dataset, None)
    pipeline = beam.Pipeline(options=beam_options)
    build_pipeline(pipeline, dataset, start, end, shape)
    result = pipeline.run()
    if options.is_dataflow(beam_options):
        return None
    result.wait_until_finish()
    return ReplayCounts(**options.counters(result, ReplayCounts.__struct_fields__))


def build_pipeline(
    pipeline: beam.Pipeline, dataset: "Dataset", start: datetime, end: datetime, shape: DecisionShape = ANY_SHAPE
) -> beam.PCollection[ReplayCounts]:
    """The job on BigQuery, from reading dead letters to removing them. Returns what became of them."""
    letters = (
        pipeline
        | "Range" >> beam.Create([(start, end)])
        | "ReadDeadLetters" >> beam.ParDo(ReadDeadLettersFn(dataset))
        | "AsRead" >> beam.Reshuffle()  # what is stored and what is removed are the same letters
    )
    stored = store(letters, dataset, shape)
    counts = stored | "WithoutNames" >> beam.Values() | "AddUp" >> beam.CombineGlobally(add_counts)
    total = letters | "Letters" >> beam.Map(count_rows) | "Total" >> beam.CombineGlobally(sum)
    return (
        pipeline
        | "Last" >> beam.Create([(start, end)])
        | "RemoveDeadLetters"
        >> beam.ParDo(
            RemoveDeadLettersFn(dataset),
            total=beam.pvalue.AsSingleton(total),
            stored=beam.pvalue.AsSingleton(counts),
            keys=beam.pvalue.AsList(letters | "KeysOfReadable" >> beam.FlatMap(keys_of_readable, shape)),
        )
    )


def count_rows(letters: TableRows) -> int:
    """How many they are."""
    return letters.rows.num_rows


def keys_of_readable(letters: TableRows, shape: DecisionShape) -> Iterator[str]:
    """Which rows of `dead_letters` can be read now."""
    from beam_jobs import bigquery

    return (bigquery.dead_letter_key(row) for row in letters.rows.to_pylist() if fits(row, shape))


class ReadDeadLettersFn(beam.DoFn):
    """[start, end) -> TableRows of the dead letters that failed in it."""

    def __init__(self, dataset: "Dataset") -> None:
        self._dataset = dataset

    def process(self, moments: tuple[datetime, datetime]) -> Iterator[TableRows]:
        """Reads all of it; dead letters are few."""
        from beam_jobs import bigquery

        rows = bigquery.read_all(self._dataset, DEAD_LETTERS, *moments).combine_chunks()
        for number, batch in enumerate(rows.to_batches(max_chunksize=EVENTS_A_BATCH)):
            yield TableRows(f"{number:06d}", batch)


class RemoveDeadLettersFn(beam.DoFn):
    """[start, end) -> ReplayCounts, once the dead letters that can be read now are stored and removed."""

    def __init__(self, dataset: "Dataset") -> None:
        self._dataset = dataset
        self._counters = {name: Metrics.counter(JOB, name) for name in ReplayCounts.__struct_fields__}

    def process(
        self, moments: tuple[datetime, datetime], total: int, stored: IngestCounts, keys: Sequence[str]
    ) -> Iterator[ReplayCounts]:
        """Raises RuntimeError, and removes nothing, when not every one is accounted for."""
        from google.api_core import exceptions

        from beam_jobs import bigquery

        replayed = stored.decisions + stored.rewards
        if replayed + stored.dead_letters != len(keys):
            raise RuntimeError(f"not every one of {len(keys)} dead letters is accounted for: {stored}")
        not_removed_yet = 0
        try:
            bigquery.delete_dead_letters(self._dataset, keys, *moments)
        except exceptions.BadRequest as error:
            if "streaming buffer" not in str(error):
                raise
            not_removed_yet = len(keys)
        counts = ReplayCounts(
            letters=total, replayed=replayed, remaining=total - replayed, not_removed_yet=not_removed_yet
        )
        for name, counter in self._counters.items():
            counter.inc(getattr(counts, name))
        yield counts


def parser() -> options.JobParser:
    """The job's flags."""
    flags = options.JobParser(JOB, __doc__)
    flags.flag("warehouse", options.TEXT, "folder of the tables, or bigquery:PROJECT.DATASET")
    flags.flag("start", options.MOMENT, "first moment of failure, as 2026-01-01T00:00:00Z")
    flags.flag("end", options.MOMENT, "the moment after the last")
    add_shape_flags(flags)
    return flags


def run(argv: Sequence[str] | None) -> None:
    """Parses flags and runs the job."""
    arguments, pipeline_options = parser().parse_with_beam(argv)
    if arguments.end <= arguments.start:
        raise InputError(f"--end must be after --start, got {arguments.end.isoformat()}")
    source = parse_warehouse(arguments.warehouse, pipeline_options)
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
    return options.run_main(JOB, run, argv)


if __name__ == "__main__":
    # Under its own name: what is pickled to workers from `__main__` would be pickled with all its globals.
    from beam_jobs import replay_dead_letters

    sys.exit(replay_dead_letters.main())
