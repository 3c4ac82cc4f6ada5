"""Rows into BigQuery. Each way of writing is a DoFn; its guarantee, seen through the deduplicating join and reads:

    streaming_inserts    `insertAll` of 500 rows at a time. At least once: a retried request may add rows again (the
                         insert id makes BigQuery remove most of those); reading removes them all.
    file_loads           one load job per batch, in batch jobs. Exactly once: the job's id derives from the batch and the
                         table, and BigQuery runs a job id once, however often it is requested. When BigQuery refuses a
                         row of the batch, the batch goes by `insertAll` instead, which reports the rows it refuses.
    storage_write_api    Arrow batches appended to a table's default stream: half the price of `insertAll` and many times
                         its rate. At least once: a retried append adds rows again; reading removes them. (Beam's own
                         sink of that name can do exactly once, in Java, row by row.)

A row that BigQuery refuses becomes a dead letter with BigQuery's reason. Its time of failure is the time of the refusal:
BigQuery also refuses times too far from now, and the dead letter must not have one of those.
"""

import base64
import io
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import count
from typing import Any

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics
from google.api_core import exceptions
from google.cloud.bigquery import (
    Client,
    CreateDisposition,
    LoadJob,
    LoadJobConfig,
    ParquetOptions,
    SourceFormat,
    WriteDisposition,
)
from google.cloud.bigquery_storage_v1 import types

from beam_jobs import bigquery
from beam_jobs.bigquery import RETRY, TIMEOUT_SECONDS
from beam_jobs.payloads import IngestCounts
from beam_jobs.places import Dataset
from beam_jobs.tables import TableRows, record_batch
from contracts.records import DeadLetter, one_line
from contracts.schemas import DEAD_LETTERS, Table

ROWS_PER_REQUEST = 500
BYTES_PER_REQUEST = 5_000_000  # half of what insertAll takes


