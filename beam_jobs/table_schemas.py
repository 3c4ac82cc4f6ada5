"""The tables' schemas as JSON files, from which Terraform creates the tables. They derive from the contract.

python -m beam_jobs.table_schemas infra/tables            write <table>.json for each table
python -m beam_jobs.table_schemas infra/tables --check    write nothing; exit with 1 when a file differs
"""

import sys
from collections.abc import Sequence
from typing import Any

from beam_jobs import generated
from contracts.schemas import TABLES, Table, columns


def definition(table: Table) -> dict[str, Any]:
    """Schema, partitioning and clustering of `table`, in BigQuery's words."""
    return {
        "partitioned_by": table.partitioned_by,
        "clustered_by": list(table.clustered_by),
        "schema": [
            {"name": column.name, "type": column.type, "mode": column.mode}
            | ({"description": column.description} if column.description else {})
            for column in columns(table.record)
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks the files."""
    files = {f"{table.name}.json": definition(table) for table in TABLES}
    return generated.main("table_schemas", __doc__, files, "the contract", argv)


if __name__ == "__main__":
    sys.exit(main())
