from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import pytest

from beam_jobs import live_windows
from beam_jobs.live_join import JoinPlan, WindowChange
from beam_jobs.live_windows import Item, LiveSettings, LiveState, Progress, Recorded
from contracts import live_sums
from contracts.errors import InputError
from contracts.live_emissions import Emission
from contracts.live_sums import ArmSums
from contracts.records import utc_microseconds
from contracts.windows import WindowCounts, WindowSettings

START = datetime(2026, 1, 1, tzinfo=UTC)
PLAN = JoinPlan(START, 5.0, WindowSettings(reward_window_seconds=2.0, settle_seconds=1.0), observation_dim=2)
SETTINGS = LiveSettings(recorded_seconds=10.0, record_wait_seconds=100.0)


def start_of(number: int) -> int:
    return utc_microseconds(START + timedelta(seconds=5 * number))


def sums(**arms: int) -> ArmSums:
    action = np.array([int(arm[1:]) for arm, count in arms.items() for _ in range(count)], np.int32)
    return live_sums.of_interactions(np.ones((len(action), 2), np.float32), action, np.ones(len(action), np.float32))


def change(number: int, found: ArmSums, decisions: int = 0, rewards: int = 0) -> WindowChange:
    counts = dict.fromkeys(WindowCounts.__struct_fields__, 0)
    counts |= {"decisions": decisions, "rewards": rewards, "dropped": decisions - rewards}
    return WindowChange(start_of(number), counts, found)


def progress(seconds: float | None, events: int | None = None, dead: int = 0, caught_up: bool = True) -> Progress:
    until = None if seconds is None else START + timedelta(seconds=seconds)
    return Progress(dead, until, events, caught_up)


def recorded(number: int, found: ArmSums, joined: bool = True) -> Recorded:
    return Recorded(start_of(number), live_sums.encode(found), joined)


def fold(state: LiveState, *items: Item) -> LiveState:
    live_windows.fold(state, map(live_windows.encode_item, items), PLAN, SETTINGS)
    return live_windows.decode_state(live_windows.encode_state(state))


def emit(state: LiveState, snapshot: bool = False) -> Emission:
    return live_windows.emission(state, PLAN, 9, START, snapshot=snapshot)


def counts(emission: Emission) -> dict[int, dict[int, int]]:
    found = {}
    for window in emission.windows:
        arms = window.sums(2)
        number = round((window.window.start - START).total_seconds() / 5)
        found[number] = dict(zip(arms.arms.tolist(), arms.counts.tolist(), strict=True))
    return found


def test_an_emission_holds_the_cumulative_sums_of_the_arms_that_changed() -> None:
    state = fold(LiveState(), live_windows.joined(3, [change(0, sums(a1=2, a2=1), 4, 3)]), progress(3))
    first = emit(state, snapshot=True)
    assert (counts(first), first.snapshot, first.sequence, first.events) == ({0: {1: 2, 2: 1}}, True, 1, 3)
    assert msgspec.structs.astuple(first.windows[0].counts) == (4, 3, 0, 1, 0)
    state = fold(state, live_windows.joined(1, [change(0, sums(a1=1), 0, 1)]), progress(4))
    assert counts(emit(state)) == {0: {1: 3}}
    assert counts(emit(state)) == {0: {}}
    assert counts(emit(state, snapshot=True)) == {0: {1: 3, 2: 1}}


def test_an_arm_whose_interactions_were_all_retracted_is_emitted_with_zeros() -> None:
    state = fold(LiveState(), live_windows.joined(1, [change(0, sums(a1=1), 1, 1)]))
    emit(state)
    taken = live_sums.subtract(live_sums.empty(2), sums(a1=1))
    state = fold(state, live_windows.joined(1, [change(0, taken, 0, -1)]))
    assert counts(emit(state)) == {0: {1: 0}}


def test_the_order_of_what_arrives_does_not_matter() -> None:
    items = [
        live_windows.joined(1, [change(0, sums(a1=2), 2, 2)]),
        live_windows.joined(1, [change(0, live_sums.subtract(sums(a3=1), sums(a1=1)), 0, 0)]),
        progress(3, events=2),
        live_windows.joined(0, [change(1, sums(a2=1), 1, 1)]),
    ]
    one, other = fold(LiveState(), *items), fold(LiveState(), *reversed(items))
    assert counts(emit(one, snapshot=True)) == counts(emit(other, snapshot=True)) == {0: {1: 1, 3: 1}}


