import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import warehouse
from beam_jobs.tables import arrow_schema, record_batch
from contracts.errors import InputError
from contracts.records import Decision, RewardEvent
from contracts.schemas import DECISIONS, REWARDS

START = datetime(2026, 1, 1, 23, 59, 59, tzinfo=UTC)


def decision_id(number: int) -> str:
    return f"019b76da-a800-7000-8000-{number:012x}"


def decision(number: int, at: datetime, **fields: object) -> Decision:
    given = {"policy_version": "v1", "observation": [float(number)], "action": 0, "propensity": 1.0}
    return Decision(decision_id=decision_id(number), decided_at=at, **(given | fields))


def write(folder: Path, name: str, *decisions: Decision) -> None:
    warehouse.write(folder, DECISIONS, name, record_batch(DECISIONS, decisions))


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def numbers(rows: pa.Table) -> list[float]:
    return [observation[0] for observation in rows["observation"].to_pylist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    warehouse.create(tmp_path)
    return tmp_path


def test_a_range_is_half_open_and_ordered(folder: Path) -> None:
    write(folder, "b", decision(3, START + seconds(3)), decision(1, START + seconds(1)))
    write(folder, "a", decision(2, START + seconds(2)), decision(0, START))
    assert numbers(warehouse.read(folder, DECISIONS, START, START + seconds(3)).rows) == [0, 1, 2]
    assert numbers(warehouse.read(folder, DECISIONS, START + seconds(1), START + seconds(1.000001)).rows) == [1]
    assert warehouse.read(folder, DECISIONS, START + seconds(9), START + seconds(10)).rows.num_rows == 0
    keys = warehouse.read(folder, DECISIONS, START, START + seconds(1), ["decision_id"]).rows
    assert keys.to_pylist() == [{"decision_id": decision_id(0)}]
    assert warehouse.read_all(folder, DECISIONS, START, START + seconds(2)).num_rows == 2


def test_a_file_is_on_the_disk_before_it_has_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So what is noted as ingested is there after the power failed, too."""
    synced: list[tuple[int, int]] = []  # which file, and how long it was

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        synced.append((found.st_ino, found.st_size))
        assert not list(folder.rglob("*.parquet"))

    monkeypatch.setattr(os, "fsync", fsync)
    write(folder, "x", decision(0, START))
    [path] = folder.rglob("*.parquet")
    assert synced == [(path.stat().st_ino, path.stat().st_size)]


def test_rows_stand_by_day_and_only_files_that_matter_are_opened(folder: Path) -> None:
    write(folder, "x", decision(0, START), decision(1, START + seconds(2)), decision(2, START + seconds(86_402)))
    days = {path.parent.name: path for path in (folder / "decisions").rglob("*.parquet")}
    assert sorted(days) == ["day=2026-01-01", "day=2026-01-02", "day=2026-01-03"]
    days["day=2026-01-02"].write_bytes(b"not Parquet: reading it fails")
    assert numbers(warehouse.read(folder, DECISIONS, START, START + seconds(1)).rows) == [0]
    assert numbers(warehouse.read(folder, DECISIONS, START + seconds(10), START + seconds(90_000)).rows) == [2]


@pytest.mark.parametrize("newer", [True, False])
def test_files_from_before_a_column_existed_are_read(folder: Path, newer: bool) -> None:
    write(folder, "old", decision(0, START))
    [path] = folder.rglob("*.parquet")
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["slate_id", "place"]), path)
    if newer:
        write(folder, "new", decision(1, START, slate_id=decision_id(1), place=0, candidates=[0, 2]))
    expected = [{"candidates": [], "slate_id": None, "place": None}]
    expected += [{"candidates": [0, 2], "slate_id": decision_id(1), "place": 0}] * newer
    for read in (
        warehouse.read(folder, DECISIONS, START, START + seconds(1)).rows,
        warehouse.read_all(folder, DECISIONS, START, START + seconds(1)).sort_by("decision_id"),
    ):
        assert read.select(["candidates", "slate_id", "place"]).to_pylist() == expected


def test_writing_again_changes_nothing(folder: Path) -> None:
    rows = [decision(0, START), decision(1, START)]
    write(folder, "x", *rows)
    before = {path: path.read_bytes() for path in folder.rglob("*.parquet")}
    write(folder, "x", *rows)
    assert {path: path.read_bytes() for path in folder.rglob("*.parquet")} == before
    assert not list(folder.rglob("*.unfinished"))


def test_duplicates_are_removed_when_reading_the_earliest_stays(folder: Path) -> None:
    write(folder, "b", decision(0, START + seconds(0.5), action=9), decision(1, START))
    write(folder, "a", decision(0, START), decision(1, START), decision(1, START))
    read = warehouse.read(folder, DECISIONS, START, START + seconds(1))
    assert read.duplicates == 3
    assert [(row["decision_id"], row["action"]) for row in read.rows.to_pylist()] == [
        (decision_id(0), 0),
        (decision_id(1), 0),
    ]
    assert warehouse.read_all(folder, DECISIONS, START, START + seconds(1)).num_rows == 5


def test_rows_that_contradict_each_other_are_told_apart_the_same_way_in_any_order(tmp_path: Path) -> None:
    pair = [decision(0, START, action=1, observation=[2.0]), decision(0, START, action=1, observation=[1.0])]
    for name, rows in (("one", pair), ("two", pair[::-1])):
        warehouse.create(tmp_path / name)
        for place, row in enumerate(rows):
            write(tmp_path / name, f"{place}", row)
        read = warehouse.read(tmp_path / name, DECISIONS, START, START + seconds(1))
        assert (numbers(read.rows), read.duplicates) == ([1.0], 1)


def test_a_reward_is_a_duplicate_only_when_all_of_it_is(folder: Path) -> None:
    def reward(value: float, at: datetime) -> RewardEvent:
        return RewardEvent(decision_id=decision_id(0), occurred_at=at, reward=value)

    rows = [reward(1, START), reward(1, START), reward(2, START), reward(1, START + seconds(0.1))]
    warehouse.write(folder, REWARDS, "x", record_batch(REWARDS, rows))
    read = warehouse.read(folder, REWARDS, START, START + seconds(1))
    assert (read.rows["reward"].to_pylist(), read.duplicates) == ([1, 2, 1], 1)


def test_lengths_of_observations(folder: Path) -> None:
    write(folder, "x", decision(0, START), decision(1, START, observation=[1.0, 2.0]))
    write(folder, "y", decision(0, START), decision(2, START))
    found = warehouse.observation_dims(folder, START, START + seconds(1))
    assert found == [(1, 2, decision_id(0)), (2, 1, decision_id(1))]
    assert warehouse.observation_dims(folder, START + seconds(5), START + seconds(6)) == []


def test_moments_far_from_now(folder: Path) -> None:
    write(folder, "x", decision(0, datetime(1, 1, 1, tzinfo=UTC)), decision(1, datetime(9999, 12, 31, tzinfo=UTC)))
    everything = warehouse.read(folder, DECISIONS, datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 1, tzinfo=UTC))
    assert numbers(everything.rows) == [0, 1]


def test_not_a_warehouse(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a warehouse: it has no folder named decisions"):
        warehouse.read(tmp_path, DECISIONS, START, START + seconds(1))


@pytest.mark.parametrize("size", [0, 100])
def test_a_torn_file_is_named(folder: Path, size: int) -> None:
    write(folder, "x", decision(0, START))
    (path,) = folder.rglob("x.*.parquet")
    path.write_bytes(path.read_bytes()[:size])
    for query in (warehouse.read, warehouse.read_all):
        with pytest.raises(
            InputError, match=re.escape(f"{folder}: a file cannot be read: ") + r".*x\.\d+-\d+\.parquet"
        ):
            query(folder, DECISIONS, START, START + seconds(1))


def test_reads_of_all_rows_keep_to_the_range_and_fill_in_what_was_added_later(folder: Path) -> None:
    write(folder, "x", *(decision(number, START + seconds(number)) for number in range(4)))
    for path in folder.rglob("x.*.parquet"):
        stored = pq.read_table(path, partitioning=None)
        pq.write_table(stored.drop_columns(["slate_id", "place"]), path)
    found = warehouse.read_all(folder, DECISIONS, START + seconds(1), START + seconds(3))
    assert sorted(numbers(found)) == [1, 2]
    assert found.schema == arrow_schema(DECISIONS)
    assert found["slate_id"].null_count == 2
    ids = warehouse.read_all(folder, DECISIONS, START + seconds(1), START + seconds(3), ("decision_id",))
    assert sorted(ids["decision_id"].to_pylist()) == [decision_id(1), decision_id(2)]


def test_a_column_that_a_table_must_have_is_missed(folder: Path) -> None:
    write(folder, "x", decision(0, START))
    (path,) = folder.rglob("x.*.parquet")
    whole = pq.read_table(path, partitioning=None)
    for column, queries in (
        ("propensity", (warehouse.read, warehouse.read_all)),
        ("decided_at", (warehouse.read_all,)),
    ):
        pq.write_table(whole.drop_columns([column]), path)
        for query in queries:
            with pytest.raises(InputError, match=re.escape(f"{folder}: a table is not as it must be: ")):
                query(folder, DECISIONS, START, START + seconds(1))
