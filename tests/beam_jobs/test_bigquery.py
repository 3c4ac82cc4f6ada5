"""BigQuery's tables and reads, and jobs on them, against the emulator."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from google.cloud.bigquery_storage_v1 import types

from beam_jobs import bigquery, bigquery_sinks, ingest_events, replay_dead_letters, window_rows
from beam_jobs.export_trajectories import export
from beam_jobs.payloads import DecisionShape
from beam_jobs.places import Dataset
from beam_jobs.replay_dead_letters import ReplayCounts
from beam_jobs.tables import record_batch
from beam_jobs.warehouses import WRITE_METHODS, BigQueryWarehouse
from contracts.event_segments import segment_name
from contracts.records import Decision, event_decoder
from contracts.schemas import DEAD_LETTERS, DECISIONS, TABLES
from contracts.windows import TrainingWindow, WindowSettings
from tests.beam_jobs.test_bigquery_sinks import LoadJob
from tests.simulated import events, rows

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = TrainingWindow(START, START + timedelta(seconds=5))
SETTINGS = WindowSettings(reward_window_seconds=2)
PROJECT = "local-test"


@pytest.mark.parametrize("write_method", WRITE_METHODS)
def test_a_folder_into_bigquery(
    dataset: Dataset, tmp_path: Path, write_method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    payloads = [*events(40), b"?"]
    (tmp_path / f"{segment_name(START, 'test')}.jsonl").write_bytes(b"\n".join(payloads) + b"\n")
    flags = ["--events", str(tmp_path), "--warehouse", f"bigquery:{dataset.project}.{dataset.name}"]
    assert ingest_events.main([*flags, "--write-method", write_method]) == 0
    assert (
        capsys.readouterr().out
        == f"{len(payloads)} events: 40 decisions, {len(payloads) - 41} rewards, 1 dead letters\n"
    )
    stored = sorted(rows(dataset, DECISIONS), key=lambda row: row["decided_at"])
    decisions = [event for event in map(event_decoder.decode, payloads[:-1]) if isinstance(event, Decision)]
    assert [Decision(**row) for row in stored] == decisions
    [letter] = rows(dataset, DEAD_LETTERS)
    assert letter["payload"] == b"?"
    assert letter["failed_at"] == START
    # Of what is stored a replay finds nothing that can be read now; and of what can be, it moves all.
    bounds = ["--start", "2026-01-01T00:00:00Z", "--end", "2026-01-02T00:00:00Z"]
    assert replay_dead_letters.main([*flags[2:], *bounds]) == 0
    assert capsys.readouterr().out == "1 dead letters: 0 replayed, 1 still cannot be read\n"


def test_replay_from_bigquery(dataset: Dataset) -> None:
    good = events(1)[0]
    client = bigquery.client(PROJECT)
    letter = {"error_type": "x", "error_message": "m", "stage": "parse", "failed_at": START.isoformat()}
    whole = msgspec.json.encode(good).decode()[1:-1]
    beyond = msgspec.json.encode(good.replace(b'"action":', b'"action":1000')).decode()[1:-1]
    payloads = [("Pz8=", "1"), (whole, "2"), (beyond, "3")]
    client.insert_rows_json(
        dataset.table(DEAD_LETTERS), [letter | {"payload": payload, "source": source} for payload, source in payloads]
    )
    client.close()
    counts = replay_dead_letters.replay(
        BigQueryWarehouse(dataset), START, START + timedelta(days=1), DecisionShape(num_actions=1000)
    )
    assert counts == ReplayCounts(letters=3, replayed=1, remaining=2)
    assert sorted(row["source"] for row in rows(dataset, DEAD_LETTERS)) == ["1", "3"]
    assert len(rows(dataset, DECISIONS)) == 1


def test_what_bigquery_refuses_again_stays_a_dead_letter(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the same payload and source as the letter that is removed, and the new reason."""
    decisions = [event for event in map(event_decoder.decode, events(3)) if isinstance(event, Decision)]
    letters = [
        msgspec.structs.replace(bigquery_sinks.refused_row(DECISIONS, row, "earlier"), failed_at=START)
        for row in bigquery_sinks.json_rows(record_batch(DECISIONS, decisions))
    ]
    client = bigquery.client(PROJECT)
    client.insert_rows_json(
        dataset.table(DEAD_LETTERS), bigquery_sinks.json_rows(record_batch(DEAD_LETTERS, letters)), timeout=60
    )
    client.close()
    bad = decisions[1].decision_id
    emulated = bigquery.client
    monkeypatch.setattr(bigquery, "client", lambda project: Pedant(emulated(project), bad))
    far = datetime(2999, 1, 1, tzinfo=UTC)  # the range holds what fails now
    counts = replay_dead_letters.replay(BigQueryWarehouse(dataset), START, far)
    assert counts == ReplayCounts(letters=3, replayed=2, remaining=1)
    assert sorted(row["decision_id"] for row in rows(dataset, DECISIONS)) == sorted(
        {event.decision_id for event in decisions} - {bad}
    )
    [left] = rows(dataset, DEAD_LETTERS)
    assert (left["source"], left["error_type"]) == (bad, "RefusedByBigQuery")
    assert left["error_message"] == "decision_id invalid no such decision"
    assert event_decoder.decode(left["payload"]) == decisions[1]


