"""BigQuery: the tables of `contracts.schemas`, day-partitioned and clustered, and batches of Arrow rows read from them.

Reading goes through the Storage Read API: only the columns asked for, of the partitions that the range of time touches.
`beam_jobs.bigquery_sinks` writes the tables.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from typing import NamedTuple

import pyarrow as pa
from google.api_core import exceptions
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import BigQueryReadClient, BigQueryWriteClient, types

from beam_jobs.places import Dataset, explained
from beam_jobs.tables import ObservationDim, arrow_schema
from contracts.errors import InputError
from contracts.schemas import DEAD_LETTERS, DECISIONS, TABLES, Table, columns

TIMEOUT_SECONDS = 60.0
MAX_READ_STREAMS = 100
# The client's own default retries for ten minutes.
RETRY = bigquery.DEFAULT_RETRY.with_timeout(TIMEOUT_SECONDS)


def client(project: str) -> bigquery.Client:
    """A client of the BigQuery API."""
    return bigquery.Client(project=project)


def read_client() -> BigQueryReadClient:
    """A client of the Storage Read API."""
    return BigQueryReadClient()


def write_client() -> BigQueryWriteClient:
    """A client of the Storage Write API."""
    return BigQueryWriteClient()


def schema(table: Table) -> list[bigquery.SchemaField]:
    """The schema of `table`, derived from the contract."""
    return [
        bigquery.SchemaField(column.name, column.type, column.mode, description=column.description or None)
        for column in columns(table.record)
    ]


def ensure_tables(dataset: Dataset, expiry_days: float | None) -> None:
    """Creates the tables that do not exist, with `expiry_days` for their partitions; checks the schemas of the others.

    Raises InputError: the dataset does not exist, no permission, no credentials, or a table has another schema (the
    message names the column). Raises OperationError when BigQuery does not answer.
    """
    with (
        explained("--warehouse", f"dataset {dataset.project}.{dataset.name}"),
        closing(client(dataset.project)) as api,
    ):
        api.get_dataset(dataset.name, retry=RETRY, timeout=TIMEOUT_SECONDS)
        for table in TABLES:
            wanted = bigquery.Table(dataset.table(table), schema=schema(table))
            wanted.time_partitioning = bigquery.TimePartitioning(
                type_=bigquery.TimePartitioningType.DAY,
                field=table.partitioned_by,
                expiration_ms=round(expiry_days * 86_400_000) if expiry_days else None,
            )
            wanted.clustering_fields = list(table.clustered_by)
            found = api.create_table(wanted, exists_ok=True, retry=RETRY, timeout=TIMEOUT_SECONDS)
            _check_schema(dataset.table(table), table, found.schema)


def _check_schema(where: str, table: Table, found: Sequence[bigquery.SchemaField]) -> None:
    # The API's older names for the same types.
    aliases = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL"}
    by_name = {field.name: (aliases.get(field.field_type, field.field_type), field.mode) for field in found}
    for column in columns(table.record):
        wanted = (column.type, column.mode)
        if by_name.get(column.name) != wanted:
            got = " ".join(by_name[column.name]) if column.name in by_name else "no such column"
            raise InputError(f"{where}: column {column.name!r} must be {' '.join(wanted)}, got {got}")
    for name in by_name.keys() - {column.name for column in columns(table.record)}:
        if by_name[name][1] == "REQUIRED":
            raise InputError(f"{where}: column {name!r} is REQUIRED, and no record has it")


def observation_dims(dataset: Dataset, start: datetime, end: datetime) -> list[ObservationDim]:
    """The lengths of the observations of `[start, end)`, the most frequent first.

    Raises InputError: the table does not exist, no permission, no credentials. Raises OperationError when BigQuery does
    not answer.
    """
    query = (
        "SELECT ARRAY_LENGTH(observation) AS length, COUNT(DISTINCT decision_id) AS decisions,"
        f" MIN(decision_id) AS example FROM `{dataset.table(DECISIONS)}`"
        " WHERE decided_at >= @start AND decided_at < @end GROUP BY length ORDER BY decisions DESC, length"
    )
    parameters = [
        bigquery.ScalarQueryParameter("start", "TIMESTAMP", start),
        bigquery.ScalarQueryParameter("end", "TIMESTAMP", end),
    ]
    with explained("--warehouse", f"table {dataset.table(DECISIONS)}"), closing(client(dataset.project)) as api:
        job = api.query(query, job_config=bigquery.QueryJobConfig(query_parameters=parameters))
        rows = list(job.result(timeout=TIMEOUT_SECONDS))
    return [ObservationDim(row["length"], row["decisions"], row["example"]) for row in rows]


class ReadStream(NamedTuple):
    """One stream of a read session: one worker's share of a read."""

    name: str
    serialized_schema: bytes  # Arrow schema of what BigQuery sends
    table: Table
    columns: tuple[str, ...] | None

    def read(self) -> Iterator[pa.RecordBatch]:
        """The batches of the stream, with the contract's schema."""
        wanted = arrow_schema(self.table, self.columns)
        found = pa.ipc.read_schema(pa.py_buffer(self.serialized_schema))
        for message in read_client().read_rows(self.name):
            data = message.arrow_record_batch.serialized_record_batch
            batch = pa.ipc.read_record_batch(pa.py_buffer(data), found)
            yield pa.RecordBatch.from_arrays(
                [batch.column(name).cast(wanted.field(name).type) for name in wanted.names], schema=wanted
            )


