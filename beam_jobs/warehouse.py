"""The embedded warehouse: the tables of `contracts.schemas` as Parquet files, queried by DuckDB.

    <warehouse>/<table>/day=YYYY-MM-DD/<name>.<first>-<last>.parquet
    <warehouse>/ingested/<segment>.json

`day` is the UTC day of the table's partition column. `first` and `last` are that column's range in the file, in
microseconds since the epoch. A read opens only the files that can hold rows of its time range, so the cost of a window
does not grow with the history. A file gets its name once all of it is on the disk. The same rows have the same name and
bytes, so writing them again changes nothing. Reads remove rows that are stored twice under different names.
"""

import io
import re
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_jobs.files import alone, publish
from beam_jobs.tables import ObservationDim, arrow_schema, count_distinct, dead_letter_key
from contracts.errors import InputError
from contracts.records import utc_microseconds
from contracts.schemas import DEAD_LETTERS, DECISIONS, TABLES, Table, columns

INGESTED_NAME = "ingested"
MICROSECONDS_PER_DAY = 86_400_000_000
_FILE_NAME = re.compile(r".*\.(-?\d+)-(-?\d+)\.parquet")


class Deduplicated(NamedTuple):
    """Rows that are unique by the table's key, ordered by its partition column and key."""

    rows: pa.Table
    duplicates: int  # rows removed


