import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import apache_beam as beam
import msgspec
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that

from beam_jobs.options import LOCAL_RUNNER
from beam_jobs.reward_join import (
    KEY_COLUMNS,
    JoinedBucket,
    JoinRewards,
    NamedRows,
    hash_ids,
    holdback_ids,
    in_holdback,
    join_rewards,
    observations,
    split_into_buckets,
    tables_by_name,
)
from beam_jobs.tables import record_batch
from contracts.records import FLOAT32_MAX, Decision, Event, RewardEvent, Status, StatusEvent
from contracts.reward_rules import RewardRule, combine
from contracts.schemas import DECISIONS, REWARDS, STATUSES
from contracts.windows import TrainingWindow, WindowCounts, WindowSettings

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = TrainingWindow(START, START + timedelta(seconds=10))
REWARD_WINDOW = 2.0


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def decision_id(number: int) -> str:
    return f"019b76da-a800-7000-8000-{number:012x}"


def decision(number: int, seconds: float, action: int = 0) -> Decision:
    return Decision(
        decision_id=decision_id(number),
        decided_at=at(seconds),
        policy_version="v1",
        observation=[float(number), 1.0],
        action=action,
        propensity=0.5,
    )


def reward(number: int, seconds: float, value: float = 1.0) -> RewardEvent:
    return RewardEvent(decision_id=decision_id(number), occurred_at=at(seconds), reward=value)


def deferred(number: int, seconds: float) -> Decision:
    return msgspec.structs.replace(decision(number, seconds), deferred=True)


def status(number: int, seconds: float, what: Status = "activated") -> StatusEvent:
    return StatusEvent(decision_id=decision_id(number), occurred_at=at(seconds), status=what)


def settings(missing: Literal["default", "drop"] = "default", rule: RewardRule = "first") -> WindowSettings:
    return WindowSettings(
        reward_window_seconds=REWARD_WINDOW, missing_reward=missing, default_reward=-1.0, reward_rule=rule
    )


def tables(events: Sequence[Event]) -> dict[str, pa.Table]:
    """The four inputs of the join."""
    decisions = [event for event in events if isinstance(event, Decision) and event.decided_at >= START]
    earlier = [event for event in events if isinstance(event, Decision) and event.decided_at < START]
    rewards = [event for event in events if isinstance(event, RewardEvent)]
    statuses = [event for event in events if isinstance(event, StatusEvent)]
    return {
        "decisions": pa.Table.from_batches([record_batch(DECISIONS, decisions)]),
        "earlier": pa.Table.from_batches([record_batch(DECISIONS, earlier)]).select(KEY_COLUMNS),
        "rewards": pa.Table.from_batches([record_batch(REWARDS, rewards)]),
        "statuses": pa.Table.from_batches([record_batch(STATUSES, statuses)]),
    }


def in_time(events: Sequence[Event]) -> int:
    """How many different rewards came in time for decisions of the window."""
    decided: dict[str, datetime] = {}
    for event in events:
        if isinstance(event, Decision):
            decided[event.decision_id] = min(event.decided_at, decided.get(event.decision_id, event.decided_at))
    wait = timedelta(seconds=settings().reward_window_seconds)
    rewards = {event for event in events if isinstance(event, RewardEvent) and event.decision_id in decided}
    moments = [(decided[event.decision_id], event.occurred_at) for event in rewards]
    return sum(WINDOW.start <= made < WINDOW.end and made <= came <= made + wait for made, came in moments)


def joined(
    events: Sequence[Event], missing: Literal["default", "drop"] = "default"
) -> tuple[list[tuple[int, float, float | None]], dict[str, int]]:
    """(number, reward, when it came) of each interaction, and the counts that are not 0."""
    rows, counts = join_rewards(**tables(events), window=WINDOW, settings=settings(missing))
    interactions = [
        (int(row["observation"][0]), row["reward"], row["rewarded_at"] and (row["rewarded_at"] - START).total_seconds())
        for row in rows.to_pylist()
    ]
    assert counts.decisions == counts.accounted
    assert [row["defaulted"] for row in rows.to_pylist()] == [came is None for _, _, came in interactions]
    assert counts.rewards_in_time == in_time(events)
    names = [name for name in WindowCounts.__struct_fields__ if name != "rewards_in_time"]
    return interactions, {name: getattr(counts, name) for name in names if getattr(counts, name)}