class Pedant:
    """The emulator's client, but for one decision that it refuses: a load job as a whole, an inserted row by itself."""

    def __init__(self, client: Any, refused: str) -> None:
        self._client = client
        self._refused = refused

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def load_table_from_file(self, file: Any, destination: str, **settings: Any) -> Any:
        if self._refused in pq.read_table(file).to_pydict().get("decision_id", []):
            return LoadJob("invalid")
        file.seek(0)
        return self._client.load_table_from_file(file, destination, **settings)

    def insert_rows_json(self, table: str, json_rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
        reason = {"reason": "invalid", "location": "decision_id", "message": "no such decision"}
        bad = [place for place, row in enumerate(json_rows) if row.get("decision_id") == self._refused]
        good = [row for row in json_rows if row.get("decision_id") != self._refused]
        if good:
            assert not self._client.insert_rows_json(table, good)
        return [{"index": place, "errors": [reason]} for place in bad]


def test_tables_are_created_as_the_contract_says(dataset: Dataset) -> None:
    client = bigquery.client(PROJECT)
    for table in TABLES:
        found = client.get_table(dataset.table(table))
        assert [(field.name, field.mode) for field in found.schema] == [
            (field.name, field.mode) for field in bigquery.schema(table)
        ]
        assert found.time_partitioning.field == table.partitioned_by
        assert found.time_partitioning.expiration_ms == 30 * 86_400_000
        assert tuple(found.clustering_fields) == table.clustered_by
    client.close()
    bigquery.ensure_tables(dataset, expiry_days=None)  # there already


def test_only_the_columns_and_the_range_asked_for_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What BigQuery is asked for: it then opens only the partitions that the range touches."""
    asked: list[dict[str, Any]] = []

    class ReadClient:
        def create_read_session(self, **request: Any) -> types.ReadSession:
            asked.append(request)
            return types.ReadSession()

    monkeypatch.setattr(bigquery, "read_client", ReadClient)
    for rows_range in window_rows.row_ranges(WINDOW, SETTINGS):
        bigquery.open_streams(
            Dataset(PROJECT, "d"), rows_range.table, rows_range.start, rows_range.end, rows_range.columns
        )
    sessions = {request["read_session"].table.rpartition("/")[2]: request["read_session"] for request in asked[1:]}
    assert list(sessions["decisions"].read_options.selected_fields) == ["decision_id", "decided_at"]
    assert sessions["decisions"].read_options.row_restriction == (
        "decided_at >= '2025-12-31T23:00:00+00:00' AND decided_at < '2026-01-01T00:00:00+00:00'"
    )
    assert sessions["rewards"].read_options.row_restriction == (
        "occurred_at >= '2025-12-31T23:59:58+00:00' AND occurred_at < '2026-01-01T00:00:07.000001+00:00'"
    )
    assert {request["parent"] for request in asked} == {f"projects/{PROJECT}"}


def test_a_quiet_window_of_bigquery(dataset: Dataset, tmp_path: Path) -> None:
    manifest = export(BigQueryWarehouse(dataset), tmp_path, WINDOW, SETTINGS, max_records_per_file=4_000)
    assert (manifest.counts.decisions, manifest.files) == (0, [])


def test_observations_of_another_length_are_set_aside(dataset: Dataset, tmp_path: Path) -> None:
    """As from the embedded warehouse."""
    decisions = [event for event in map(event_decoder.decode, events(3)) if isinstance(event, Decision)]
    decisions.append(msgspec.structs.replace(decisions[0], decision_id=decisions[0].decision_id[:-1] + "f"))
    decisions[-1] = msgspec.structs.replace(decisions[-1], observation=[1.0])
    client = bigquery.client(PROJECT)
    client.insert_rows_json(dataset.table(DECISIONS), bigquery_sinks.json_rows(record_batch(DECISIONS, decisions)))
    client.close()
    manifest = export(BigQueryWarehouse(dataset), tmp_path, WINDOW, SETTINGS)
    assert (manifest.counts.decisions, manifest.counts.set_aside, manifest.observation_dim) == (4, 1, 10)
    assert manifest.records("train", "holdback") == 3
