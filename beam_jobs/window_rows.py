"""The warehouse's rows that belong to one training window, as the inputs of `beam_jobs.reward_join`."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa

from beam_jobs.reward_join import KEY_COLUMNS, NamedRows, split_into_buckets
from beam_jobs.tables import RowsPart, arrow_schema
from beam_jobs.warehouses import Warehouse
from contracts.schemas import DECISIONS, REWARDS, STATUSES, Table
from contracts.windows import TrainingWindow, WindowSettings


class RowRange(NamedTuple):
    """One read: rows of `table` in `[start, end)`, for the join's input `name`. `columns` None: all."""

    name: str
    table: Table
    start: datetime
    end: datetime
    columns: tuple[str, ...] | None


def row_ranges(window: TrainingWindow, settings: WindowSettings) -> list[RowRange]:
    """The reads that the join of `window` needs. Raises OverflowError when one begins or ends outside the years 1 to 9999."""
    reward_window = timedelta(seconds=settings.reward_window_seconds)
    earliest = window.start - timedelta(seconds=settings.late_horizon_seconds)
    just_after = timedelta(microseconds=1)  # a reward at the very end of its reward window is in time
    answered = window.start - reward_window, window.end + reward_window + just_after
    return [
        RowRange("decisions", DECISIONS, window.start, window.end, None),
        RowRange("earlier", DECISIONS, earliest, window.start, KEY_COLUMNS),
        RowRange("rewards", REWARDS, *answered, None),
        RowRange("statuses", STATUSES, *answered, None),
    ]


def read_tables(source: Warehouse, window: TrainingWindow, settings: WindowSettings) -> dict[str, pa.Table]:
    """The inputs of the join of `window`, by name, read here: for windows that fit into memory."""
    tables = {}
    for rows in row_ranges(window, settings):
        parts = source.parts(rows.table, rows.start, rows.end, rows.columns)
        schema = arrow_schema(rows.table, rows.columns)
        tables[rows.name] = pa.Table.from_batches([batch for part in parts for batch in part.read()], schema)
    return tables


class ReadWindowRows(beam.PTransform):
    """PBegin -> PCollection of (bucket, (name, RecordBatch)): the rows of all `ranges`, each with its range's name.

    One collection holds all of them: a collection for each range, joined again by bucket, would add steps to the job
    that copy every row.
    """

    def __init__(self, source: Warehouse, ranges: Sequence[RowRange], num_buckets: int) -> None:
        super().__init__()
        self._source = source
        self._ranges = ranges
        self._num_buckets = num_buckets

    def expand(self, pipeline: Any) -> Any:
        """Opens each read, spreads its parts over the workers, and splits what they read by bucket."""
        return (
            pipeline
            | "Ranges" >> beam.Create(self._ranges, reshuffle=False)
            | "OpenParts" >> beam.ParDo(OpenPartsFn(self._source))
            | "Spread" >> beam.GroupByKey()
            | "ReadPart" >> beam.ParDo(ReadPartFn(self._num_buckets))
        )


class OpenPartsFn(beam.DoFn):
    """RowRange -> (a key that no other part has, (its name, RowsPart)) for each part of the read."""

    def __init__(self, source: Warehouse) -> None:
        self._source = source

    def process(self, rows: RowRange) -> Iterator[tuple[str, tuple[str, RowsPart]]]:
        """Opens one read."""
        for number, part in enumerate(self._source.parts(rows.table, rows.start, rows.end, rows.columns)):
            yield f"{rows.name}-{number}", (rows.name, part)


class ReadPartFn(beam.DoFn):
    """(key, (name, RowsPart) of that key) -> (bucket, (name, RecordBatch))."""

    def __init__(self, num_buckets: int) -> None:
        self._num_buckets = num_buckets

    def process(self, element: tuple[str, Iterable[tuple[str, RowsPart]]]) -> Iterator[tuple[int, NamedRows]]:
        """Reads one part."""
        for name, part in element[1]:
            for batch in part.read():
                for bucket, rows in split_into_buckets(pa.Table.from_batches([batch]), self._num_buckets):
                    yield bucket, NamedRows(name, rows)