@pytest.mark.parametrize(
    ("case", "events", "interactions", "counts"),
    [
        ("nothing", [], [], {}),
        ("in time", [decision(1, 0), reward(1, 1)], [(1, 1, 1)], {"decisions": 1, "rewards": 1}),
        ("at once", [decision(1, 3), reward(1, 3)], [(1, 1, 3)], {"decisions": 1, "rewards": 1}),
        ("at the last moment", [decision(1, 3), reward(1, 5)], [(1, 1, 5)], {"decisions": 1, "rewards": 1}),
        (
            "a microsecond late",
            [decision(1, 3), reward(1, 5.000001)],
            [(1, -1, None)],
            {"decisions": 1, "defaulted": 1, "late_rewards": 1},
        ),
        (
            "before its decision",
            [decision(1, 3), reward(1, 2.9)],
            [(1, -1, None)],
            {"decisions": 1, "defaulted": 1, "late_rewards": 1},
        ),
        (
            "the first of two",
            [decision(1, 0), reward(1, 1.5, 7), reward(1, 0.5, 3)],
            [(1, 3, 0.5)],
            {"decisions": 1, "rewards": 1, "repeated_rewards": 1},
        ),
        (
            "the smaller of two at one moment",
            [decision(1, 0), reward(1, 1, 7), reward(1, 1, 3)],
            [(1, 3, 1)],
            {"decisions": 1, "rewards": 1, "repeated_rewards": 1},
        ),
        (
            "the same one read three times",
            [decision(1, 0), reward(1, 1), reward(1, 1), reward(1, 1)],
            [(1, 1, 1)],
            {"decisions": 1, "rewards": 1, "duplicate_rewards": 2},
        ),
        (
            "a late one read twice",
            [decision(1, 0), reward(1, 5), reward(1, 5)],
            [(1, -1, None)],
            {"decisions": 1, "defaulted": 1, "late_rewards": 1, "duplicate_rewards": 1},
        ),
        (
            "in time, then late",
            [decision(1, 0), reward(1, 5, 2), reward(1, 1, 1)],
            [(1, 1, 1)],
            {"decisions": 1, "rewards": 1, "late_rewards": 1},
        ),
        (
            "the decision read twice",
            [decision(1, 0), decision(1, 0), reward(1, 1)],
            [(1, 1, 1)],
            {"decisions": 1, "rewards": 1, "duplicate_decisions": 1},
        ),
        ("orphan", [reward(9, 4)], [], {"orphan_rewards": 1}),
        ("orphan outside of the window", [reward(9, -1), reward(8, 10)], [], {}),
        (
            "of this window, after its end",
            [decision(1, 9.5), reward(1, 11)],
            [(1, 1, 11)],
            {"decisions": 1, "rewards": 1},
        ),
        (
            "repeated after its end: the next window counts it",
            [decision(1, 9.5), reward(1, 11), reward(1, 11.2, 4)],
            [(1, 1, 11)],
            {"decisions": 1, "rewards": 1},
        ),
        ("of an earlier decision, in time: counted there", [decision(1, -1), reward(1, 0.5)], [], {}),
        (
            "repeated of an earlier decision, rewarded before the window",
            [decision(1, -1), reward(1, -0.5), reward(1, 0.5, 2)],
            [],
            {"repeated_rewards": 1},
        ),
        (
            "the id of an earlier decision: another one of that id is none",
            [decision(1, -1), decision(1, 3, action=2), reward(1, 0.5), reward(1, 4, 7), decision(2, 5)],
            [(2, -1, None)],
            {"decisions": 1, "defaulted": 1, "late_rewards": 1, "duplicate_decisions": 1},
        ),
        ("late of an earlier decision", [decision(1, -5), reward(1, 0.5)], [], {"late_rewards": 1}),
        ("deferred", [deferred(1, 0)], [], {"decisions": 1, "not_activated": 1}),
        (
            "deferred, with a reward that does not activate it",
            [deferred(1, 0), reward(1, 1)],
            [],
            {"decisions": 1, "not_activated": 1, "void_rewards": 1},
        ),
        (
            "activated, and rewarded before that",
            [deferred(1, 0), reward(1, 0.5, 3), status(1, 1)],
            [(1, 3, 0.5)],
            {"decisions": 1, "rewards": 1, "statuses_in_time": 1},
        ),
        (
            "activated twice, once read again, and silent",
            [deferred(1, 0), status(1, 1), status(1, 2), status(1, 2)],
            [(1, -1, None)],
            {"decisions": 1, "defaulted": 1, "statuses_in_time": 2},
        ),
        (
            "activated too late",
            [deferred(1, 0), reward(1, 1), status(1, 2.000001)],
            [],
            {"decisions": 1, "not_activated": 1, "void_rewards": 1, "ignored_statuses": 1},
        ),
        (
            "cancelled",
            [decision(1, 0), reward(1, 1), status(1, 2, "cancelled")],
            [],
            {"decisions": 1, "cancelled": 1, "void_rewards": 1, "statuses_in_time": 1},
        ),
        (
            "cancelled and activated: a cancellation prevails",
            [deferred(1, 0), status(1, 1, "cancelled"), status(1, 1.5)],
            [],
            {"decisions": 1, "cancelled": 1, "statuses_in_time": 2},
        ),
        (
            "cancelled too late",
            [decision(1, 0), reward(1, 1), status(1, 2.5, "cancelled")],
            [(1, 1, 1)],
            {"decisions": 1, "rewards": 1, "ignored_statuses": 1},
        ),
        (
            "activated although it was not deferred",
            [decision(1, 0), reward(1, 1), status(1, 0.5)],
            [(1, 1, 1)],
            {"decisions": 1, "rewards": 1, "statuses_in_time": 1},
        ),
        (
            "statuses of unknown decisions, one of them outside of the window",
            [status(9, 4), status(8, 4, "cancelled"), status(9, 11)],
            [],
            {"ignored_statuses": 2},
        ),
        (
            "of this window, activated after its end",
            [deferred(1, 9.5), reward(1, 11), status(1, 11.2)],
            [(1, 1, 11)],
            {"decisions": 1, "rewards": 1, "statuses_in_time": 1},
        ),
        ("of an earlier decision: counted there", [deferred(1, -1), status(1, 0.5)], [], {}),
        (
            "ordered by time, then id",
            [decision(2, 1), decision(3, 0), decision(1, 1)],
            [(3, -1, None), (1, -1, None), (2, -1, None)],
            {"decisions": 3, "defaulted": 3},
        ),
    ],
)
def test_table_of_truths(case: str, events: list[Event], interactions: list[Any], counts: dict[str, int]) -> None:
    assert joined(events) == (interactions, counts), case
    assert joined(events[::-1]) == (interactions, counts), f"{case}, in another order"


