from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
import pytest

from beam_jobs.tables import arrow_schema, count_distinct, record_batch
from contracts.records import DeadLetter, Decision
from contracts.schemas import DEAD_LETTERS, DECISIONS, TABLES, Table, columns

MOMENT = datetime(2026, 1, 1, 2, 0, 0, 123456, timezone(timedelta(hours=2)))
DECISION_ID = "019b76da-a800-750d-b5dc-274f35984d4e"


def decision(**fields: object) -> Decision:
    given = {
        "decision_id": DECISION_ID,
        "decided_at": MOMENT,
        "policy_version": "v1",
        "observation": [0.1, -2.0],
        "action": 3,
        "propensity": 0.25,
    }
    return Decision(**(given | fields))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_schema_follows_the_contract(table: Table) -> None:
    schema = arrow_schema(table)
    assert schema.names == [column.name for column in columns(table.record)]
    assert {field.name for field in schema if field.nullable} == {
        column.name for column in columns(table.record) if column.mode == "NULLABLE"
    }


def test_rows_hold_what_the_records_hold() -> None:
    rows = record_batch(
        DECISIONS,
        [decision(), decision(user_id="u", candidates=[3, 4], observation=[1.0], slate_id=DECISION_ID, place=0)],
    )
    assert rows.to_pylist() == [
        {
            "decision_id": DECISION_ID,
            "decided_at": datetime(2026, 1, 1, 0, 0, 0, 123456, UTC),
            "policy_version": "v1",
            "user_id": None,
            "observation": [0.1, -2.0],
            "candidates": [],
            "action": 3,
            "propensity": 0.25,
            "slate_id": None,
            "place": None,
            "deferred": None,
        },
        {
            "decision_id": DECISION_ID,
            "decided_at": datetime(2026, 1, 1, 0, 0, 0, 123456, UTC),
            "policy_version": "v1",
            "user_id": "u",
            "observation": [1.0],
            "candidates": [3, 4],
            "action": 3,
            "propensity": 0.25,
            "slate_id": DECISION_ID,
            "place": 0,
            "deferred": None,
        },
    ]


def test_bytes_and_times_at_the_edges() -> None:
    letter = DeadLetter(
        payload=b"\xff\x00",
        error_type="DecodeError",
        error_message="m",
        stage="parse",
        failed_at=datetime(1, 1, 1, tzinfo=UTC),
    )
    [row] = record_batch(DEAD_LETTERS, [letter]).to_pylist()
    assert row["payload"] == b"\xff\x00"
    assert row["failed_at"] == datetime(1, 1, 1, tzinfo=UTC)
    assert row["source"] is None


def test_no_records() -> None:
    assert record_batch(DECISIONS, []).equals(pa.RecordBatch.from_pylist([], arrow_schema(DECISIONS)))


@pytest.mark.parametrize(("numbers", "distinct"), [((), 0), ((1,), 1), ((1, 2, 3), 3), ((1, 2, 1, 3, 2), 3)])
def test_ids_are_counted_once(numbers: tuple[int, ...], distinct: int) -> None:
    ids = [f"019b76da-a800-7000-8000-{number:012x}" for number in numbers]
    assert count_distinct(pa.chunked_array([ids[:2], ids[2:]], pa.string())) == distinct
