from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_jobs.live_join import Arrived, BucketRows, JoinPlan, WindowChange, all_changes, train_sums
from beam_jobs.reward_join import join_rewards
from beam_jobs.tables import record_batch
from beam_jobs.window_rows import row_ranges
from contracts import live_sums
from contracts.records import Decision, Event, RewardEvent, Status, StatusEvent, utc_microseconds
from contracts.reward_rules import RewardRule
from contracts.schemas import DECISIONS, REWARDS, STATUSES
from contracts.windows import WindowCounts, WindowSettings

START = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW_SECONDS = 5.0


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def start_of(number: int) -> int:
    return utc_microseconds(at(WINDOW_SECONDS * number))


def decision_id(number: int) -> str:
    return f"019b76da-a8{number % 7:02x}-7000-8000-{number:012x}"


def decision(number: int, seconds: float, action: int = 0, x: float = 1.0, deferred: bool | None = None) -> Decision:
    return Decision(
        decision_id=decision_id(number),
        decided_at=at(seconds),
        policy_version="v1",
        observation=[x, float(number)],
        action=action,
        propensity=0.5,
        deferred=deferred,
    )


def reward(number: int, seconds: float, value: float = 1.0) -> RewardEvent:
    return RewardEvent(decision_id=decision_id(number), occurred_at=at(seconds), reward=value)


def status(number: int, seconds: float, what: Status = "activated") -> StatusEvent:
    return StatusEvent(decision_id=decision_id(number), occurred_at=at(seconds), status=what)


def plan(
    missing: Literal["default", "drop"] = "drop",
    holdback: float = 0.0,
    horizon: float = 7.0,
    rule: RewardRule = "first",
) -> JoinPlan:
    return JoinPlan(
        START,
        WINDOW_SECONDS,
        WindowSettings(
            reward_window_seconds=2.0,
            settle_seconds=1.0,
            missing_reward=missing,
            default_reward=-0.5,
            reward_rule=rule,
            holdback_share=holdback,
            late_horizon_seconds=horizon,
        ),
        observation_dim=2,
    )


def rows(events: list[Event]) -> Arrived:
    return Arrived(
        record_batch(DECISIONS, [event for event in events if isinstance(event, Decision)]),
        record_batch(REWARDS, [event for event in events if isinstance(event, RewardEvent)]),
        record_batch(STATUSES, [event for event in events if isinstance(event, StatusEvent)]),
    )


def record(events: list[Event], start: int, how: JoinPlan) -> tuple[live_sums.ArmSums, WindowCounts]:
    """What the export makes of a window, from the reads that it declares."""
    window = how.window(start)
    tables: dict[str, pa.Table] = {}
    for name, table, begin, end, columns in row_ranges(window, how.settings):
        moment = "decided_at" if table is DECISIONS else "occurred_at"
        found = [one for one in events if isinstance(one, table.record) and begin <= getattr(one, moment) < end]
        batch = record_batch(table, found)
        tables[name] = pa.Table.from_batches([batch.select(columns) if columns else batch])
    interactions, counts = join_rewards(**tables, window=window, settings=how.settings)
    return train_sums(interactions, how), counts


def learned(batches: list[list[Event]], how: JoinPlan, first: int = start_of(0)) -> dict[int, WindowChange]:
    """All that changed, through the state's bytes after each batch, as a runner keeps it."""
    state: dict[str, list[bytes]] = {}
    changes = []
    for batch in batches:
        bucket = BucketRows(state)
        changes += bucket.add(rows(batch), how, first)
        state = {name: bucket.chunks(name) for name in ("decisions", "rewards", "statuses", "earlier")}
    return all_changes(changes, how.observation_dim)


def assert_equal_to_the_record(events: list[Event], found: dict[int, WindowChange], how: JoinPlan) -> None:
    for number in range(4):
        sums, counts = record(events, start_of(number), how)
        expected = {name: getattr(counts, name) for name in WindowCounts.__struct_fields__}
        change = found.get(start_of(number))
        if change is None:
            assert not any(expected.values())
            continue
        assert change.counts == expected
        assert live_sums.equal(change.sums, sums)


