import msgspec
import pytest

from contracts.schemas import TABLES, columns


def test_every_field_of_a_record_is_a_column_in_order():
    for table in TABLES:
        assert [column.name for column in columns(table.record)] == list(table.record.__struct_fields__)


def test_types_and_modes_follow_from_the_fields():
    found = {column.name: (column.type, column.mode) for table in TABLES for column in columns(table.record)}
    assert found["decision_id"] == ("STRING", "REQUIRED")
    assert found["decided_at"] == ("TIMESTAMP", "REQUIRED")
    assert found["user_id"] == ("STRING", "NULLABLE")
    assert found["observation"] == ("FLOAT64", "REPEATED")
    assert found["candidates"] == ("INT64", "REPEATED")
    assert found["payload"] == ("BYTES", "REQUIRED")


def test_partition_cluster_and_key_columns_exist():
    for table in TABLES:
        names = set(table.record.__struct_fields__)
        assert {table.partitioned_by, *table.clustered_by, *table.key} <= names
        kinds = {column.name: column.type for column in columns(table.record)}
        assert kinds[table.partitioned_by] == "TIMESTAMP"


def test_columns_are_what_bigquery_takes():
    from google.cloud.bigquery import SchemaField

    for table in TABLES:
        fields = [column._asdict() for column in columns(table.record)]
        assert [SchemaField.from_api_repr(field).to_api_repr() for field in fields] == fields


def test_a_field_without_a_column_type_is_refused():
    class Odd(msgspec.Struct):
        mapping: dict[str, int]

    with pytest.raises(TypeError, match="mapping: no column type"):
        columns(Odd)
