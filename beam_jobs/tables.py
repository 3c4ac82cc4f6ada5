"""Records as Arrow rows. Schemas derive from the contract; a batch is a `RecordBatch`."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha256
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.id_hashes import ID_BYTES, mixed
from contracts.records import utc_microseconds
from contracts.schemas import Column, Table, columns

_ARROW_TYPES = {
    "STRING": pa.string(),
    "INT64": pa.int64(),
    "FLOAT64": pa.float64(),
    "BOOL": pa.bool_(),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
    "BYTES": pa.binary(),
}


class TableRows(NamedTuple):
    """Rows for one table; `name` is the same at each read of the same input."""

    name: str
    rows: pa.RecordBatch


class RowsPart(Protocol):
    """One worker's share of a read."""

    def read(self) -> Iterator[pa.RecordBatch]:
        """Its rows, with the contract's schema, in no particular order; repeated rows are not removed."""


class ObservationDim(NamedTuple):
    """The number of decisions (each counted once) with observations of `length`, and the id of one of them."""

    length: int
    decisions: int
    example: str


def arrow_schema(table: Table, names: Sequence[str] | None = None) -> pa.Schema:
    """The Arrow schema of `table`, in the order of the record's fields; with `names`, of those columns alone."""
    schema = record_schema(table.record)
    return schema if names is None else pa.schema([schema.field(name) for name in names])


@cache
def record_schema(record: type[msgspec.Struct]) -> pa.Schema:
    """The Arrow schema of `record`, in field order."""
    return pa.schema([_field(column) for column in columns(record)])


def _field(column: Column) -> pa.Field:
    kind = _ARROW_TYPES[column.type]
    if column.mode == "REPEATED":
        return pa.field(column.name, pa.list_(pa.field("item", kind, nullable=False)), nullable=False)
    return pa.field(column.name, kind, nullable=column.mode == "NULLABLE")


def dead_letter_key(row: Mapping[str, Any]) -> str:
    """A text that only this row of `dead_letters` has: its payload's SHA-256, its time in microseconds, its source."""
    return f"{sha256(row['payload']).hexdigest()} {utc_microseconds(row['failed_at'])} {row['source'] or ''}"


def record_batch(table: Table, records: Sequence[msgspec.Struct]) -> pa.RecordBatch:
    """`records` of `table.record` as rows."""
    schema = arrow_schema(table)
    return pa.record_batch([_array(field, map(attrgetter(field.name), records)) for field in schema], schema=schema)


def _array(field: pa.Field, values: Any) -> pa.Array:
    if pa.types.is_list(field.type):
        lists = list(values)
        offsets = pa.array([0, *accumulate(map(len, lists))], pa.int32())
        return pa.ListArray.from_arrays(
            offsets, pa.array(chain.from_iterable(lists), field.type.value_type), type=field.type
        )
    if pa.types.is_timestamp(field.type):
        # As integers: Arrow's conversion of times with a time zone is several times slower.
        values = (None if moment is None else utc_microseconds(moment) for moment in values)
    return pa.array(list(values), field.type)


def choose_dim(dims: Sequence[ObservationDim], wanted: int | None = None) -> int | None:
    """The length of observation that a window keeps: the `wanted` one, or the most frequent, of equals the largest.

    None for a window without decisions when no length is wanted.
    """
    if wanted is not None or not dims:
        return wanted
    return max(dims, key=lambda dim: (dim.decisions, dim.length)).length


def id_text(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """[N, 36] uint8: the text of ids. Raises ValueError for one of another length."""
    whole = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    if not len(whole):
        return np.zeros((0, ID_BYTES), np.uint8)
    _, ends, text = whole.buffers()
    offsets = np.frombuffer(ends, np.int32)[whole.offset : whole.offset + len(whole) + 1]
    if (wrong := np.diff(offsets) != ID_BYTES).any():
        raise ValueError(f"ids must have {ID_BYTES} characters, got {whole[int(wrong.argmax())]}")
    return np.frombuffer(text, np.uint8)[offsets[0] : offsets[-1]].reshape(-1, ID_BYTES)


def count_distinct(ids: pa.ChunkedArray) -> int:
    """How many different ids there are."""
    hashes = np.sort(mixed(id_text(ids)))
    # Equal ids have equal hashes. So this is exact, and counting the texts takes several times as long.
    return len(ids) if (hashes[1:] != hashes[:-1]).all() else int(pc.count_distinct(ids).as_py())
