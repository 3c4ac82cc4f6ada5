"""Table schemas derived from the records, so that a field list is written once.

The four tables of the warehouse, their partition column and what makes a row unique when it is read.
"""

from typing import Literal, NamedTuple

import msgspec

from contracts.records import DeadLetter, Decision, RewardEvent, StatusEvent

ColumnType = Literal["STRING", "INT64", "FLOAT64", "BOOL", "TIMESTAMP", "BYTES"]

_COLUMN_TYPES: dict[type, ColumnType] = {
    msgspec.inspect.StrType: "STRING",
    msgspec.inspect.LiteralType: "STRING",
    msgspec.inspect.IntType: "INT64",
    msgspec.inspect.FloatType: "FLOAT64",
    msgspec.inspect.BoolType: "BOOL",
    msgspec.inspect.DateTimeType: "TIMESTAMP",
    msgspec.inspect.BytesType: "BYTES",
}


class Column(NamedTuple):
    """One column: `mode` as BigQuery says it."""

    name: str
    type: ColumnType
    mode: Literal["REQUIRED", "NULLABLE", "REPEATED"]
    description: str


class Table(NamedTuple):
    """A warehouse table. Rows are deduplicated by `key` when they are read, the earliest in `partitioned_by` first."""

    name: str
    record: type[msgspec.Struct]
    partitioned_by: str
    clustered_by: tuple[str, ...]
    key: tuple[str, ...]


DECISIONS = Table("decisions", Decision, "decided_at", ("policy_version",), ("decision_id",))
REWARDS = Table("rewards", RewardEvent, "occurred_at", ("decision_id",), ("decision_id", "occurred_at", "reward"))
STATUSES = Table("statuses", StatusEvent, "occurred_at", ("decision_id",), ("decision_id", "occurred_at", "status"))
DEAD_LETTERS = Table("dead_letters", DeadLetter, "failed_at", ("stage", "error_type"), ("payload", "source"))
TABLES = (DECISIONS, REWARDS, STATUSES, DEAD_LETTERS)


def columns(record: type[msgspec.Struct]) -> list[Column]:
    """The columns of `record` in field order. Raises TypeError for a field that no column type stands for."""
    info = msgspec.inspect.type_info(record)
    assert isinstance(info, msgspec.inspect.StructType)
    return [_column(field.encode_name, field.type) for field in info.fields]


def _column(name: str, field_type: msgspec.inspect.Type) -> Column:
    mode: Literal["REQUIRED", "NULLABLE", "REPEATED"] = "REQUIRED"
    description = ""
    if isinstance(field_type, msgspec.inspect.UnionType):
        inner = [member for member in field_type.types if not isinstance(member, msgspec.inspect.NoneType)]
        if len(inner) != 1:
            raise TypeError(f"{name}: a column holds one type, got {field_type}")
        field_type, mode = inner[0], "NULLABLE"
    if isinstance(field_type, msgspec.inspect.Metadata):
        description = (field_type.extra_json_schema or {}).get("description", "")
        field_type = field_type.type
    if isinstance(field_type, msgspec.inspect.ListType):
        field_type, mode = field_type.item_type, "REPEATED"
        if isinstance(field_type, msgspec.inspect.Metadata):
            field_type = field_type.type
    try:
        return Column(name, _COLUMN_TYPES[type(field_type)], mode, description)
    except KeyError:
        raise TypeError(f"{name}: no column type for {field_type}") from None
