"""The warehouse on BigQuery: the tables of `contracts.schemas`, day-partitioned and clustered, written and read as batches.

Writing. Each way's guarantee, seen through the deduplicating join and reads:

    streaming_inserts    `insertAll` of 500 rows at a time. At least once: a retried request may add rows again (the
                         insert id makes BigQuery remove most of those); reading removes them all.
    file_loads           a load job a batch, for batch jobs. Exactly once: the job's id is derived from the batch and the
                         table, and BigQuery runs a job id once, however often it is asked to. A batch in which there is
                         a row that BigQuery refuses goes by `insertAll` instead, which says which one.
    storage_write_api    Arrow batches appended to a table's default stream: half the price and many times the rate of
                         `insertAll`. At least once: a retried append adds rows again; reading removes them. (Beam's own
                         sink of that name can do exactly once, in Java, row by row.)

A row that BigQuery refuses becomes a dead letter with BigQuery's reason, whatever the way, which failed when it was
refused: BigQuery also refuses moments too far from now, and the dead letter must not be one of those.

Reading goes through the Storage Read API: the columns asked for, of the partitions that the range of time touches.
"""

import base64
import io
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from itertools import count, islice
from typing import Any, NamedTuple

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics
from google.api_core import exceptions
from google.cloud import bigquery
from google.cloud.bigquery_storage_v1 import BigQueryReadClient, BigQueryWriteClient, types

from beam_jobs.payloads import IngestCounts
from beam_jobs.places import BIGQUERY_PREFIX, explained
from beam_jobs.tables import ObservationDim, TableRows, arrow_schema, record_batch
from contracts.errors import InputError
from contracts.records import DeadLetter, one_line, utc_microseconds
from contracts.schemas import DEAD_LETTERS, DECISIONS, TABLES, Table, columns

ROWS_A_REQUEST = 500
BYTES_A_REQUEST = 5_000_000  # half of what insertAll takes
TIMEOUT_SECONDS = 60.0
MAX_READ_STREAMS = 100
# The client's own default goes on for ten minutes.
_RETRY = bigquery.DEFAULT_RETRY.with_timeout(TIMEOUT_SECONDS)
DATASET = r"([a-z][a-z0-9.:-]*[a-z0-9])\.([A-Za-z0-9_]+)"


class Dataset(NamedTuple):
    """Where the tables are."""

    project: str
    name: str

    def table(self, table: Table) -> str:
        """`project.dataset.table`."""
        return f"{self.project}.{self.name}.{table.name}"


def parse_dataset(text: str) -> Dataset:
    """`bigquery:PROJECT.DATASET`. Raises InputError."""
    match = re.fullmatch(DATASET, text.removeprefix(BIGQUERY_PREFIX))
    if not match:
        raise InputError(f"--warehouse: bigquery:PROJECT.DATASET expected, got {text!r}")
    return Dataset(match[1], match[2])


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
    """Creates the tables that are absent; checks the schema of those that are there.

    Raises InputError: no such data set, no permission, no credentials, or a table with another schema (which column).
    """
    with (
        explained("--warehouse", f"data set {dataset.project}.{dataset.name}"),
        closing(client(dataset.project)) as api,
    ):
        api.get_dataset(dataset.name, retry=_RETRY, timeout=TIMEOUT_SECONDS)
        for table in TABLES:
            wanted = bigquery.Table(dataset.table(table), schema=schema(table))
            wanted.time_partitioning = bigquery.TimePartitioning(
                type_=bigquery.TimePartitioningType.DAY,
                field=table.partitioned_by,
                expiration_ms=round(expiry_days * 86_400_000) if expiry_days else None,
            )
            wanted.clustering_fields = list(table.clustered_by)
            found = api.create_table(wanted, exists_ok=True, retry=_RETRY, timeout=TIMEOUT_SECONDS)
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


