"""The tables' schemas as files, for what creates tables elsewhere (Terraform): derived from the contract.

python -m beam_jobs.table_schemas infra/tables            write <table>.json for each table
python -m beam_jobs.table_schemas infra/tables --check    exit with 1 when one differs from what is there
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contracts.schemas import TABLES, Table, columns


def definition(table: Table) -> dict[str, Any]:
    """Schema, partitioning and clustering of `table`, as BigQuery says them."""
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
    flags = argparse.ArgumentParser(prog="python -m beam_jobs.table_schemas", description=__doc__.split("\n\n")[0])
    flags.add_argument("folder", type=Path)
    flags.add_argument("--check", action="store_true", help="write nothing")
    arguments = flags.parse_args(argv)
    stale = []
    for table in TABLES:
        path = arguments.folder / f"{table.name}.json"
        text = json.dumps(definition(table), indent=2) + "\n"
        if not path.is_file() or path.read_text() != text:
            stale.append(path.name)
            if not arguments.check:
                path.write_text(text)
    if stale and arguments.check:
        sys.stderr.write(f"table_schemas: error: {', '.join(stale)} differ from the contract: run without --check\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
