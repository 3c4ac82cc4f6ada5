"""Rewards of a canary, read in steps: counted as in training, each row read once."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest

from beam_jobs import ingest_events
from beam_jobs import warehouse as embedded
from contracts.errors import InputError
from contracts.event_segments import SEALED_SUFFIX, segment_name
from contracts.items import Item
from contracts.records import Decision, RewardEvent
from contracts.windows import WindowSettings
from orchestration.pipelines.canary import Arm, Trial
from orchestration.pipelines.canary_rewards import CanaryRewards, merged
from orchestration.places import Places

START = datetime(2026, 1, 1, tzinfo=UTC)
ID = "018f0000-0000-7000-8000-{:012x}"
VERSIONS = ("new", "old")


def rewards_of(places: Places, warehouse: str = "", missing: str = "drop", rule: str = "first") -> CanaryRewards:
    settings = WindowSettings(missing_reward=missing, default_reward=-1, reward_rule=rule)
    return CanaryRewards(places, warehouse, VERSIONS, START, settings)


def decision(number: int, version: str, moment: datetime) -> Decision:
    return Decision(
        decision_id=ID.format(number),
        decided_at=moment,
        policy_version=version,
        observation=[1.0],
        action=0,
        propensity=0.5,
    )


def reward(number: int, moment: datetime, value: float) -> RewardEvent:
    return RewardEvent(decision_id=ID.format(number), occurred_at=moment, reward=value)


def write(places: Places, events: Sequence[Decision | RewardEvent]) -> None:
    places.events.mkdir()
    places.catalogue.write_bytes(msgspec.json.encode([Item(action=0, item_id="1")]))
    lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
    (places.events / (segment_name(START, "w") + SEALED_SUFFIX)).write_bytes(lines)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """With events: in time, too late, repeated, missing, of a third policy, before the canary."""
    events: list[Decision | RewardEvent] = []

    def decide(number: int, version: str, second: float, *rewards: tuple[float, float]) -> None:
        moment = START + timedelta(seconds=second)
        events.append(decision(number, version, moment))
        events.extend(reward(number, moment + timedelta(seconds=delay), value) for delay, value in rewards)

    decide(1, "new", 1, (0.5, 3.0))
    decide(2, "new", 1, (0.9, 5.0), (0.2, 4.0))  # the first one counts
    decide(3, "new", 1, (2.5, 9.0))  # too late
    decide(4, "old", 1, (2.0, 2.0))  # at the very end
    decide(5, "old", 1)
    decide(6, "other", 1, (0.1, 9.0))
    decide(7, "new", -1, (0.1, 9.0))
    events.append(events[0])  # delivered twice
    write(Places(tmp_path), events)
    return Places(tmp_path)


def close_to(wanted: Trial) -> Trial:
    """BigQuery gives rows in no order, and the last bits of a sum depend on it."""
    return Trial(*(Arm(arm.decisions, pytest.approx(arm.mean), pytest.approx(arm.variance)) for arm in wanted))


def check_counts(places: Places, warehouse: str) -> None:
    end = START + timedelta(seconds=5)
    assert rewards_of(places, warehouse).trial(end) == close_to(Trial(Arm.of([3.0, 4.0]), Arm.of([2.0])))
    defaulted = rewards_of(places, warehouse, "default").trial(end)
    assert defaulted == close_to(Trial(Arm.of([3.0, 4.0, -1.0]), Arm.of([2.0, -1.0])))


def test_rewards_are_counted_as_in_training(places):
    check_counts(places, "")


@pytest.mark.parametrize(("rule", "value"), [("sum", 9.0), ("last", 5.0), ("max", 5.0)])
def test_several_rewards_become_one_as_in_training(places, rule, value):
    end = START + timedelta(seconds=5)
    assert rewards_of(places, rule=rule).trial(end) == close_to(Trial(Arm.of([3.0, value]), Arm.of([2.0])))


def test_rewards_are_counted_the_same_from_bigquery(places, dataset):
    warehouse = f"bigquery:{dataset.project}.{dataset.name}"
    assert ingest_events.main(["--events", str(places.events), "--warehouse", warehouse]) == 0
    check_counts(places, warehouse)
    assert not places.warehouse.exists()  # nothing was ingested beside it


def test_a_warehouse_that_is_not_there_is_one_line(places, dataset):
    with pytest.raises(InputError, match=r"table local-test\.nothing\.decisions does not exist"):
        rewards_of(places, "bigquery:local-test.nothing").trial(datetime.now(UTC))


def random_events(rng: random.Random) -> list[Decision | RewardEvent]:
    """200 decisions in 10 s: stored twice and later again, rewards before, in and after their time, without decision."""
    events: list[Decision | RewardEvent] = []
    for number in range(200):
        moment = START + timedelta(milliseconds=rng.randrange(10_000))
        version = rng.choice(["new", "old", "old", "other"])
        events.append(decision(number, version, moment))
        if rng.random() < 0.1:
            events.append(decision(number, version, moment + timedelta(milliseconds=rng.randrange(3_000))))
        for _ in range(rng.randrange(4)):
            delay = timedelta(milliseconds=rng.randrange(-500, 3_000))
            events.append(reward(number, moment + delay, rng.gauss(0, 1)))
        if rng.random() < 0.1:
            events.append(reward(1_000 + number, moment, 99.0))
    return events


def counted_directly(events: Sequence[Decision | RewardEvent], end: datetime) -> Trial:
    """The rule, record by record: each decision once, at its earliest, with its first reward within 2 s."""
    arms: dict[str, list[float]] = {"new": [], "old": []}
    decisions: dict[str, Decision] = {}
    for event in sorted((one for one in events if isinstance(one, Decision)), key=lambda one: one.decided_at):
        decisions.setdefault(event.decision_id, event)
    for made in decisions.values():
        if START <= made.decided_at < end and made.policy_version in arms:
            in_time = [
                (one.occurred_at, one.reward)
                for one in events
                if isinstance(one, RewardEvent)
                and one.decision_id == made.decision_id
                and made.decided_at <= one.occurred_at <= made.decided_at + timedelta(seconds=2)
            ]
            arms[made.policy_version] += [min(in_time)[1]] if in_time else []
    return Trial(Arm.of(arms["new"]), Arm.of(arms["old"]))


@pytest.mark.parametrize("seed", range(3))
def test_many_looks_count_what_one_does_and_read_each_row_once(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    events = random_events(rng)
    places = Places(tmp_path)
    write(places, events)
    ranges: dict[str, list[tuple[datetime, datetime]]] = {}
    read = embedded.read

    def recorded(folder, table, begin, end, names=None):
        ranges.setdefault(table.name, []).append((begin, end))
        return read(folder, table, begin, end, names)

    monkeypatch.setattr(embedded, "read", recorded)
    looks = sorted(START + timedelta(milliseconds=rng.randrange(12_000)) for _ in range(15))
    rewards = rewards_of(places)
    for moment in looks:
        assert rewards.trial(moment) == close_to(counted_directly(events, moment))
    for some in ranges.values():
        assert [begin for begin, _ in some[1:]] == [end for _, end in some[:-1]]
    before = {name: len(some) for name, some in ranges.items()}
    assert rewards.trial(looks[0]) == rewards.trial(looks[-1])  # an earlier moment reads nothing
    assert {name: len(some) for name, some in ranges.items()} == before


def test_merged_arms_are_the_arm_of_all_rewards():
    rng = np.random.default_rng(0)
    rewards = (1e6 + rng.normal(size=1000)).tolist()
    arm = Arm.of([])
    for some in np.array_split(np.array(rewards), [0, 1, 2, 500]):
        arm = merged(arm, Arm.of(some.tolist()))
    whole = Arm.of(rewards)
    assert arm.decisions == whole.decisions
    assert arm.mean == pytest.approx(whole.mean, rel=1e-12)
    assert arm.variance == pytest.approx(whole.variance, rel=1e-9)
