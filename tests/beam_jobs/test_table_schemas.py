"""The definitions; that Terraform's files are up to date is in tests/test_infra.py."""

import json
from pathlib import Path

import pytest

from beam_jobs import table_schemas
from contracts.schemas import TABLES, Table, columns


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_definition_has_every_column_of_the_contract(table: Table) -> None:
    found = table_schemas.definition(table)
    assert [(column["name"], column["type"], column["mode"]) for column in found["schema"]] == [
        (column.name, column.type, column.mode) for column in columns(table.record)
    ]
    names = {column["name"] for column in found["schema"]}
    assert {found["partitioned_by"], *found["clustered_by"]} <= names


def test_one_file_per_table(tmp_path: Path) -> None:
    assert table_schemas.main([str(tmp_path)]) == 0
    assert {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()} == {
        table.name: table_schemas.definition(table) for table in TABLES
    }