def json_rows(rows: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows in BigQuery's JSON form: times in ISO 8601, bytes in base 64."""
    return [{name: _json_value(value) for name, value in row.items()} for row in rows.to_pylist()]


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value


class SinkMetrics:
    """Metrics of a sink: rows refused, and the age of each event when it is stored."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._refused = Metrics.counter("bigquery", f"{table.name}_refused")
        self._latency = Metrics.distribution("bigquery", f"{table.name}_latency_ms")

    def stored(self, element: TableRows, refused: dict[int, str]) -> Iterator[Any]:
        """The outputs of a sink: (name, IngestCounts of the rows stored), and dead letters for the refused rows.

        Raises RuntimeError when BigQuery refuses a dead letter, because no table is left for it.
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
    """TableRows -> (name, IngestCounts of the rows stored); on `refused`, TableRows of dead letters. `insertAll`."""

    def __init__(self, dataset: Dataset, table: Table) -> None:
        self._dataset = dataset
        self._table = table
        self._metrics = SinkMetrics(table)

    def setup(self) -> None:
        """One client per worker."""
        self._client = bigquery.client(self._dataset.project)

    def teardown(self) -> None:
        """Closes the client."""
        self._client.close()

    def process(self, element: TableRows) -> Iterator[Any]:
        """Inserts one batch."""
        refused = insert_rows(self._client, self._dataset.table(self._table), self._table, element.rows)
        yield from self._metrics.stored(element, refused)


def insert_rows(api: Client, destination: str, table: Table, rows: pa.RecordBatch) -> dict[int, str]:
    """Inserts rows by `insertAll`; returns the reasons for refused rows, by row number."""
    as_json = json_rows(rows)
    refused: dict[int, str] = {}
    done = 0
    while done < len(as_json):
        request = _fitting(as_json[done : done + ROWS_PER_REQUEST])
        errors = api.insert_rows_json(
            destination,
            request,
            row_ids=[_row_id(table, row) for row in request],
            skip_invalid_rows=True,
            timeout=TIMEOUT_SECONDS,
            retry=RETRY,
        )
        refused |= {done + error["index"]: _reason(error) for error in errors}
        done += len(request)
    return refused


def _row_id(table: Table, row: dict[str, Any]) -> str:
    return blake2b(repr([row[name] for name in table.key]).encode(), digest_size=16).hexdigest()


def _fitting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many of the first rows as fit into one request, but at least one."""
    size = 0
    for place, row in enumerate(rows):
        size += len(msgspec.json.encode(row))
        if size > BYTES_PER_REQUEST and place:
            return rows[:place]
    return rows


def _reason(error: dict[str, Any]) -> str:
    return "; ".join(
        " ".join(filter(None, (entry.get("location"), entry.get("reason"), entry.get("message"))))
        for entry in error["errors"]
    )


def refused_row(table: Table, row: dict[str, Any], reason: str) -> DeadLetter:
    """The dead letter of a row that BigQuery refused just now; its payload is the event's JSON form, ready for replay."""
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
    """TableRows -> (name, IngestCounts of the rows stored); on `refused`, TableRows of dead letters. Load jobs."""

    def __init__(self, dataset: Dataset, table: Table) -> None:
        self._destination = dataset.table(table)
        self._project = dataset.project
        self._table = table
        self._metrics = SinkMetrics(table)

    def setup(self) -> None:
        """One client per worker, and the identity of the table: an earlier table may have had the same name."""
        self._client = bigquery.client(self._project)
        created = self._client.get_table(self._destination, retry=RETRY, timeout=TIMEOUT_SECONDS).created
        self._identity = f"{self._destination} {created}"

    def teardown(self) -> None:
        """Closes the client."""
        self._client.close()

    def process(self, element: TableRows) -> Iterator[Any]:
        """Stores one batch."""
        refused: dict[int, str] = {}
        if not self._load(element):
            refused = insert_rows(self._client, self._destination, self._table, element.rows)
        yield from self._metrics.stored(element, refused)

    def _load(self, element: TableRows) -> bool:
        """Loads one batch, unless an earlier load of it succeeded. Returns False when BigQuery refuses a row."""
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

    def _job(self, data: io.BytesIO, job_id: str) -> tuple[LoadJob, bool]:
        """The job of that id, and whether this call started it."""
        data.seek(0)
        lists = ParquetOptions()
        lists.enable_list_inference = True
        job_config = LoadJobConfig(
            source_format=SourceFormat.PARQUET,
            write_disposition=WriteDisposition.WRITE_APPEND,
            create_disposition=CreateDisposition.CREATE_NEVER,
            schema=bigquery.schema(self._table),
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
    """TableRows -> (name, IngestCounts of the rows stored); on `refused`, TableRows of dead letters. Storage Write API."""

    def __init__(self, dataset: Dataset, table: Table) -> None:
        self._dataset = dataset
        self._table = table
        self._stream = f"projects/{dataset.project}/datasets/{dataset.name}/tables/{table.name}/streams/_default"
        self._metrics = SinkMetrics(table)

    def setup(self) -> None:
        """One client per worker."""
        self._client = bigquery.write_client()

    def process(self, element: TableRows) -> Iterator[Any]:
        """Appends one batch. BigQuery refuses whole requests and names the bad rows, so the other rows are sent again."""
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
        """Appends `rows`; returns the reasons for refused rows, by row number. Raises GoogleAPICallError for other failures."""
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
    """`rows` in order, in pieces of at least one row that fit into one request."""
    if rows.nbytes <= BYTES_PER_REQUEST or rows.num_rows <= 1:
        yield rows
        return
    half = rows.num_rows // 2
    yield from _pieces(rows.slice(0, half))
    yield from _pieces(rows.slice(half))


# By the name that `--write-method` has for it.
SINKS = {"streaming_inserts": InsertRowsFn, "storage_write_api": AppendRowsFn, "file_loads": LoadRowsFn}
