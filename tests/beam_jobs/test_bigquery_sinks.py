"""The sinks of BigQuery, with clients that answer as BigQuery does where the emulator is laxer."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from google.api_core import exceptions
from google.cloud.bigquery_storage_v1 import types

from beam_jobs import bigquery, bigquery_sinks, ingest_events
from beam_jobs.options import LOCAL_RUNNER
from beam_jobs.payloads import MAX_EVENT_BYTES, IngestCounts, ParseEventsFn, PayloadBatch
from beam_jobs.places import Dataset
from beam_jobs.tables import TableRows, record_batch
from beam_jobs.warehouses import WRITE_METHODS, BigQueryWarehouse
from contracts.event_segments import segment_name
from contracts.records import Decision, encoder, event_decoder
from contracts.schemas import DEAD_LETTERS, DECISIONS, TABLES
from contracts.windows import TrainingWindow, WindowSettings
from tests.simulated import events

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = TrainingWindow(START, START + timedelta(seconds=5))
SETTINGS = WindowSettings(reward_window_seconds=2)
PROJECT = "local-test"


class LoadJob:
    """A load job as BigQuery keeps it."""

    def __init__(self, reason: str | None) -> None:
        self.error_result = {"reason": reason} if reason else None

    def result(self) -> None:
        if self.error_result:
            kind = exceptions.BadRequest if self.error_result["reason"] == "invalid" else exceptions.InternalServerError
            raise kind(self.error_result["reason"])


class LoadingClient:
    """As BigQuery treats the ids of load jobs: each is run once. The emulator runs them again."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.jobs: dict[str, LoadJob] = {}
        self.loaded = 0
        self.created = START

    def get_table(self, table: str, **_: Any) -> Any:
        return SimpleNamespace(created=self.created)

    def load_table_from_file(self, file: Any, destination: str, job_id: str, **_: Any) -> LoadJob:
        if job_id in self.jobs:
            raise exceptions.Conflict("Already Exists: Job")
        self.jobs[job_id] = LoadJob("backendError" if self.failures > 0 else None)
        self.failures -= 1
        if not self.jobs[job_id].error_result:
            self.loaded += pq.read_table(file).num_rows
        return self.jobs[job_id]

    def get_job(self, job_id: str, **_: Any) -> LoadJob:
        return self.jobs[job_id]


def test_a_batch_is_loaded_once_however_often_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    client = LoadingClient(failures=2)
    monkeypatch.setattr(bigquery, "client", lambda project: client)
    decisions = [event for event in map(event_decoder.decode, events(7)) if isinstance(event, Decision)]
    batch = TableRows("segment-000000", record_batch(DECISIONS, decisions))
    load = bigquery_sinks.LoadRowsFn(Dataset(PROJECT, "d"), DECISIONS)
    load.setup()
    for _ in range(2):  # BigQuery fails; a runner tries again
        with pytest.raises(exceptions.InternalServerError):
            list(load.process(batch))
    for _ in range(3):  # then it is loaded, and two workers more do the same work
        assert list(load.process(batch)) == [("segment-000000", IngestCounts(decisions=7))]
    assert client.loaded == 7
    other = batch._replace(name="segment-000001")
    list(load.process(other))
    assert client.loaded == 14
    # What a later code makes of the same events is not what was loaded.
    list(load.process(batch._replace(rows=batch.rows.slice(1))))
    assert client.loaded == 20
    # The tables were dropped, and made again: those jobs' rows are gone.
    client.created += timedelta(days=1)
    load.setup()
    list(load.process(batch))
    assert client.loaded == 27


def test_how_old_events_are_once_stored_is_a_metric(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / f"{segment_name(START, 'test')}.jsonl").write_bytes(b"\n".join(events(5)) + b"\n")
    pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_RUNNER}"]))
    segments = [str(path) for path in tmp_path.iterdir()]
    destination = BigQueryWarehouse(dataset)
    ingest_events.build_pipeline(pipeline, segments, destination, destination.sink("storage_write_api"))
    result = pipeline.run()
    result.wait_until_finish()
    [latency] = [
        found.committed
        for found in result.metrics().query()["distributions"]
        if found.key.metric.name == "decisions_latency_ms"
    ]
    assert latency.count == 5
    expected = (datetime.now(UTC) - START).total_seconds() * 1000
    assert latency.min == pytest.approx(expected, abs=120_000)