def json_rows(rows: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as BigQuery takes them in JSON: moments in ISO 8601, bytes in base 64."""
    return [{name: _json_value(value) for name, value in row.items()} for row in rows.to_pylist()]


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


class SinkMetrics:
    """Counts of a sink, and how old an event is once it is stored."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._refused = Metrics.counter("bigquery", f"{table.name}_refused")
        self._latency = Metrics.distribution("bigquery", f"{table.name}_latency_ms")

    def stored(self, element: TableRows, refused: dict[int, str]) -> Iterator[Any]:
        """What a sink gives: (name, how many rows are in the table), and dead letters of those that are not.

        Raises RuntimeError when it is dead letters that are refused: there is nowhere left to put them.
        """
        if refused and self._table is DEAD_LETTERS:
            raise RuntimeError(f"BigQuery refuses a dead letter: {next(iter(refused.values()))}")
        now = time.time() * 1000  # a metric; no row depends on it
        for moment in element.rows.column(self._table.partitioned_by).cast(pa.int64()).to_pylist():
            self._latency.update(int(now - moment / 1000))
        if refused:
            self._refused.inc(len(refused))
            rows = element.rows.take(pa.array(sorted(refused)))
            letters = [
                refused_row(self._table, row, refused[place])
                for row, place in zip(json_rows(rows), sorted(refused), strict=True)
            ]
            yield beam.pvalue.TaggedOutput("refused", TableRows(element.name, record_batch(DEAD_LETTERS, letters)))
        yield element.name, IngestCounts(**{self._table.name: element.rows.num_rows - len(refused)})


class InsertRowsFn(beam.DoFn):
    """TableRows -> (name, how many rows are in the table); on `refused`, TableRows of dead letters. `insertAll`."""

    def __init__(self, dataset: Dataset, table: Table) -> None:
        self._dataset = dataset
        self._table = table
        self._metrics = SinkMetrics(table)

    def setup(self) -> None:
        """One client a worker."""
        self._client = client(self._dataset.project)

    def teardown(self) -> None:
        """Closes it."""
        self._client.close()

    def process(self, element: TableRows) -> Iterator[Any]:
        """Inserts one batch."""
        refused = insert_rows(self._client, self._dataset.table(self._table), self._table, element.rows)
        yield from self._metrics.stored(element, refused)


def insert_rows(api: bigquery.Client, destination: str, table: Table, rows: pa.RecordBatch) -> dict[int, str]:
    """Inserts rows by `insertAll`; of those that are refused, the reasons by their place."""
    as_json = json_rows(rows)
    refused: dict[int, str] = {}
    done = 0
    while done < len(as_json):
        request = _fitting(as_json[done : done + ROWS_A_REQUEST])
        errors = api.insert_rows_json(
            destination,
            request,
            row_ids=[_row_id(table, row) for row in request],
            skip_invalid_rows=True,
            timeout=TIMEOUT_SECONDS,
            retry=_RETRY,
        )
        refused |= {done + error["index"]: _reason(error) for error in errors}
        done += len(request)
    return refused


def _row_id(table: Table, row: dict[str, Any]) -> str:
    return blake2b(repr([row[name] for name in table.key]).encode(), digest_size=16).hexdigest()


def _fitting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first rows that fit into one request; at least one."""
    size = 0
    for place, row in enumerate(rows):
        size += len(msgspec.json.encode(row))
        if size > BYTES_A_REQUEST and place:
            return rows[:place]
    return rows


def _reason(error: dict[str, Any]) -> str:
    return "; ".join(
        " ".join(filter(None, (entry.get("location"), entry.get("reason"), entry.get("message"))))
        for entry in error["errors"]
    )


def refused_row(table: Table, row: dict[str, Any], reason: str) -> DeadLetter:
    """A row that BigQuery refused just now, as a dead letter: the event's JSON form, which can be replayed."""
    kind = table.record.__struct_config__.tag
    return DeadLetter(
        payload=msgspec.json.encode({"kind": kind} | row),
        error_type="RefusedByBigQuery",
        error_message=one_line(reason),
        stage=f"insert_{table.name}",
        failed_at=datetime.now(UTC),
        source=row["decision_id"],
    )


class LoadRowsFn(beam.DoFn):
    """TableRows -> (name, how many rows are in the table); on `refused`, TableRows of dead letters. A load job a batch."""

    def __init__(self, dataset: Dataset, table: Table) -> None:
        self._destination = dataset.table(table)
        self._project = dataset.project
        self._table = table
        self._metrics = SinkMetrics(table)

    def setup(self) -> None:
        """One client a worker; and which table it is, for one of the same name may have been there before."""
        self._client = client(self._project)
        created = self._client.get_table(self._destination, retry=_RETRY, timeout=TIMEOUT_SECONDS).created
        self._identity = f"{self._destination} {created}"

    def teardown(self) -> None:
        """Closes it."""
        self._client.close()

    def process(self, element: TableRows) -> Iterator[Any]:
        """Stores one batch."""
        refused: dict[int, str] = {}
        if not self._load(element):
            refused = insert_rows(self._client, self._destination, self._table, element.rows)
        yield from self._metrics.stored(element, refused)

    def _load(self, element: TableRows) -> bool:
        """Loads one batch; a load that ran before is not run again, unless it failed. False: BigQuery refuses a row."""
        data = io.BytesIO()
        pq.write_table(pa.Table.from_batches([element.rows]), data)
        digest = blake2b(f"{self._identity} {element.name}".encode(), digest_size=16)
        digest.update(element.rows.serialize())
        for attempt in count():
            job, began = self._job(data, f"ingest_events_{digest.hexdigest()}_{attempt}")
            try:
                job.result()
            except exceptions.GoogleAPICallError:
                if job.error_result and job.error_result["reason"] == "invalid":
                    return False
                if began:
                    raise  # the runner's next try gets the next id
            else:
                break
        return True

    def _job(self, data: io.BytesIO, job_id: str) -> tuple[bigquery.LoadJob, bool]:
        """The job of that id, and whether it began just now."""
        data.seek(0)
        lists = bigquery.ParquetOptions()
        lists.enable_list_inference = True
        job_config = bigquery.LoadJobConfig(
            source_format=bigquery.SourceFormat.PARQUET,
            write_disposition=bigquery.WriteDisposition.WRITE_APPEND,
            create_disposition=bigquery.CreateDisposition.CREATE_NEVER,
            schema=schema(self._table),
            parquet_options=lists,
        )
        try:
            return (
                self._client.load_table_from_file(
                    data, self._destination, job_id=job_id, job_config=job_config, timeout=TIMEOUT_SECONDS
                ),
                True,
            )
        except exceptions.Conflict:
            return self._client.get_job(job_id, timeout=TIMEOUT_SECONDS), False


class AppendRowsFn(beam.DoFn):
    """TableRows -> (name, how many rows are in the table); on `refused`, TableRows of dead letters. Storage Write API."""

    def __init__(self, dataset: Dataset, table: Table) -> None:
        self._dataset = dataset
        self._table = table
        self._stream = f"projects/{dataset.project}/datasets/{dataset.name}/tables/{table.name}/streams/_default"
        self._metrics = SinkMetrics(table)

    def setup(self) -> None:
        """One client a worker."""
        self._client = write_client()

    def process(self, element: TableRows) -> Iterator[Any]:
        """Appends one batch. BigQuery refuses a request as a whole, and says for which rows: the others go again."""
        refused: dict[int, str] = {}
        begin = 0
        for rows in _pieces(element.rows):
            if errors := self._append(rows):
                refused |= {begin + place: reason for place, reason in errors.items()}
                good = np.ones(rows.num_rows, bool)
                good[list(errors)] = False
                if good.any() and (again := self._append(rows.filter(pa.array(good)))):
                    raise RuntimeError(f"BigQuery refuses rows that it took before: {next(iter(again.values()))}")
            begin += rows.num_rows
        yield from self._metrics.stored(element, refused)

    def _append(self, rows: pa.RecordBatch) -> dict[int, str]:
        """Appends `rows`; of those that are refused, the reasons. Raises GoogleAPICallError for anything else."""
        data = types.AppendRowsRequest.ArrowData(
            writer_schema=types.ArrowSchema(serialized_schema=rows.schema.serialize().to_pybytes()),
            rows=types.ArrowRecordBatch(serialized_record_batch=rows.serialize().to_pybytes()),
        )
        request = types.AppendRowsRequest(write_stream=self._stream, arrow_rows=data)
        [answer] = self._client.append_rows(iter([request]), timeout=TIMEOUT_SECONDS)
        if answer.error.code and not answer.row_errors:
            raise exceptions.from_grpc_status(answer.error.code, answer.error.message)  # type: ignore[no-untyped-call]
        return {error.index: f"{error.code.name} {error.message}" for error in answer.row_errors}


def _pieces(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """`rows` in order, in pieces that fit into one request; at least one row each."""
    if rows.nbytes <= BYTES_A_REQUEST or rows.num_rows <= 1:
        yield rows
        return
    half = rows.num_rows // 2
    yield from _pieces(rows.slice(0, half))
    yield from _pieces(rows.slice(half))


def observation_dims(dataset: Dataset, start: datetime, end: datetime) -> list[ObservationDim]:
    """The lengths of the observations of `[start, end)`, the most frequent first.

    Raises InputError: no such table, no permission, no credentials.
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
    """One stream of a read session."""

    name: str
    arrow_schema: bytes
    table: Table
    columns: tuple[str, ...] | None


def open_streams(
    dataset: Dataset, table: Table, start: datetime, end: datetime, names: Sequence[str] | None = None
) -> list[ReadStream]:
    """Opens a read session over `start <= partition column < end`: the work to be shared out.

    Raises InputError: no such table, no permission, no credentials.
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


def read_stream(stream: ReadStream) -> Iterator[pa.RecordBatch]:
    """The batches of one stream, with the contract's schema."""
    wanted = arrow_schema(stream.table)
    if stream.columns is not None:
        wanted = pa.schema([wanted.field(name) for name in stream.columns])
    found = pa.ipc.read_schema(pa.py_buffer(stream.arrow_schema))
    for message in read_client().read_rows(stream.name):
        data = message.arrow_record_batch.serialized_record_batch
        batch = pa.ipc.read_record_batch(pa.py_buffer(data), found)
        yield pa.RecordBatch.from_arrays(
            [batch.column(name).cast(wanted.field(name).type) for name in wanted.names], schema=wanted
        )


def read_all(
    dataset: Dataset, table: Table, start: datetime, end: datetime, names: Sequence[str] | None = None
) -> pa.Table:
    """All rows of the range in this process, as often as they are there, in no order."""
    wanted = arrow_schema(table)
    if names is not None:
        wanted = pa.schema([wanted.field(name) for name in names])
    streams = open_streams(dataset, table, start, end, names)
    return pa.Table.from_batches([batch for stream in streams for batch in read_stream(stream)], wanted)


def dead_letter_key(row: dict[str, Any]) -> str:
    """What tells one row of `dead_letters` from all others: a row that is written later has another moment."""
    return f"{sha256(row['payload']).hexdigest()} {utc_microseconds(row['failed_at'])} {row['source'] or ''}"


def delete_dead_letters(dataset: Dataset, keys: Iterable[str], start: datetime, end: datetime) -> None:
    """Removes the dead letters of those keys, which failed in `[start, end)`.

    Raises google.api_core.exceptions.BadRequest for rows streamed in the last 90 minutes, which BigQuery keeps.
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
            api.query(query, job_config=bigquery.QueryJobConfig(query_parameters=parameters)).result()