@pytest.mark.parametrize(
    ("rule", "interactions"),
    [
        ("first", [(1, 3, 0.5), (2, -1, None), (3, 7, 3)]),
        ("last", [(1, 5, 1.5), (2, -1, None), (3, 7, 3)]),
        ("max", [(1, 5, 1.5), (2, -1, None), (3, 7, 3)]),
        ("sum", [(1, 12, 1.5), (2, -1, None), (3, 7, 3)]),
    ],
)
def test_several_rewards_become_one_by_the_rule(rule: RewardRule, interactions: list[Any]) -> None:
    """A reward that is read again, one that is late and one before its decision never count; the counts are the same."""
    events = [decision(1, 0), reward(1, 1.5, 5), reward(1, 0.5, 3), reward(1, 1, 4), reward(1, 1, 4), reward(1, 2.5, 9)]
    events += [decision(2, 1), reward(2, 0.5, 8), decision(3, 2), reward(3, 3, 7), reward(3, 3, 7)]
    for shuffled in (events, events[::-1]):
        rows, counts = join_rewards(**tables(shuffled), window=WINDOW, settings=settings(rule=rule))
        found = [
            (
                int(row["observation"][0]),
                row["reward"],
                row["rewarded_at"] and (row["rewarded_at"] - START).total_seconds(),
            )
            for row in rows.to_pylist()
        ]
        assert found == interactions
        assert (counts.rewards, counts.repeated_rewards, counts.late_rewards, counts.duplicate_rewards) == (2, 2, 2, 2)


def test_a_sum_beyond_the_trainers_numbers_stops_at_the_largest() -> None:
    events = [decision(1, 0), reward(1, 1, 3e38), reward(1, 1.5, 3e38)]
    rows, _ = join_rewards(**tables(events), window=WINDOW, settings=settings(rule="sum"))
    assert rows.column("reward").to_pylist() == [FLOAT32_MAX]


def test_missing_rewards_can_be_dropped() -> None:
    events = [decision(1, 0), decision(2, 1), reward(2, 2, 5), decision(3, 2)]
    assert joined(events, "drop") == ([(2, 5, 2)], {"decisions": 3, "rewards": 1, "dropped": 2})
    events += [deferred(4, 3), deferred(5, 3), status(5, 4)]
    counts = {"decisions": 5, "rewards": 1, "dropped": 3, "not_activated": 1, "statuses_in_time": 1}
    assert joined(events, "drop") == ([(2, 5, 2)], counts)