@pytest.mark.parametrize(
    ("case", "batches", "moment", "count"),
    [
        ("no reward yet", [[decision(1, 0)]], None, 0),
        ("rewarded", [[decision(1, 0)], [reward(1, 1, 2.0)]], 2.0, 1),
        ("the reward first", [[reward(1, 1, 2.0)], [decision(1, 0)]], 2.0, 1),
        ("replaced by an earlier one", [[decision(1, 0), reward(1, 1.5, 2.0)], [reward(1, 1, 3.0)]], 3.0, 1),
        ("a later one", [[decision(1, 0), reward(1, 1, 3.0)], [reward(1, 1.5, 2.0)]], 3.0, 1),
        ("late", [[decision(1, 0)], [reward(1, 2.1)]], None, 0),
        ("twice", [[decision(1, 0), reward(1, 1)], [decision(1, 0), reward(1, 1)]], 1.0, 1),
        ("its id was used before", [[decision(1, 3), reward(1, 3.5)], [decision(1, -1)]], None, 0),
        ("deferred", [[decision(1, 0, deferred=True)], [reward(1, 1)]], None, 0),
        ("activated", [[decision(1, 0, deferred=True), reward(1, 1, 2.0)], [status(1, 1.5)]], 2.0, 1),
        ("activated too late", [[decision(1, 0, deferred=True), reward(1, 1)], [status(1, 2.1)]], None, 0),
        ("the activation first", [[status(1, 1.5)], [decision(1, 0, deferred=True)], [reward(1, 1)]], 1.0, 1),
        ("cancelled after it was learned", [[decision(1, 0), reward(1, 1)], [status(1, 1.5, "cancelled")]], None, 0),
        ("decided earlier than it seemed", [[decision(1, 3), reward(1, 4)], [decision(1, 1)]], None, 0),
    ],
)
def test_what_is_learned(case: str, batches: list[list[Event]], moment: float | None, count: int) -> None:
    found = learned(batches, plan()).get(start_of(0))
    counts = 0 if found is None else int(found.sums.counts.sum())
    assert counts == count
    if found is not None and moment is not None:
        assert found.sums.moment[0, 0] == round(moment * 2**40)


def test_silence_that_means_no_counts_at_once_and_is_corrected() -> None:
    how = plan("default")
    first = learned([[decision(1, 0)]], how)[start_of(0)]
    assert (first.sums.counts.tolist(), first.sums.moment[0, 0]) == ([1], round(-0.5 * 2**40))
    both = learned([[decision(1, 0)], [reward(1, 1, 2.0)]], how)[start_of(0)]
    assert (both.sums.counts.tolist(), both.sums.moment[0, 0]) == ([1], 2 * 2**40)
    assert (both.counts["defaulted"], both.counts["rewards"]) == (0, 1)


@pytest.mark.parametrize(
    ("rule", "values"), [("first", [2, 2, 1]), ("last", [2, 4, 4]), ("max", [2, 4, 4]), ("sum", [2, 6, 7])]
)
def test_a_further_reward_corrects_what_was_learned(rule: RewardRule, values: list[float]) -> None:
    batches: list[list[Event]] = [[decision(1, 0), reward(1, 1, 2.0)], [reward(1, 1.5, 4.0)], [reward(1, 0.5, 1.0)]]
    for seen in (1, 2, 3):
        found = learned(batches[:seen], plan(rule=rule))[start_of(0)]
        assert (found.sums.counts.tolist(), found.sums.moment[0, 0]) == ([1], round(values[seen - 1] * 2**40))


def test_held_back_decisions_are_not_learned() -> None:
    events: list[Event] = [decision(number, 1) for number in range(50)]
    events += [reward(number, 2) for number in range(50)]
    found = learned([events], plan(holdback=0.4))[start_of(0)]
    assert found.counts["rewards"] == 50
    assert 20 <= found.sums.counts.sum() <= 40
    assert_equal_to_the_record(events, {start_of(0): found}, plan(holdback=0.4))


MOMENTS = st.integers(-30, 80).map(lambda tenths: tenths / 4)
NUMBERS = st.integers(0, 11)
EVENTS = st.one_of(
    st.builds(
        decision,
        NUMBERS,
        MOMENTS,
        st.integers(0, 2),
        st.sampled_from([0.25, 1.0, -3.1, 1e-7, 4000.0]),
        st.sampled_from([None, None, True]),
    ),
    st.builds(status, NUMBERS, MOMENTS, st.sampled_from(["activated", "cancelled"])),
    st.builds(reward, NUMBERS, MOMENTS, st.sampled_from([0.0, 1.0, 0.1, -2.5, 5.0])),
)


