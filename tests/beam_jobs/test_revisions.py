"""Rows that come after their window was exported are counted, and a revision takes them in."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from beam_jobs import export_trajectories, revisions, warehouse
from beam_jobs.export_trajectories import export, revise, revise_late
from beam_jobs.tables import record_batch
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts.errors import InputError
from contracts.records import Decision, Event, RewardEvent, StatusEvent
from contracts.schemas import DECISIONS, REWARDS, STATUSES
from contracts.windows import MANIFEST_NAME, Manifest, TrainingWindow, WindowSettings, decode_manifest, window_start
from trainer import dataset

START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = WindowSettings(reward_window_seconds=2, settle_seconds=1, missing_reward="drop", late_horizon_seconds=60)
FIRST, SECOND, THIRD = (
    TrainingWindow(START + timedelta(seconds=10 * i), START + timedelta(seconds=10 * (i + 1))) for i in range(3)
)
Store = Callable[..., None]


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def decision(number: int, seconds: float) -> Decision:
    return Decision(
        decision_id=f"019b76da-a800-7000-8000-{number:012x}",
        decided_at=at(seconds),
        policy_version="v",
        observation=[number / 8, 1.0],
        action=number % 3,
        propensity=0.5,
    )


def reward(number: int, seconds: float, value: float = 1.0) -> RewardEvent:
    return RewardEvent(decision_id=decision(number, 0).decision_id, occurred_at=at(seconds), reward=value)


def cancellation(number: int, seconds: float) -> StatusEvent:
    identity = decision(number, 0).decision_id
    return StatusEvent(decision_id=identity, occurred_at=at(seconds), status="cancelled")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Stores events; those of the first three windows are there: ten decisions each, all but the last two rewarded."""
    folder = tmp_path / "warehouse"
    warehouse.create(folder)
    calls = iter(range(1000))

    def put(*events: Event) -> None:
        name = f"segment-{next(calls)}"
        for table, kind in ((DECISIONS, Decision), (REWARDS, RewardEvent), (STATUSES, StatusEvent)):
            warehouse.write(folder, table, name, record_batch(table, [one for one in events if isinstance(one, kind)]))

    put(*(decision(number, number) for number in range(30)))
    put(*(reward(number, number + 0.5) for number in range(30) if number % 10 < 8))
    return put


def run(tmp_path: Path, window: TrainingWindow) -> Manifest:
    return export(EmbeddedWarehouse(tmp_path / "warehouse"), tmp_path / "windows", window, SETTINGS)


def late(tmp_path: Path) -> dict[str, int]:
    found = revisions.exported_between(str(tmp_path / "windows"), START, at(100))
    return {w.folder: n for w, n in revisions.late_rows(EmbeddedWarehouse(tmp_path / "warehouse"), found).items()}


def again(tmp_path: Path, until: float = 30) -> list[Manifest]:
    return revise_late(EmbeddedWarehouse(tmp_path / "warehouse"), tmp_path / "windows", at(until), SETTINGS)


def test_the_manifest_of_the_next_window_counts_rows_that_came_late(tmp_path: Path, store: Store) -> None:
    assert run(tmp_path, FIRST).late_rows == {}
    store(reward(8, 8.5), reward(9, 10.5), decision(100, 3))  # two rewards and a decision
    assert run(tmp_path, SECOND).late_rows == {FIRST.folder: 3}
    assert run(tmp_path, THIRD).late_rows == {FIRST.folder: 3}  # still not taken in
    assert late(tmp_path) == {FIRST.folder: 3}


@pytest.mark.parametrize(
    "events",
    [
        [reward(3, 3.5), decision(3, 3)],  # stored before
        [reward(3, 9.0)],  # after its reward window
        [reward(500, 3.0)],  # for an unknown decision
        [decision(31, 31), reward(31, 31.5)],  # of a window that was not exported
    ],
)
def test_rows_that_change_no_record_are_not_late(tmp_path: Path, store: Store, events: list[Decision]) -> None:
    run(tmp_path, FIRST)
    store(*events)
    assert late(tmp_path) == {}
    assert again(tmp_path) == []


def test_a_revision_takes_late_rows_in_and_is_a_window_of_its_own(tmp_path: Path, store: Store) -> None:
    first = run(tmp_path, FIRST)
    before = {path: path.read_bytes() for path in (tmp_path / "windows").rglob("*") if path.is_file()}
    store(reward(8, 8.5), decision(100, 3), reward(100, 3.5))
    [manifest] = again(tmp_path)
    assert (manifest.revision, manifest.revises, manifest.folder) == (1, FIRST.folder, f"{FIRST.folder}.r1")
    assert (first.counts.decisions, first.counts.rewards) == (10, 8)
    assert (manifest.counts.decisions, manifest.counts.rewards) == (11, 10)
    assert {path: path.read_bytes() for path in before} == before
    assert again(tmp_path) == [] and late(tmp_path) == {}
    [ready] = dataset.ready_windows(tmp_path / "windows")
    assert ready.manifest == manifest
    store(reward(9, 9.5))
    assert [one.folder for one in again(tmp_path)] == [f"{FIRST.folder}.r2"]
    assert [one.manifest.revises for one in dataset.ready_windows(tmp_path / "windows")] == [f"{FIRST.folder}.r1"]


