"""Decisions of a canary and their rewards, read in steps: counted as in training, each row read once."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from beam_jobs import ingest_events
from beam_jobs import warehouse as embedded
from contracts.errors import InputError
from contracts.event_segments import SEALED_SUFFIX, segment_name
from contracts.items import Item
from contracts.records import Decision, RewardEvent, StatusEvent
from contracts.windows import WindowSettings
from orchestration import watch
from orchestration.pipelines.canary_rewards import CanaryRewards, CanaryWatch
from orchestration.places import Places
from orchestration.probation import Logged
from orchestration.watch import Scale
from tests.linear_policies import write_policy

START = datetime(2026, 1, 1, tzinfo=UTC)
ID = "018f0000-0000-7000-8000-{:012x}"
Found = list[tuple[str, float]]  # version and reward of each decision


def rewards_of(places: Places, warehouse: str = "", missing: str = "drop", rule: str = "first") -> CanaryRewards:
    settings = WindowSettings(missing_reward=missing, default_reward=-1, reward_rule=rule)
    return CanaryRewards(places, warehouse, START, settings)


def found(logged: Logged) -> Found:
    return list(zip(logged.version.tolist(), logged.rows.reward.tolist(), strict=True))


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


def check_counts(places: Places, warehouse: str) -> None:
    end = START + timedelta(seconds=5)
    given = [("new", 3.0), ("new", 4.0), ("old", 2.0), ("other", 9.0)]
    assert found(rewards_of(places, warehouse).read_until(end)) == given
    defaulted = [("new", 3.0), ("new", 4.0), ("new", -1.0), ("old", 2.0), ("old", -1.0), ("other", 9.0)]
    assert found(rewards_of(places, warehouse, "default").read_until(end)) == defaulted


def test_rewards_are_counted_as_in_training(places):
    check_counts(places, "")


def test_decisions_that_never_happened_do_not_count(tmp_path):
    def status(number: int, second: float, what: str) -> StatusEvent:
        moment = START + timedelta(seconds=second)
        return StatusEvent(decision_id=ID.format(number), occurred_at=moment, status=what)

    events: list = [reward(number, START + timedelta(seconds=2), number) for number in range(1, 6)]
    for number in range(1, 6):
        made = decision(number, "new", START + timedelta(seconds=1))
        events.append(msgspec.structs.replace(made, deferred=True) if number < 4 else made)
    events += [
        status(1, 2.5, "activated"),
        status(2, 3.5, "activated"),
        status(4, 2, "cancelled"),
    ]  # the second too late
    places = Places(tmp_path)
    write(places, events)
    rewards = rewards_of(places, missing="default")
    looks = [found(rewards.read_until(START + timedelta(seconds=second))) for second in (0.5, 1.5, 5)]
    assert looks == [[], [("new", 1.0), ("new", 5.0)], []]


@pytest.mark.parametrize(("rule", "value"), [("sum", 9.0), ("last", 5.0), ("max", 5.0)])
def test_several_rewards_become_one_as_in_training(places, rule, value):
    end = START + timedelta(seconds=5)
    given = [("new", 3.0), ("new", value), ("old", 2.0), ("other", 9.0)]
    assert found(rewards_of(places, rule=rule).read_until(end)) == given


def test_rewards_are_counted_the_same_from_bigquery(places, dataset):
    warehouse = f"bigquery:{dataset.project}.{dataset.name}"
    assert ingest_events.main(["--events", str(places.events), "--warehouse", warehouse]) == 0
    check_counts(places, warehouse)
    assert not places.warehouse.exists()  # nothing was ingested beside it


def test_a_warehouse_that_is_not_there_is_one_line(places, dataset):
    with pytest.raises(InputError, match=r"table local-test\.nothing\.decisions does not exist"):
        rewards_of(places, "bigquery:local-test.nothing").read_until(datetime.now(UTC))


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


def counted_directly(events: Sequence[Decision | RewardEvent], end: datetime) -> Found:
    """The rule, record by record: each decision once, at its earliest, with its first reward within 2 s."""
    decisions: dict[str, Decision] = {}
    for event in sorted((one for one in events if isinstance(one, Decision)), key=lambda one: one.decided_at):
        decisions.setdefault(event.decision_id, event)
    counted: Found = []
    for made in sorted(decisions.values(), key=lambda one: (one.decided_at, one.decision_id)):
        if START <= made.decided_at < end:
            in_time = [
                (one.occurred_at, one.reward)
                for one in events
                if isinstance(one, RewardEvent)
                and one.decision_id == made.decision_id
                and made.decided_at <= one.occurred_at <= made.decided_at + timedelta(seconds=2)
            ]
            counted += [(made.policy_version, min(in_time)[1])] if in_time else []
    return counted


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
    rewards, counted = rewards_of(places), []
    for moment in looks:
        counted += found(rewards.read_until(moment))
        assert counted == counted_directly(events, moment)
    for some in ranges.values():
        assert [begin for begin, _ in some[1:]] == [end for _, end in some[:-1]]
    before = {name: len(some) for name, some in ranges.items()}
    assert found(rewards.read_until(looks[0])) == []  # an earlier moment reads nothing
    assert {name: len(some) for name, some in ranges.items()} == before


def test_only_decisions_of_both_count_from_the_candidates_first_one_on(tmp_path):
    places = Places(tmp_path)
    versions = ["old", "old", "new", "other", "old", "new", "old"]
    events: list[Decision | RewardEvent] = []
    for number, version in enumerate(versions):
        moment = START + timedelta(seconds=number)
        events += [decision(number, version, moment), reward(number, moment, float(number))]
    write(places, events)
    for name, seed in (("new", 1), ("old", 2)):
        write_policy(places.policies / name, observation_dim=1, seed=seed)
    evidence = watch.nothing_yet(Scale(low=0.0, high=9.0, residual=9.0, unit=3.0), 0.5, 0.02)
    trial = CanaryWatch(rewards_of(places), places, ("new", "old"), evidence)
    assert trial.look(START + timedelta(seconds=2))[1] == 0  # none of the candidate's yet
    assert trial.evidence == evidence
    look, decisions = trial.look(START + timedelta(seconds=20))
    assert (look.decisions, decisions, look.version, look.anchor) == (3, 2, "new", "old")
    assert trial.look(START + timedelta(seconds=21)) == (look, decisions)