@st.composite
def logs(draw: Any) -> list[list[Event]]:
    """Events in the order of their arrival, in batches: with few ids and moments every fault is frequent."""
    events = draw(st.lists(EVENTS, min_size=1, max_size=60))
    # Some decisions have a reward soon after them, and some events arrive again.
    for event in [one for one in events if isinstance(one, Decision)]:
        if draw(st.booleans()):
            after = timedelta(seconds=draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, 2.000001])))
            value = draw(st.sampled_from([1.0, 0.3, 2.0]))
            if draw(st.booleans()):
                what: Status = draw(st.sampled_from(["activated", "activated", "cancelled"]))
                events.append(
                    StatusEvent(decision_id=event.decision_id, occurred_at=event.decided_at + after, status=what)
                )
            events.append(
                RewardEvent(decision_id=event.decision_id, occurred_at=event.decided_at + after, reward=value)
            )
    events += draw(st.lists(st.sampled_from(events), max_size=10))
    events = draw(st.permutations(events))
    size = draw(st.integers(1, 12))
    return [events[begin : begin + size] for begin in range(0, len(events), size)]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    logs(),
    st.sampled_from(["drop", "default"]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 7.0, 100.0]),
    st.sampled_from(get_args(RewardRule)),
)
def test_what_is_learned_equals_the_record(
    batches: list[list[Event]], missing: Literal["drop", "default"], holdback: float, horizon: float, rule: RewardRule
) -> None:
    how = plan(missing, holdback, horizon, rule)
    assert_equal_to_the_record([one for batch in batches for one in batch], learned(batches, how), how)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(logs(), st.integers(1, 2))
def test_windows_that_are_finished_are_forgotten_and_the_others_stay_exact(
    batches: list[list[Event]], finished: int
) -> None:
    how = plan("default")
    events = [one for batch in batches for one in batch]
    events.sort(key=lambda one: one.decided_at if isinstance(one, Decision) else one.occurred_at)
    bound = at(WINDOW_SECONDS * finished + 3)
    early = [one for one in events if (one.decided_at if isinstance(one, Decision) else one.occurred_at) < bound]
    bucket = BucketRows()
    changes = bucket.add(rows(early), how, start_of(0))
    bucket.compact(how, start_of(finished))
    state = {name: bucket.chunks(name) for name in ("decisions", "rewards", "statuses", "earlier")}
    changes += BucketRows(state).add(rows(events[len(early) :]), how, start_of(finished))
    found = all_changes(changes, how.observation_dim)
    for number in range(finished, 4):
        sums, _ = record(events, start_of(number), how)
        change = found.get(start_of(number))
        assert live_sums.equal(change.sums if change else live_sums.empty(2), sums)


def test_rows_that_no_window_needs_are_dropped() -> None:
    how = plan(horizon=4.0)
    bucket = BucketRows()
    for second in range(14):
        for part in range(3):
            number = 3 * second + part
            events: list[Event] = [decision(number, second), reward(number, second + 0.5), status(number, second + 0.5)]
            bucket.add(rows(events), how, start_of(0))
    bucket.compact(how, start_of(2))
    kept = {
        name: sum(len(chunk.ids) for chunk in bucket._chunks[name])
        for name in ("decisions", "rewards", "statuses", "earlier")
    }
    # From 10 s on; from 8 s on, both; from 6 s to 10 s.
    assert kept == {"decisions": 12, "rewards": 18, "statuses": 18, "earlier": 12}


def test_the_number_of_chunks_grows_slowly() -> None:
    bucket = BucketRows()
    for number in range(300):
        bucket.add(rows([decision(number, number / 100), reward(number, number / 100)]), plan(), start_of(0))
    assert len(bucket.chunks("decisions")) <= 13
    sizes = [len(chunk.ids) for chunk in bucket._chunks["decisions"]]
    assert sum(sizes) == 300
    [found] = bucket.add(rows([reward(7, 0.08, 9.0)]), plan(), start_of(0))
    assert {name: value for name, value in found.counts.items() if value} == {
        "repeated_rewards": 1,
        "rewards_in_time": 1,
    }


def test_ids_are_compared_as_16_bytes() -> None:
    from beam_jobs.live_join import _ids, _with_ids

    batch, *_ = rows([decision(0x10FF, 1), decision(0, 1)])
    assert [bytes(one).ljust(16, b"\0").hex() for one in _ids(_with_ids(batch))] == [
        one.replace("-", "") for one in batch.column("decision_id").to_pylist()
    ]
    sliced = batch.slice(1)
    assert np.array_equal(_ids(_with_ids(sliced)), _ids(_with_ids(batch))[1:])