def test_progress_counts_once_the_events_before_it_are_joined() -> None:
    state = fold(LiveState(), progress(9, events=5, dead=1))
    assert (state.complete_until, state.ready, state.events, state.dead_letters) == (None, False, 1, 1)
    state = fold(state, live_windows.joined(3, []))
    assert not state.ready
    state = fold(state, live_windows.joined(1, []))
    assert state.ready
    assert state.complete_until == START + timedelta(seconds=9)


def test_the_job_is_ready_when_it_has_caught_up() -> None:
    state = fold(LiveState(), progress(9, caught_up=False))
    assert not state.ready
    assert fold(state, progress(10), progress(11, caught_up=False)).ready


def test_a_window_closes_when_the_log_is_complete() -> None:
    state = fold(LiveState(), live_windows.joined(1, [change(0, sums(a1=1), 1, 1)]), progress(7.9))
    assert emit(state).windows[0].state == "open"
    assert emit(fold(state, progress(8))).windows[0].state == "closed"


def test_windows_that_have_not_begun_are_not_emitted_yet() -> None:
    state = fold(LiveState(), live_windows.joined(1, [change(3, sums(a1=1), 1, 1)]), progress(3))
    assert counts(emit(state, snapshot=True)) == {}
    assert counts(emit(fold(state, progress(15)))) == {3: {1: 1}}


def test_the_record_replaces_the_sums_and_a_difference_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    joined = live_windows.joined(1, [change(0, sums(a1=2, a2=1), 3, 3)])
    same = fold(LiveState(), joined, recorded(0, sums(a1=2, a2=1)))
    assert (same.healed, emit(same).windows[0].state, caplog.text) == (0, "recorded", "")
    state = fold(LiveState(), joined, progress(8))
    emit(state)
    state = fold(state, recorded(0, sums(a2=1, a4=1)))
    assert counts(emit(state)) == {0: {1: 0, 4: 1}}
    assert counts(emit(state, snapshot=True)) == {0: {2: 1, 4: 1}}
    assert state.healed == 1
    assert "window=20260101T000000.000000Z: provisional sums of 2 arms differ from the record" in caplog.text


def test_an_event_after_the_record_changes_nothing() -> None:
    state = fold(LiveState(), recorded(0, sums(a1=1)))
    state = fold(state, live_windows.joined(1, [change(0, sums(a1=1), 1, 1)]))
    assert counts(emit(state, snapshot=True)) == {0: {1: 1}}


def test_a_window_that_was_recorded_before_the_start_is_no_difference() -> None:
    state = fold(LiveState(), recorded(0, sums(a1=1), joined=False))
    assert state.healed == 0
    assert counts(emit(state, snapshot=True)) == {0: {1: 1}}


def test_recorded_windows_are_dropped_and_stay_dropped() -> None:
    state = fold(LiveState(), recorded(0, sums(a1=1)), progress(17))
    assert len(state.windows) == 1
    state = fold(state, progress(18))
    assert not state.windows
    state = fold(state, live_windows.joined(1, [change(0, sums(a1=1), 1, 1)]), recorded(0, sums(a1=1)))
    assert not state.windows


def test_a_window_whose_record_does_not_come_is_dropped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    state = fold(LiveState(), live_windows.joined(1, [change(0, sums(a1=1), 1, 1)]), progress(107))
    assert len(state.windows) == 1
    assert not fold(state, progress(108)).windows
    assert "no record in time; its sums are dropped" in caplog.text


def test_a_reader_always_finds_a_snapshot() -> None:
    assert LiveSettings(emit_seconds=1, keep_seconds=120, snapshot_every=5).kept_emissions == 120
    assert LiveSettings(emit_seconds=1, keep_seconds=10, snapshot_every=100).kept_emissions == 200


@pytest.mark.parametrize(("field", "value"), [("emit_seconds", 0.01), ("snapshot_every", 0), ("keep_seconds", 1)])
def test_the_bounds_of_the_settings(field: str, value: float) -> None:
    from contracts.command_line import build

    with pytest.raises(InputError, match=field):
        build(LiveSettings, {field: value})