class RefusingClient:
    """As BigQuery answers when it refuses some rows: the emulator takes everything."""

    def __init__(self, refused_action: int) -> None:
        self.refused_action = refused_action
        self.inserted: dict[str, list[dict[str, Any]]] = {}

    def get_table(self, table: str, **_: Any) -> Any:
        return SimpleNamespace(created=START)

    def load_table_from_file(self, file: Any, destination: str, **_: Any) -> LoadJob:
        found = pq.read_table(file).to_pylist()
        if any(row.get("action") == self.refused_action for row in found):
            return LoadJob("invalid")
        self.inserted.setdefault(destination, []).extend(found)
        return LoadJob(None)

    def insert_rows_json(self, table: str, json_rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
        assert settings["skip_invalid_rows"]
        assert len(settings["row_ids"]) == len(json_rows)
        errors = [
            {"index": place, "errors": [{"reason": "invalid", "location": "action", "message": "no such\naction"}]}
            for place, row in enumerate(json_rows)
            if row.get("action") == self.refused_action
        ]
        bad = {error["index"] for error in errors}
        self.inserted.setdefault(table, []).extend(row for place, row in enumerate(json_rows) if place not in bad)
        return errors

    def close(self) -> None:
        pass


class RefusingWriteClient:
    """The same for appended rows: a request with a row that is refused is refused as a whole."""

    def __init__(self, refused_action: int) -> None:
        self.refused_action = refused_action
        self.inserted: dict[str, list[dict[str, Any]]] = {}

    def append_rows(
        self, requests: Iterator[types.AppendRowsRequest], timeout: float
    ) -> list[types.AppendRowsResponse]:
        [request] = requests
        arrow = request.arrow_rows
        schema = pa.ipc.read_schema(pa.py_buffer(arrow.writer_schema.serialized_schema))
        batch = pa.ipc.read_record_batch(pa.py_buffer(arrow.rows.serialized_record_batch), schema)
        errors = [
            types.RowError(index=place, code=types.RowError.RowErrorCode.FIELDS_ERROR, message="no such\naction")
            for place, row in enumerate(batch.to_pylist())
            if row.get("action") == self.refused_action
        ]
        if errors:
            return [types.AppendRowsResponse(error={"code": 3, "message": "row errors"}, row_errors=errors)]
        self.inserted.setdefault(request.write_stream, []).extend(batch.to_pylist())
        return [types.AppendRowsResponse(append_result={})]


@pytest.mark.parametrize("write_method", WRITE_METHODS)
def test_rows_that_bigquery_refuses_become_dead_letters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write_method: str
) -> None:
    payloads = events(1_200)  # several requests
    decisions = [event for event in map(event_decoder.decode, payloads) if isinstance(event, Decision)]
    refused = [event for event in decisions if event.action == 3]
    inserting, appending = RefusingClient(refused_action=3), RefusingWriteClient(refused_action=3)
    monkeypatch.setattr(bigquery, "client", lambda project: inserting)
    monkeypatch.setattr(bigquery, "write_client", lambda: appending)
    monkeypatch.setattr(bigquery_sinks, "BYTES_PER_REQUEST", 50_000)
    (tmp_path / f"{segment_name(START, 'test')}.jsonl").write_bytes(b"\n".join(payloads) + b"\n")
    options = PipelineOptions([f"--runner={LOCAL_RUNNER}"])
    destination = BigQueryWarehouse(Dataset(PROJECT, "d"))
    with beam.Pipeline(options=options) as pipeline:
        ingest_events.build_pipeline(
            pipeline, [str(path) for path in tmp_path.iterdir()], destination, destination.sink(write_method)
        )
    if write_method != "storage_write_api":
        inserted = {table.name: inserting.inserted.get(f"{PROJECT}.d.{table.name}", []) for table in TABLES}
        reason = "action invalid no such action"
    else:
        stream = "projects/{}/datasets/d/tables/{}/streams/_default"
        inserted = {table.name: appending.inserted.get(stream.format(PROJECT, table.name), []) for table in TABLES}
        reason = "FIELDS_ERROR no such action"
    assert len(inserted["decisions"]) == 1_200 - len(refused)
    assert len(inserted["rewards"]) == len(payloads) - 1_200
    letters = inserted["dead_letters"]
    assert len(letters) == len(refused) > 10
    assert {(row["error_type"], row["error_message"], row["stage"]) for row in letters} == {
        ("RefusedByBigQuery", reason, "insert_decisions")
    }
    sent = [
        row["payload"] if isinstance(row["payload"], bytes) else base64.b64decode(row["payload"]) for row in letters
    ]
    replayable = sorted(map(event_decoder.decode, sent), key=lambda event: event.decision_id)
    assert replayable == sorted(refused, key=lambda event: event.decision_id)


