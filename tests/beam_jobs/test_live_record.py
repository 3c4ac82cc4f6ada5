from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.live_join import JoinPlan
from beam_jobs.live_record import Record
from contracts import live_sums
from contracts.errors import InputError
from contracts.records import utc_microseconds
from contracts.trajectories import TrajectoryBatch
from contracts.windows import TrainingWindow, WindowSettings
from tests.windows import write_window

START = datetime(2026, 1, 1, tzinfo=UTC)
K, D = 4, 3


def plan(dim: int = D, window_seconds: float = 5.0, missing: str = "drop") -> JoinPlan:
    return JoinPlan(START, window_seconds, WindowSettings(missing_reward=missing, holdback_share=0.0), dim)  # type: ignore[arg-type]


def batch(size: int, seed: int) -> TrajectoryBatch:
    random = np.random.default_rng(seed)
    return TrajectoryBatch(
        random.normal(size=(size, D)).astype(np.float32),
        random.integers(K, size=size).astype(np.int32),
        random.normal(size=size).astype(np.float32),
        np.ones(size, np.float32),
        np.zeros(size, bool),
    )


def window(number: int) -> TrainingWindow:
    return TrainingWindow(START + timedelta(seconds=5 * number), START + timedelta(seconds=5 * number + 5))


def start_of(number: int) -> int:
    return utc_microseconds(window(number).start)


def test_the_sums_are_those_of_the_training_records(tmp_path: Path) -> None:
    train = batch(50, 1)
    write_window(tmp_path, window(0), train)
    record = Record(str(tmp_path), plan(), K)
    assert live_sums.equal(record.sums(start_of(0)), live_sums.of_batch(train, K))


def test_held_back_records_are_not_in_them(tmp_path: Path) -> None:
    train = batch(30, 1)
    ready = write_window(tmp_path, window(0), train, batch(10, 2))
    how = plan()
    settings = WindowSettings(missing_reward="drop", holdback_share=ready.manifest.holdback_share)
    record = Record(str(tmp_path), how._replace(settings=settings), K)
    assert live_sums.equal(record.sums(start_of(0)), live_sums.of_batch(train, K))


def test_a_window_without_records_has_empty_sums(tmp_path: Path) -> None:
    write_window(tmp_path, window(0), batch(0, 1))
    assert len(Record(str(tmp_path), plan(), K).sums(start_of(0)).arms) == 0


def test_what_is_recorded_at_the_start(tmp_path: Path) -> None:
    record = Record(str(tmp_path), plan(), K)
    now = START + timedelta(seconds=30)
    assert record.at_start(now, 10) == (start_of(0), [])
    for number in (0, 1, 2, 4):
        write_window(tmp_path, window(number), batch(5, number))
    assert record.is_there(start_of(2))
    assert not record.is_there(start_of(3))
    # They close 3 s after their ends, at 8, 13 and 18 s.
    assert record.at_start(START + timedelta(seconds=22), 10) == (start_of(3), [start_of(1), start_of(2)])


@pytest.mark.parametrize(
    ("how", "fact"),
    [
        (plan(dim=7), "--observation-dim: must be 3, as in "),
        (plan(missing="default"), "--missing-reward: must be drop, as in "),
        (plan(window_seconds=3.0), "--start, --window-seconds: must give the windows that are exported, such as "),
    ],
)
def test_other_settings_than_those_of_the_record_are_refused(tmp_path: Path, how: JoinPlan, fact: str) -> None:
    write_window(tmp_path, window(0), batch(5, 1))
    with pytest.raises(InputError, match=f"^{fact}"):
        Record(str(tmp_path), how, K).check_newest()


def test_windows_before_the_start_may_be_others(tmp_path: Path) -> None:
    early = TrainingWindow(START - timedelta(seconds=7), START - timedelta(seconds=4))
    write_window(tmp_path, early, batch(5, 1))
    Record(str(tmp_path), plan(), K).check_newest()
    Record(str(tmp_path / "none"), plan(), K).check_newest()