def create(warehouse: Path) -> None:
    """Creates the folders of the tables that do not exist. Raises InputError when they cannot be created."""
    try:
        for name in (*(table.name for table in TABLES), INGESTED_NAME):
            (warehouse / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--warehouse: {str(warehouse)!r} cannot be created: {error.strerror}") from None


@contextmanager
def locked(warehouse: Path) -> Iterator[None]:
    """Lets one process at a time change the tables; others wait. Raises InputError when `warehouse` holds no tables."""
    check(warehouse)
    with alone(warehouse, "--warehouse"):
        yield


def write(warehouse: Path, table: Table, name: str, rows: pa.RecordBatch) -> None:
    """Writes `rows` as files named `name`, one per day; replaces files of that name."""
    if not rows.num_rows:
        return
    moments = rows.column(table.partitioned_by).cast(pa.int64()).to_numpy()
    days = moments // MICROSECONDS_PER_DAY
    for day in np.unique(days):
        inside = days == day
        folder = warehouse / table.name / f"day={np.datetime64(int(day), 'D')}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.{moments[inside].min()}-{moments[inside].max()}.parquet"
        write_file(path, table, pa.Table.from_batches([rows if inside.all() else rows.filter(pa.array(inside))]))


def write_file(path: Path, table: Table, rows: pa.Table) -> None:
    """Writes one file of `table`; replaces a file of that name."""
    dictionary = [c.name for c in columns(table.record) if c.type == "STRING" and c.name not in table.key]
    data = io.BytesIO()
    pq.write_table(rows, data, compression="zstd", use_dictionary=dictionary)
    publish(str(path), [data.getvalue()])


def read(
    warehouse: Path, table: Table, start: datetime, end: datetime, names: Sequence[str] | None = None
) -> Deduplicated:
    """The rows of `table` with `start <= partition column < end`; of rows with one key, the earliest.

    Args:
      warehouse: The folder.
      table: Which table.
      start: Start of the range, with a time zone.
      end: End of the range, which is not in it.
      names: The columns wanted; all of them when None.

    Raises:
      InputError: `warehouse` holds no tables, or a file of it is torn.
    """
    moment, key = table.partitioned_by, ", ".join(table.key)
    schema = arrow_schema(table, names)
    with _database(warehouse) as connection:
        if (source := _source(connection, warehouse, table, start, end)) is None:
            return Deduplicated(schema.empty_table(), 0)
        [(total, unique)] = connection.sql(f"SELECT count(*), count(DISTINCT ({key})) FROM {source}").fetchall()
        query = f"SELECT {', '.join(schema.names)} FROM {source}"
        if unique < total:
            # By all columns, so that of rows with one key and time the same one is kept each time.
            rest = ", ".join(column.name for column in columns(table.record) if column.name != moment)
            query += f" QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {moment}, {rest}) = 1"
        rows = connection.sql(f"{query} ORDER BY {moment}, {key}").to_arrow_table()
        return Deduplicated(rows.cast(schema), total - unique)


def read_all(
    warehouse: Path, table: Table, start: datetime, end: datetime, names: Sequence[str] | None = None
) -> pa.Table:
    """Like `read`, but repeated rows are not removed, and the rows have no order.

    It reads the files without DuckDB, because no query is needed: that takes about half of the time.
    """
    schema = arrow_schema(table, names)
    between = utc_microseconds(start), utc_microseconds(end)
    parts = [_rows(warehouse, path, table, schema, between) for path in files(warehouse, table, start, end)]
    return pa.concat_tables([schema.empty_table(), *parts])


def _rows(warehouse: Path, path: str, table: Table, schema: pa.Schema, between: tuple[int, int]) -> pa.Table:
    """The rows of one file in that range of microseconds; the columns that it was written without have nulls."""
    try:
        with pq.ParquetFile(path) as file:
            stored = set(file.schema_arrow.names)
            rows = file.read(columns=[name for name in {*schema.names, table.partitioned_by} if name in stored])
        moments = rows[table.partitioned_by].cast(pa.int64()).to_numpy()
        inside = (moments >= between[0]) & (moments < between[1])
        if not inside.all():
            rows = rows.filter(pa.array(inside))
        columns = [
            rows[field.name] if field.name in stored else pa.nulls(rows.num_rows, field.type) for field in schema
        ]
        return pa.table(columns, schema.names).cast(schema)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{warehouse}: a file cannot be read: {path}: {str(error).splitlines()[0]}") from None
    except (KeyError, ValueError) as error:  # a column is missing, or has no value in a row
        raise InputError(f"{warehouse}: a table is not as it must be: {path}: {str(error).splitlines()[0]}") from None


def observation_dims(warehouse: Path, start: datetime, end: datetime) -> list[ObservationDim]:
    """The lengths of the observations of `[start, end)`, the most frequent first. Same errors as `read`."""
    rows = read_all(warehouse, DECISIONS, start, end, ("decision_id", "observation"))
    lengths = pc.list_value_length(rows["observation"]).to_numpy()
    found = []
    for length in np.unique(lengths).tolist():
        ids = rows["decision_id"].filter(pa.array(lengths == length))
        found.append(ObservationDim(length, count_distinct(ids), pc.min(ids).as_py()))
    return sorted(found, key=lambda dim: (-dim.decisions, dim.length))


def remove_dead_letters(warehouse: Path, keys: Set[str], start: datetime, end: datetime) -> None:
    """Removes the dead letters with those keys (`tables.dead_letter_key`) that failed in `[start, end)`.

    Rewrites only the files that hold some of them. The caller holds `locked`.
    """
    first, last = utc_microseconds(start), utc_microseconds(end)
    for path in map(Path, files(warehouse, DEAD_LETTERS, start, end)):
        rows = pq.read_table(path, partitioning=None)
        moments = rows.column(DEAD_LETTERS.partitioned_by).cast(pa.int64()).to_numpy()
        inside = (moments >= first) & (moments < last)
        gone = inside & np.array([dead_letter_key(row) in keys for row in rows.to_pylist()], bool)
        if gone.all():
            path.unlink()
        elif gone.any():
            write_file(path, DEAD_LETTERS, rows.filter(pa.array(~gone)))


@contextmanager
def _database(warehouse: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection for one query. Raises InputError that names a file that cannot be read."""
    with duckdb.connect() as connection:
        try:
            yield connection
        except (duckdb.InvalidInputException, duckdb.IOException) as error:
            raise InputError(f"{warehouse}: a file cannot be read: {str(error).splitlines()[0]}") from None
        except InputError:
            raise
        except (duckdb.BinderException, ValueError) as error:  # a column is missing, or has no value in a row
            raise InputError(f"{warehouse}: a table is not as it must be: {str(error).splitlines()[0]}") from None


def _source(
    connection: duckdb.DuckDBPyConnection, warehouse: Path, table: Table, start: datetime, end: datetime
) -> str | None:
    """The SQL after FROM that selects the rows of `[start, end)`; None when no file can hold any."""
    paths = files(warehouse, table, start, end)
    if not paths:
        return None
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET VARIABLE paths = $paths", {"paths": paths})
    moment = f"epoch_us({table.partitioned_by})"
    inside = f"{moment} >= {utc_microseconds(start)} AND {moment} < {utc_microseconds(end)}"
    # Files that were written before a column was added to the record have nulls in it.
    connection.register("no_rows", arrow_schema(table).empty_table())
    stored = "read_parquet(getvariable('paths'), union_by_name = true, hive_partitioning = false)"
    return f"(FROM no_rows UNION ALL BY NAME FROM {stored}) WHERE {inside}"


def files(warehouse: Path, table: Table, start: datetime, end: datetime) -> list[str]:
    """Paths of the files that can hold rows of `[start, end)`. Raises InputError: `warehouse` holds no tables."""
    check(warehouse)
    first, last = utc_microseconds(start), utc_microseconds(end) - 1
    first_day, last_day = (f"day={moment.astimezone(UTC).date().isoformat()}" for moment in (start, end))
    paths = []
    for folder in sorted((warehouse / table.name).glob("day=*")):
        if first_day <= folder.name <= last_day:
            for path in folder.iterdir():
                match = _FILE_NAME.fullmatch(path.name)
                if match and int(match[1]) <= last and int(match[2]) >= first:
                    paths.append(str(path))
    return sorted(paths)


def check(folder: Path) -> None:
    """Raises InputError when `folder` holds no tables."""
    if not any((folder / known.name).is_dir() for known in TABLES):
        raise InputError(f"{folder} is not a warehouse: it has no folder named {TABLES[0].name}")
