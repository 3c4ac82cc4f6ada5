"""Sends dead letters through the current code again, and moves those that can be read now into their tables.

    python -m beam_jobs.replay_dead_letters --warehouse runs/demo/warehouse \\
        --start 2026-01-01T00:00:00Z --end 2026-01-02T00:00:00Z

What still cannot be read stays a dead letter, as it was. Rows are stored before their dead letters are removed: a replay
that was killed is run again, and what it stored twice is removed when the tables are read. BigQuery does not remove rows
that were streamed in the last 90 minutes: they are counted, and a later replay removes them.
"""

import sys
from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import options, warehouse
from beam_jobs.ingest_events import FILE_LOADS, StoreEvents
from beam_jobs.payloads import EVENTS_A_BATCH, ParsedEvents, ParseEvents, PayloadBatch, readable
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


def to_payloads(letters: TableRows) -> PayloadBatch:
    """The dead letters that can be read now, as events that have just come."""
    rows = [row for row in letters.rows.to_pylist() if readable(row["payload"])]
    return PayloadBatch(
        f"replay-{letters.name}",
        [row["payload"] for row in rows],
        [row["source"] or "" for row in rows],
        [row["failed_at"] for row in rows],
    )


def build_pipeline(
    pipeline: beam.Pipeline, letters: Sequence[TableRows], destination: "Path | Dataset"
) -> ParsedEvents:
    """The job over batches of dead letters. Returns what they are now."""
    parsed = (
        pipeline
        | "DeadLetters" >> beam.Create(letters)
        | "Spread" >> beam.Reshuffle()
        | "ToPayloads" >> beam.Map(to_payloads)
        | "ParseEvents" >> ParseEvents()
    )
    parsed | "StoreEvents" >> StoreEvents(destination, FILE_LOADS)
    return parsed


def replay(
    source: "Path | Dataset", start: datetime, end: datetime, pipeline_options: PipelineOptions | None = None
) -> ReplayCounts:
    """Replays the dead letters that failed in `[start, end)`. Raises InputError: there are no tables at `source`."""
    beam_options = options.local_by_default(pipeline_options or PipelineOptions([]))
    if isinstance(source, Path):
        return _replay_files(source, start, end, beam_options)
    return _replay_bigquery(source, start, end, beam_options)


def _run(letters: list[TableRows], destination: "Path | Dataset", beam_options: PipelineOptions) -> ReplayCounts:
    readable_now = [sum(map(readable, batch.rows.column("payload").to_pylist())) for batch in letters]
    if any(readable_now):
        with beam.Pipeline(options=beam_options) as pipeline:
            build_pipeline(pipeline, letters, destination)
    total = sum(batch.rows.num_rows for batch in letters)
    return ReplayCounts(letters=total, replayed=sum(readable_now), remaining=total - sum(readable_now))


def _replay_files(folder: Path, start: datetime, end: datetime, beam_options: PipelineOptions) -> ReplayCounts:
    paths = [Path(path) for path in warehouse.files(folder, DEAD_LETTERS, start, end)]
    with warehouse.locked(folder):
        chosen = {path: _inside(path, start, end) for path in paths}
        letters = [
            TableRows(path.name.removesuffix(".parquet"), batch)
            for path, (rows, inside) in chosen.items()
            for batch in rows.filter(pa.array(inside)).combine_chunks().to_batches()
        ]
        counts = _run(letters, folder, beam_options)
        for path, (rows, inside) in chosen.items():
            payloads = rows.column("payload").to_pylist()
            gone = inside & np.array([readable(payload) for payload in payloads], bool)
            if gone.all():
                path.unlink()
            elif gone.any():
                unfinished = path.with_suffix(".unfinished")
                pq.write_table(rows.filter(pa.array(~gone)), unfinished, compression="zstd")
                unfinished.rename(path)
    return counts


def _inside(path: Path, start: datetime, end: datetime) -> tuple[pa.Table, np.ndarray]:
    """The rows of a file, and which of them failed in `[start, end)`."""
    rows = pq.read_table(path, partitioning=None)
    moments = rows.column(DEAD_LETTERS.partitioned_by).cast(pa.int64()).to_numpy()
    return rows, (moments >= utc_microseconds(start)) & (moments < utc_microseconds(end))


def _replay_bigquery(dataset: "Dataset", start: datetime, end: datetime, beam_options: PipelineOptions) -> ReplayCounts:
    from google.api_core import exceptions

    from beam_jobs import bigquery

    rows = bigquery.read_all(dataset, DEAD_LETTERS, start, end).combine_chunks()
    # The name tells load jobs apart: the same letters, the same job.
    letters = [
        TableRows(blake2b(repr(batch.column("source").to_pylist()).encode(), digest_size=16).hexdigest(), batch)
        for batch in rows.to_batches(max_chunksize=EVENTS_A_BATCH)
    ]
    counts = _run(letters, dataset, beam_options)
    gone = [row["source"] for row in rows.to_pylist() if row["source"] and readable(row["payload"])]
    if not gone:
        return counts
    try:
        bigquery.delete_dead_letters(dataset, gone, start, end)
    except exceptions.BadRequest as error:
        if "streaming buffer" not in str(error):
            raise
        return msgspec.structs.replace(counts, not_removed_yet=len(gone))
    return counts


def parser() -> options.JobParser:
    """The job's flags."""
    flags = options.JobParser(JOB, __doc__.split("\n\n")[0])
    flags.flag("warehouse", options.TEXT, "folder of the tables, or bigquery:PROJECT.DATASET")
    flags.flag("start", options.MOMENT, "first moment of failure, as 2026-01-01T00:00:00Z")
    flags.flag("end", options.MOMENT, "the moment after the last")
    return flags


def run(argv: Sequence[str] | None) -> None:
    """Parses flags and runs the job."""
    arguments, pipeline_options = parser().parse_with_beam(argv)
    if arguments.end <= arguments.start:
        raise InputError(f"--end must be after --start, got {arguments.end.isoformat()}")
    source: Path | Dataset = Path(arguments.warehouse)
    if arguments.warehouse.startswith("bigquery:"):
        from beam_jobs import bigquery

        source = bigquery.parse_dataset(arguments.warehouse)
    counts = replay(source, arguments.start, arguments.end, pipeline_options)
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
