"""Records as Arrow rows: schemas derive from the contract, and a batch is a `RecordBatch`."""

from collections.abc import Sequence
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

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
    """Rows for one table; `name` is the same whenever the same input is read again."""

    name: str
    rows: pa.RecordBatch


class ObservationDim(NamedTuple):
    """How many decisions (each counted once) have observations of `length`, and one of them."""

    length: int
    decisions: int
    example: str


def arrow_schema(table: Table) -> pa.Schema:
    """The Arrow schema of `table`, in the order of the record's fields."""
    return record_schema(table.record)


def record_schema(record: type[msgspec.Struct]) -> pa.Schema:
    """The Arrow schema of `record`, in field order."""
    return pa.schema([_field(column) for column in columns(record)])


def _field(column: Column) -> pa.Field:
    kind = _ARROW_TYPES[column.type]
    if column.mode == "REPEATED":
        return pa.field(column.name, pa.list_(pa.field("item", kind, nullable=False)), nullable=False)
    return pa.field(column.name, kind, nullable=column.mode == "NULLABLE")


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
        # In integers: Arrow's own conversion of moments with a time zone is several times as slow.
        values = (None if moment is None else utc_microseconds(moment) for moment in values)
    return pa.array(list(values), field.type)
