from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that

from beam_jobs import warehouse
from beam_jobs.options import LOCAL_RUNNER
from beam_jobs.tables import record_batch
from beam_jobs.warehouses import EmbeddedWarehouse
from beam_jobs.window_rows import ReadWindowRows, row_ranges
from contracts.records import Decision, RewardEvent
from contracts.schemas import DECISIONS, REWARDS
from contracts.windows import TrainingWindow, WindowSettings

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = TrainingWindow(START, START + timedelta(seconds=10))
SETTINGS = WindowSettings(reward_window_seconds=2, late_horizon_seconds=60)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_the_join_needs_the_window_what_was_before_it_and_rewards_around_it() -> None:
    decisions, earlier, rewards, statuses = row_ranges(WINDOW, SETTINGS)
    assert (decisions.start, decisions.end) == (WINDOW.start, WINDOW.end)
    assert (earlier.start, earlier.end) == (at(-60), WINDOW.start)
    assert earlier.columns == ("decision_id", "decided_at")
    for answers in (rewards, statuses):
        assert (answers.start, answers.end) == (at(-2), at(12) + timedelta(microseconds=1))


def test_a_window_at_the_end_of_the_calendar_overflows() -> None:
    end = datetime.max.replace(tzinfo=UTC)
    with pytest.raises(OverflowError):
        row_ranges(TrainingWindow(end - timedelta(seconds=1), end), SETTINGS)


@pytest.mark.parametrize("num_buckets", [1, 3])
def test_rows_of_a_decision_meet_in_its_bucket(tmp_path: Path, num_buckets: int) -> None:
    warehouse.create(tmp_path)
    ids = [f"019b76da-a800-7000-8000-{number:012x}" for number in range(30)]
    decisions = [
        Decision(
            decision_id=one, decided_at=at(place - 10), policy_version="v", observation=[1.0], action=0, propensity=1
        )
        for place, one in enumerate(ids)
    ]
    rewards = [RewardEvent(decision_id=one, occurred_at=at(place - 9), reward=1) for place, one in enumerate(ids)]
    warehouse.write(tmp_path, DECISIONS, "x", record_batch(DECISIONS, decisions))
    warehouse.write(tmp_path, REWARDS, "x", record_batch(REWARDS, rewards))
    expected = {"decisions": set(ids[10:20]), "earlier": set(ids[:10]), "rewards": set(ids[7:22])}

    def check(elements: list[tuple[str, int, list[str]]]) -> None:
        bucket_of: dict[str, int] = {}
        for name, wanted in expected.items():
            found = [(one, bucket) for kind, bucket, batch in elements if kind == name for one in batch]
            assert sorted(one for one, _ in found) == sorted(wanted), name
            for one, bucket in found:
                assert bucket_of.setdefault(one, bucket) == bucket < num_buckets
        assert len(set(bucket_of.values())) == num_buckets

    with beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_RUNNER}"])) as pipeline:
        ranges = row_ranges(WINDOW, SETTINGS)
        read = pipeline | ReadWindowRows(EmbeddedWarehouse(tmp_path), ranges, num_buckets)
        labelled = read | beam.MapTuple(lambda bucket, part: (part.name, bucket, part.rows["decision_id"].to_pylist()))
        assert_that(labelled, check)