def test_decisions_that_contradict_each_other() -> None:
    """The earlier one counts; of one moment always the same one, in whatever order they come."""
    events = [decision(1, 2, action=5), decision(1, 1, action=6), decision(2, 1, action=8), decision(2, 1, action=7)]
    for shuffled in (events, events[::-1]):
        rows, counts = join_rewards(**tables(shuffled), window=WINDOW, settings=settings())
        assert rows.column("action").to_pylist() == [6, 7]
        assert counts.duplicate_decisions == 2


def by_hand(events: Sequence[Event], rule: RewardRule = "first") -> dict[str, float | None]:
    """decision_id -> its reward, the slow and obvious way."""
    decided = {event.decision_id: event.decided_at for event in events if isinstance(event, Decision)}
    rewards: dict[str, float | None] = {}
    for identity, moment in decided.items():
        if not START <= moment < WINDOW.end:
            continue
        waited = [
            (event.occurred_at, event.reward)
            for event in events
            if isinstance(event, RewardEvent)
            and event.decision_id == identity
            and moment <= event.occurred_at <= moment + timedelta(seconds=REWARD_WINDOW)
        ]
        rewards[identity] = combine(rule, waited)[1] if waited else None
    return rewards


def random_events(seed: int, count: int) -> list[Event]:
    rng = random.Random(seed)
    events: list[Event] = [decision(number, rng.uniform(-3, 10)) for number in range(count)]
    events = [event for event in events if isinstance(event, Decision) and event.decided_at < WINDOW.end]
    for event in list(events):
        offset = (event.decided_at - START).total_seconds()  # type: ignore[union-attr]
        number = int(event.decision_id[-12:], 16)
        for _ in range(rng.choice([0, 1, 1, 2, 3])):
            events.append(reward(number, offset + rng.choice([rng.uniform(0, 2), rng.uniform(2, 5)]), rng.random()))
    events += [reward(10_000 + number, rng.uniform(0, 10)) for number in range(count // 10)]
    events += rng.choices(events, k=count // 10)
    rng.shuffle(events)
    return events


@pytest.mark.parametrize("rule", ["first", "sum", "last", "max"])
def test_agrees_with_the_slow_and_obvious_way(rule: RewardRule) -> None:
    events = random_events(seed=1, count=300)
    rows, counts = join_rewards(**tables(events), window=WINDOW, settings=settings(rule=rule))
    expected = by_hand(events, rule)
    assert {row["decision_id"]: None if row["defaulted"] else row["reward"] for row in rows.to_pylist()} == expected
    assert counts.rewards == sum(value is not None for value in expected.values())
    occurred_here = {
        (event.decision_id, event.occurred_at, event.reward)
        for event in events
        if isinstance(event, RewardEvent) and START <= event.occurred_at < WINDOW.end
    }
    # Whatever occurred in the window is some decision's first reward, or counted as one of the other three.
    firsts_here = {
        (row["decision_id"], row["rewarded_at"])
        for window in (WINDOW, TrainingWindow(at(-10), START))
        for row in rows_of(events, window)
        if row["rewarded_at"] and START <= row["rewarded_at"] < WINDOW.end
    }
    others = counts.repeated_rewards + counts.late_rewards + counts.orphan_rewards
    assert len(occurred_here) == len(firsts_here) + others


def rows_of(events: Sequence[Event], window: TrainingWindow) -> list[dict[str, Any]]:
    inside = [e for e in events if not isinstance(e, Decision) or window.start <= e.decided_at < window.end]
    table = pa.Table.from_batches([record_batch(DECISIONS, [e for e in inside if isinstance(e, Decision)])])
    rewards = tables([e for e in inside if isinstance(e, RewardEvent)])
    others = {name: rewards[name] for name in ("earlier", "rewards", "statuses")}
    rows, _ = join_rewards(table, **others, window=window, settings=WindowSettings(reward_window_seconds=REWARD_WINDOW))
    return rows.to_pylist()


@pytest.mark.parametrize("num_buckets", [1, 4])
def test_the_composite_joins_as_one_bucket_would(num_buckets: int) -> None:
    events = random_events(seed=2, count=200)
    inputs = tables(events)
    rows, counts = join_rewards(**inputs, window=WINDOW, settings=settings())

    def check(actual: list[JoinedBucket]) -> None:
        assert len(actual) == num_buckets
        together = pa.Table.from_batches([bucket.interactions for bucket in actual])
        order = [("decided_at", "ascending"), ("decision_id", "ascending")]
        assert together.sort_by(order).to_pylist() == rows.to_pylist()
        for name in WindowCounts.__struct_fields__:
            assert sum(getattr(bucket.counts, name) for bucket in actual) == getattr(counts, name), name

    with beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_RUNNER}"])) as pipeline:
        rows_by_bucket = [
            (bucket, NamedRows(name, part))
            for name, table in inputs.items()
            for bucket, part in split_into_buckets(table, num_buckets)
        ]
        collection = pipeline | beam.Create(rows_by_bucket)
        assert_that(collection | "JoinRewards" >> JoinRewards(WINDOW, settings()), check)


def test_rows_of_one_name_become_one_table() -> None:
    inputs = tables([decision(1, 0), decision(2, 1), reward(1, 1)])
    rows = [NamedRows("decisions", batch) for one in (0, 1) for batch in inputs["decisions"].slice(one, 1).to_batches()]
    found = tables_by_name([*rows, *(NamedRows("rewards", batch) for batch in inputs["rewards"].to_batches())])
    assert found == inputs  # an input without rows is an empty table of its columns


def test_hash_is_the_same_everywhere_and_splits_independently_of_buckets() -> None:
    ids = pa.array([decision_id(number) for number in range(20_000)])
    assert hash_ids(ids[:1]).tolist() == [1194195870553447747]  # the splits of windows exported already depend on it
    held_back = in_holdback(ids, 0.1)
    assert held_back.mean() == pytest.approx(0.1, abs=0.01)
    everything = pa.table({"decision_id": ids})
    buckets = {bucket: rows["decision_id"] for bucket, rows in split_into_buckets(everything, 10)}
    for part in buckets.values():
        assert len(part) > 1_800
        assert in_holdback(part, 0.1).mean() == pytest.approx(0.1, abs=0.03)
    for bucket, part in split_into_buckets(everything.slice(777, 300), 10):  # also where the rows are a part of others
        assert set(part["decision_id"].to_pylist()) <= set(buckets[bucket].to_pylist())
    assert not in_holdback(ids, 0.0).any()
    with pytest.raises(ValueError, match="ids must have 36 characters, got short"):
        hash_ids(pa.array([decision_id(1), "short"]))


def test_a_slate_is_held_back_as_a_whole() -> None:
    """By the slate's id; a decision outside a slate by its own."""
    slates = [decision_id(number - number % 3) if number % 7 else None for number in range(9_000)]
    rows = pa.table({"decision_id": [decision_id(number) for number in range(9_000)], "slate_id": slates})
    held_back = in_holdback(holdback_ids(rows), 0.1)
    together = dict[str, set[bool]]()
    for slate, held in zip(slates, held_back.tolist(), strict=True):
        if slate is not None:
            together.setdefault(slate, set()).add(held)
    assert all(len(found) == 1 for found in together.values())
    assert held_back.mean() == pytest.approx(0.1, abs=0.02)
    alone = np.array([slate is None for slate in slates])
    assert (held_back == in_holdback(rows["decision_id"], 0.1))[alone].all()


def test_what_was_on_offer_travels_with_the_decision() -> None:
    offered = [
        msgspec.structs.replace(
            decision(number, number), candidates=[0, 3], action=3, slate_id=decision_id(1), place=number
        )
        for number in (1, 2)
    ]
    rows, _ = join_rewards(**tables([*offered, decision(3, 3)]), window=WINDOW, settings=settings())
    assert rows.select(["candidates", "slate_id", "place"]).to_pylist() == [
        {"candidates": [0, 3], "slate_id": decision_id(1), "place": 1},
        {"candidates": [0, 3], "slate_id": decision_id(1), "place": 2},
        {"candidates": [], "slate_id": None, "place": None},
    ]


def test_observations_of_several_lengths_are_refused() -> None:
    mixed = [
        decision(1, 0),
        Decision(
            **{name: getattr(decision(2, 1), name) for name in Decision.__struct_fields__} | {"observation": [1.0]}
        ),
    ]
    rows, _ = join_rewards(**tables(mixed), window=WINDOW, settings=settings())
    with pytest.raises(ValueError, match=r"same length, got 2 and 1 \(decision_id=.*0002\)"):
        observations(rows)