class PartitionedClient(RefusingClient):
    """As BigQuery treats streamed rows: none goes into a partition of long ago."""

    def __init__(self) -> None:
        super().__init__(refused_action=-1)

    def insert_rows_json(self, table: str, json_rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
        moments = [row.get("decided_at") or row.get("occurred_at") or row["failed_at"] for row in json_rows]
        errors = [
            {"index": place, "errors": [{"reason": "invalid", "message": "outside the allowed bounds"}]}
            for place, moment in enumerate(moments)
            if moment < "2000"
        ]
        bad = {error["index"] for error in errors}
        self.inserted.setdefault(table, []).extend(row for place, row in enumerate(json_rows) if place not in bad)
        return errors


def test_the_largest_payload_fits_into_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a dead letter, in base 64, with the longest of messages: BigQuery refuses a larger request, and so would again."""
    client = RefusingClient(refused_action=-1)
    monkeypatch.setattr(bigquery, "client", lambda project: client)
    quoted = b'{"kind":"' + b"A" * (MAX_EVENT_BYTES - 11) + b'"}'  # an error that quotes what it is about
    payloads = [b"\\" * MAX_EVENT_BYTES, b"?" * (MAX_EVENT_BYTES + 1), quoted]
    received = PayloadBatch("one", payloads, ["a", "b", "c"], [START] * 3)
    [rows] = [output.value for output in ParseEventsFn().process(received)]
    assert rows.rows.num_rows == 3
    sizes: list[int] = []
    insert = client.insert_rows_json

    def measured(table: str, json_rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
        sizes.append(len(msgspec.json.encode(json_rows)))
        return insert(table, json_rows, **settings)

    monkeypatch.setattr(client, "insert_rows_json", measured)
    store = bigquery_sinks.InsertRowsFn(Dataset(PROJECT, "d"), DEAD_LETTERS)
    store.setup()
    list(store.process(rows))
    assert max(sizes) < 10_000_000
    assert sum(map(len, client.inserted.values())) == 3


def test_the_largest_payloads_fit_into_appended_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also side by side among small ones: BigQuery takes 10 MB at a time."""
    client = RefusingWriteClient(refused_action=-1)
    monkeypatch.setattr(bigquery, "write_client", lambda: client)
    payloads = [b"?"] * 1_000 + [b"\\" * MAX_EVENT_BYTES] * 2 + [b"?"] * 1_000
    received = PayloadBatch("one", payloads, [f"s:{place}" for place in range(2_002)], [START] * 2_002)
    [rows] = [output.value for output in ParseEventsFn().process(received)]
    sizes: list[int] = []
    append = client.append_rows

    def measured(requests: Iterator[types.AppendRowsRequest], timeout: float) -> list[types.AppendRowsResponse]:
        [request] = requests
        sizes.append(types.AppendRowsRequest.pb(request).ByteSize())
        return append(iter([request]), timeout)

    monkeypatch.setattr(client, "append_rows", measured)
    store = bigquery_sinks.AppendRowsFn(Dataset(PROJECT, "d"), DEAD_LETTERS)
    store.setup()
    list(store.process(rows))
    assert max(sizes) < 10_000_000
    [stored] = client.inserted.values()
    assert [row["source"] for row in stored] == received.sources


def test_a_moment_that_bigquery_has_no_partition_for_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = PartitionedClient()
    monkeypatch.setattr(bigquery, "client", lambda project: client)
    reward = event_decoder.decode(next(line for line in events(10) if b"occurred_at" in line))
    old = encoder.encode(msgspec.structs.replace(reward, occurred_at=datetime(1650, 1, 1, tzinfo=UTC)))
    (tmp_path / f"{segment_name(START, 'test')}.jsonl").write_bytes(old + b"\n" + encoder.encode(reward) + b"\n")
    destination = BigQueryWarehouse(Dataset(PROJECT, "d"))
    with beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_RUNNER}"])) as pipeline:
        ingest_events.build_pipeline(
            pipeline, [str(path) for path in tmp_path.iterdir()], destination, destination.sink("streaming_inserts")
        )
    assert len(client.inserted[f"{PROJECT}.d.rewards"]) == 1
    [letter] = client.inserted[f"{PROJECT}.d.dead_letters"]
    assert letter["error_message"] == "invalid outside the allowed bounds"
    assert base64.b64decode(letter["payload"]).startswith(b'{"kind":"reward"')
