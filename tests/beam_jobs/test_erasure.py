"""What names a user, and what a window keeps without one; tests/orchestration/test_erasure.py erases a whole root."""

import json
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from beam_jobs import erasure, warehouse
from beam_jobs.erasure import Traces
from beam_jobs.export_trajectories import export
from beam_jobs.tables import record_batch
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts.records import DeadLetter, Decision, RewardEvent, StatusEvent, encoder
from contracts.schemas import DEAD_LETTERS, DECISIONS, REWARDS, STATUSES
from contracts.windows import TrainingWindow, WindowSettings

START = datetime(2026, 1, 1, tzinfo=UTC)
ID = "018f0000-0000-7000-8000-{:012x}"
WINDOW = TrainingWindow(START, START + timedelta(seconds=10))


def decision(number: int, user: str | None) -> Decision:
    return Decision(
        decision_id=ID.format(number),
        decided_at=START + timedelta(seconds=number),
        policy_version="v",
        user_id=user,
        observation=[1.0, 2.0],
        action=0,
        propensity=0.5,
    )


def reward(number: int, value: float, seconds: float = 0.5) -> RewardEvent:
    moment = START + timedelta(seconds=number + seconds)
    return RewardEvent(decision_id=ID.format(number), occurred_at=moment, reward=value)


def status(number: int) -> StatusEvent:
    moment = START + timedelta(seconds=number + 0.5)
    return StatusEvent(decision_id=ID.format(number), occurred_at=moment, status="cancelled")


@pytest.mark.parametrize(
    ("line", "mine"),
    [
        (encoder.encode(decision(1, "17")), True),
        (encoder.encode(decision(2, "170")), False),
        (encoder.encode(decision(2, None)), False),
        (encoder.encode(reward(3, 17.0)), True),  # of a decision of the user
        (encoder.encode(reward(4, 17.0)), False),
        (encoder.encode(status(3)), True),
        (encoder.encode(status(4)), False),
        (b'{"type": "decision", "user_id" : "17", "torn', True),
        (b'{"type": "decision", "movie_id": "17"}', False),
    ],
)
def test_events_of_a_user_are_told_from_others(line, mine):
    assert Traces("17", {ID.format(1), ID.format(3)}).in_event(line) == mine


def test_a_long_id_is_found_wherever_it_stands():
    assert Traces("user-4711", set()).in_bytes(b"mail user-4711 today")
    assert not Traces("4711", set()).in_bytes(b"mail 4711 today")


def test_rows_of_every_table_are_told():
    letters = [
        DeadLetter(payload=payload, error_type="E", error_message="", stage="parse", failed_at=START)
        for payload in (b'{"user_id":"17"}', b'{"user_id":"18"}')
    ]
    traces = Traces("17", {ID.format(1)})
    for table, records, wanted in (
        (DECISIONS, [decision(1, "17"), decision(2, "18")], [True, False]),
        (REWARDS, [reward(1, 1.0), reward(2, 1.0)], [True, False]),
        (STATUSES, [status(1), status(2)], [True, False]),
        (DEAD_LETTERS, letters, [True, False]),
    ):
        assert traces.in_rows(pa.Table.from_batches([record_batch(table, records)])) == wanted


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A window of three decisions, of which the user made two; of a third, the reward came after the export."""
    folder = tmp_path / "warehouse"
    warehouse.create(folder)
    decisions = [decision(1, "17"), decision(2, "18"), decision(3, "17")]
    warehouse.write(folder, DECISIONS, "a", record_batch(DECISIONS, decisions))
    warehouse.write(folder, REWARDS, "a", record_batch(REWARDS, [reward(1, 1.0), reward(2, 2.0)]))
    settings = WindowSettings(reward_window_seconds=2.0, holdback_share=0.0)
    export(EmbeddedWarehouse(folder), tmp_path / "windows", WINDOW, settings)
    warehouse.write(folder, REWARDS, "b", record_batch(REWARDS, [reward(3, 9.0)]))
    return tmp_path


def test_a_window_keeps_the_others_and_says_what_it_does_not_hold(exported):
    from trainer import dataset

    (ready,) = dataset.ready_windows(exported / "windows")
    rows = erasure.rows_of(exported / "warehouse", "17")
    assert rows.decision_ids == {ID.format(1), ID.format(3)}
    share = erasure.share_of(ready.folder, ready.manifest, rows)
    # The window has a default reward for the third decision: its record is another one.
    assert (sum(map(len, share.records.values())), share.missing) == (1, 1)
    after = erasure.remove_from_window(ready.folder, ready.manifest, share)
    assert after.records("train") == 2 and after.counts.decisions == 1
    (again,) = dataset.ready_windows(exported / "windows")
    assert again.manifest == after
    (batch,) = dataset.read(again, "train", 1)
    assert sorted(batch.reward.tolist()) == [0.0, 2.0]


def test_a_window_of_one_user_alone_becomes_empty(tmp_path):
    from trainer import dataset

    folder = tmp_path / "warehouse"
    warehouse.create(folder)
    warehouse.write(folder, DECISIONS, "a", record_batch(DECISIONS, [decision(1, "17")]))
    export(EmbeddedWarehouse(folder), tmp_path / "windows", WINDOW, WindowSettings(holdback_share=0.0))
    (ready,) = dataset.ready_windows(tmp_path / "windows")
    rows = erasure.rows_of(folder, "17")
    assert erasure.touches(ready.manifest, rows)
    erasure.remove_from_window(ready.folder, ready.manifest, erasure.share_of(ready.folder, ready.manifest, rows))
    (ready,) = dataset.ready_windows(tmp_path / "windows")
    assert (ready.manifest.files, ready.manifest.counts.decisions, ready.manifest.policy_versions) == ([], 0, {})
    assert [path.name for path in ready.folder.iterdir()] == ["manifest.json"]


def test_cancelled_decisions_are_the_users_too_and_leave_the_tables(tmp_path):
    from trainer import dataset

    folder = tmp_path / "warehouse"
    warehouse.create(folder)
    warehouse.write(folder, DECISIONS, "a", record_batch(DECISIONS, [decision(n, "17") for n in (1, 2)]))
    warehouse.write(folder, STATUSES, "a", record_batch(STATUSES, [status(1), status(4)]))
    export(EmbeddedWarehouse(folder), tmp_path / "windows", WINDOW, WindowSettings(holdback_share=0.0))
    (ready,) = dataset.ready_windows(tmp_path / "windows")
    assert (ready.manifest.counts.cancelled, ready.manifest.records("train")) == (1, 1)
    rows = erasure.rows_of(folder, "17")
    after = erasure.remove_from_window(
        ready.folder, ready.manifest, erasure.share_of(ready.folder, ready.manifest, rows)
    )
    assert (after.counts.cancelled, after.counts.statuses_in_time, after.counts.decisions) == (0, 0, 0)
    removed = erasure.remove_from_tables(folder, Traces("17", rows.decision_ids))
    assert removed == {"decisions": 2, "rewards": 0, "statuses": 1, "dead_letters": 0}


def test_files_that_name_a_user_are_found_in_archives_too(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("names", json.dumps({"user_id": "17"}) * 9)
    (tmp_path / "plain.txt").write_text("nothing")
    warehouse.create(tmp_path / "warehouse")
    warehouse.write(tmp_path / "warehouse", DECISIONS, "a", record_batch(DECISIONS, [decision(1, "17")]))
    found = [path.relative_to(tmp_path).parts[0] for path in erasure.holders(tmp_path, Traces("17", set()))]
    assert found == ["some.npz", "warehouse"]