def open_streams(
    dataset: Dataset, table: Table, start: datetime, end: datetime, names: Sequence[str] | None = None
) -> list[ReadStream]:
    """The streams of a new read session over `start <= partition column < end`, at most MAX_READ_STREAMS of them.

    Raises InputError: the table does not exist, no permission, no credentials. Raises OperationError when BigQuery does
    not answer.
    """
    names = tuple(names) if names is not None else None
    moment = table.partitioned_by
    session = types.ReadSession(
        table=f"projects/{dataset.project}/datasets/{dataset.name}/tables/{table.name}",
        data_format=types.DataFormat.ARROW,
        read_options=types.ReadSession.TableReadOptions(
            selected_fields=names or arrow_schema(table).names,
            row_restriction=f"{moment} >= '{_literal(start)}' AND {moment} < '{_literal(end)}'",
        ),
    )
    with explained("--warehouse", f"table {dataset.table(table)}"):
        opened = read_client().create_read_session(
            parent=f"projects/{dataset.project}",
            read_session=session,
            max_stream_count=MAX_READ_STREAMS,
            timeout=TIMEOUT_SECONDS,
        )
    return [ReadStream(stream.name, opened.arrow_schema.serialized_schema, table, names) for stream in opened.streams]


def _literal(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


def read_all(
    dataset: Dataset, table: Table, start: datetime, end: datetime, names: Sequence[str] | None = None
) -> pa.Table:
    """All rows of the range in this process, repeated rows included, in no particular order."""
    streams = open_streams(dataset, table, start, end, names)
    batches = [batch for stream in streams for batch in stream.read()]
    return pa.Table.from_batches(batches, arrow_schema(table, names))


def delete_dead_letters(dataset: Dataset, keys: Iterable[str], start: datetime, end: datetime) -> bool:
    """Removes the dead letters with those keys (`tables.dead_letter_key`) that failed in `[start, end)`.

    Returns False when BigQuery keeps them because they were streamed in the last 90 minutes.
    """
    query = (
        f"DELETE FROM `{dataset.table(DEAD_LETTERS)}` WHERE failed_at >= @start AND failed_at < @end AND CONCAT("
        "TO_HEX(SHA256(payload)), ' ', CAST(UNIX_MICROS(failed_at) AS STRING), ' ', IFNULL(source, '')"
        ") IN UNNEST(@keys)"
    )
    remaining = iter(keys)
    with closing(client(dataset.project)) as api:
        while chunk := list(islice(remaining, 5_000)):
            parameters = [
                bigquery.ScalarQueryParameter("start", "TIMESTAMP", start),
                bigquery.ScalarQueryParameter("end", "TIMESTAMP", end),
                bigquery.ArrayQueryParameter("keys", "STRING", chunk),
            ]
            try:
                api.query(query, job_config=bigquery.QueryJobConfig(query_parameters=parameters)).result()
            except exceptions.BadRequest as error:
                if "streaming buffer" not in str(error):
                    raise
                return False
    return True