def test_a_revision_has_the_records_of_an_export_that_had_all_rows_at_once(tmp_path: Path, store: Store) -> None:
    run(tmp_path, FIRST)
    store(reward(8, 8.5), decision(100, 3), reward(100, 3.5))
    [revised] = again(tmp_path)
    source = EmbeddedWarehouse(tmp_path / "warehouse")
    whole = export(source, tmp_path / "elsewhere", FIRST, SETTINGS)
    assert msgspec.structs.replace(whole, revision=1, revises=FIRST.folder) == revised
    for file in whole.files:
        one, two = (
            tmp_path / place / file.name for place in (f"windows/{revised.folder}", f"elsewhere/{whole.folder}")
        )
        assert one.read_bytes() == two.read_bytes()


def test_a_cancellation_that_came_late_takes_its_decision_out_of_the_revision(tmp_path: Path, store: Store) -> None:
    store(cancellation(2, 3.0))
    first = run(tmp_path, FIRST)
    assert (first.counts.cancelled, first.counts.statuses_in_time, first.counts.rewards) == (1, 1, 7)
    assert late(tmp_path) == {}
    store(cancellation(3, 4.0), cancellation(2, 3.0), cancellation(5, 9.0))  # in time, stored before, too late
    assert late(tmp_path) == {FIRST.folder: 1}
    [revision] = again(tmp_path)
    assert (revision.counts.cancelled, revision.counts.void_rewards, revision.counts.rewards) == (2, 2, 6)
    assert revision.records("train", "holdback") == 6
    assert late(tmp_path) == {}


def test_without_a_change_it_makes_nothing(tmp_path: Path, store: Store) -> None:
    run(tmp_path, FIRST)
    source = EmbeddedWarehouse(tmp_path / "warehouse")
    assert revise(source, tmp_path / "windows", FIRST, SETTINGS) is None
    assert [path.name for path in (tmp_path / "windows").glob(f"*/{MANIFEST_NAME}")] == [MANIFEST_NAME]
    assert not list((tmp_path / "windows" / f"{FIRST.folder}.r1").glob("*"))


def test_what_was_not_exported_cannot_be_revised(tmp_path: Path, store: Store) -> None:
    with pytest.raises(InputError, match=r"^--revise: an exported window expected, got .*/window=20260101T000000"):
        revise(EmbeddedWarehouse(tmp_path / "warehouse"), tmp_path / "windows", FIRST, SETTINGS)


def test_a_reward_on_the_far_side_of_the_border_belongs_to_its_decision(tmp_path: Path, store: Store) -> None:
    run(tmp_path, FIRST)
    run(tmp_path, SECOND)
    store(reward(9, 10.9))  # occurs in the second window
    assert late(tmp_path) == {FIRST.folder: 1}
    assert [one.folder for one in again(tmp_path)] == [f"{FIRST.folder}.r1"]


def test_windows_of_before_they_counted_answers_are_left_out(tmp_path: Path, store: Store) -> None:
    run(tmp_path, FIRST)
    path = tmp_path / "windows" / FIRST.folder / MANIFEST_NAME
    path.write_text(re.sub(r',\s*"rewards_in_time": 8', "", path.read_text()))
    assert decode_manifest(path.read_bytes(), "m").counts.rewards_in_time is None
    store(reward(8, 8.5))
    assert late(tmp_path) == {}


def test_from_the_command_line(tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--warehouse", str(tmp_path / "warehouse"), "--windows", str(tmp_path / "windows")]
    flags += ["--start", START.isoformat(), "--end", at(10).isoformat(), "--missing-reward", "drop"]
    flags += ["--reward-window-seconds", "2", "--settle-seconds", "1", "--late-horizon-seconds", "60"]
    assert export_trajectories.main(flags) == 0
    assert export_trajectories.main([*flags, "--revise"]) == 0
    store(reward(8, 8.5))
    assert export_trajectories.main([*flags, "--revise"]) == 0
    first, nothing, revised = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path}/windows/{FIRST.folder}: 8 trajectories (decisions 10, rewards 8,")
    assert nothing == f"{tmp_path}/windows/{FIRST.folder}: no rows came that change it"
    assert revised.startswith(f"{tmp_path}/windows/{FIRST.folder}.r1: 9 trajectories (decisions 10, rewards 9,")


def test_the_start_is_in_the_name_of_every_revision() -> None:
    assert window_start(FIRST.folder) == window_start(f"{FIRST.folder}.r12") == START
    assert window_start("window=x") is window_start(f"{FIRST.folder}.old") is None
