"""One contract for both warehouses: embedded, and on BigQuery (its emulator)."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.ingest_events import StoreEvents
from beam_jobs.options import LOCAL_RUNNER
from beam_jobs.payloads import IngestCounts, ParseEvents, PayloadBatch
from beam_jobs.places import Dataset
from beam_jobs.tables import arrow_schema, dead_letter_key
from beam_jobs.warehouses import WRITE_METHODS, BigQueryWarehouse, EmbeddedWarehouse, Warehouse, open_warehouse
from contracts.errors import InputError
from contracts.records import StatusEvent, encoder
from contracts.schemas import DEAD_LETTERS, DECISIONS, REWARDS, STATUSES, TABLES, Table
from tests.simulated import events

HERE = PipelineOptions([])
DATAFLOW = PipelineOptions(["--runner=DataflowRunner"])
START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(days=1)
STRANGER = "019b76da-a800-7000-8000-00000000cafe"


def test_a_warehouse_is_a_folder_or_a_dataset() -> None:
    assert open_warehouse("some/folder", HERE) == EmbeddedWarehouse(Path("some/folder"))
    assert open_warehouse("bigquery:my-project.bandit", DATAFLOW) == BigQueryWarehouse(Dataset("my-project", "bandit"))
    for text in ("gs://bucket/warehouse", "s3://bucket/warehouse"):
        with pytest.raises(InputError, match="--warehouse: a folder of this machine or bigquery:PROJECT"):
            open_warehouse(text, HERE)
    with pytest.raises(InputError, match="--warehouse: Dataflow cannot use a folder of this machine"):
        open_warehouse("some/folder", DATAFLOW)


def test_a_warehouse_refuses_the_flags_that_it_has_no_use_for(tmp_path: Path) -> None:
    embedded, dataset = EmbeddedWarehouse(tmp_path / "w"), BigQueryWarehouse(Dataset("p", "d"))
    with pytest.raises(InputError, match="--expiry-days: requires --warehouse bigquery:"):
        embedded.create(expiry_days=3)
    with pytest.raises(InputError, match="--write-method: requires --warehouse bigquery:"):
        embedded.sink("storage_write_api")
    with pytest.raises(InputError, match="--write-method: file_loads requires a batch job, got a subscription"):
        dataset.sink("file_loads", streaming=True)
    assert not (tmp_path / "w").exists()


@pytest.fixture(params=["embedded", *WRITE_METHODS])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Warehouse, str | None]:
    """A warehouse with empty tables, and a way of writing."""
    if request.param == "embedded":
        embedded = EmbeddedWarehouse(tmp_path / "warehouse")
        embedded.create()
        return embedded, None
    return BigQueryWarehouse(request.getfixturevalue("dataset")), request.param


def read(warehouse: Warehouse, table: Table, names: list[str] | None = None, end: datetime = END) -> pa.Table:
    parts = warehouse.parts(table, START - timedelta(days=1), end, names)
    return pa.Table.from_batches([batch for part in parts for batch in part.read()], arrow_schema(table, names))


def test_what_is_stored_is_read_counted_and_removed(made: tuple[Warehouse, str | None]) -> None:
    warehouse, write_method = made
    warehouse.check()
    status = StatusEvent(decision_id=STRANGER, occurred_at=START, status="cancelled")
    payloads = [*events(6), encoder.encode(status), b"?", b"!"]
    batch = PayloadBatch("b", payloads, [f"s:{place}" for place in range(len(payloads))], [START] * len(payloads))
    with beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_RUNNER}"])) as pipeline:
        parsed = pipeline | beam.Create([batch]) | ParseEvents()
        parsed | StoreEvents(warehouse.sink(write_method))
    assert {table.name: read(warehouse, table).num_rows for table in TABLES} == {
        DECISIONS.name: 6,
        REWARDS.name: len(payloads) - 9,
        STATUSES.name: 1,
        DEAD_LETTERS.name: 2,
    }
    [found] = read(warehouse, STATUSES).to_pylist()
    assert (found["decision_id"], found["occurred_at"], found["status"]) == (STRANGER, START, "cancelled")
    assert read(warehouse, DECISIONS, ["decided_at", "action"]).column_names == ["decided_at", "action"]
    assert read(warehouse, DECISIONS, end=START).num_rows == 0
    assert [(dim.length, dim.decisions) for dim in warehouse.observation_dims(START, END)] == [(10, 6)]
    assert warehouse.observation_dims(END, END + timedelta(days=1)) == []
    letters = read(warehouse, DEAD_LETTERS).to_pylist()
    with warehouse.locked():
        first = {dead_letter_key(row) for row in letters if row["payload"] == b"?"}
        assert warehouse.remove_dead_letters(first, START, END)
    assert [row["payload"] for row in read(warehouse, DEAD_LETTERS).to_pylist()] == [b"!"]


def test_a_segment_is_ingested_once(made: tuple[Warehouse, str | None]) -> None:
    """An embedded warehouse remembers the segments; BigQuery remembers its load jobs instead (test_bigquery_sinks)."""
    warehouse, write_method = made
    warehouse.note_ingested("segment", IngestCounts(events=1, decisions=1))
    assert warehouse.ingested() == ({"segment"} if write_method is None else set())


def test_a_folder_without_tables_is_no_warehouse(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a warehouse"):
        EmbeddedWarehouse(tmp_path).check()
