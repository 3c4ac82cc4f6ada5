"""The sums of all windows that are learned live, and the emissions that are made of them.

`LiveState` is the state of the one key that all changes come together at. `fold` takes in what came since the last tick,
and `emission` makes the next file. Both are functions of their arguments: a runner may repeat them.
"""

import logging
import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from beam_jobs.live_join import JoinPlan, WindowChange, all_changes
from contracts import live_sums
from contracts.live_emissions import Emission, LiveCounts, State, WindowSums
from contracts.live_sums import ArmSums
from contracts.windows import WindowCounts

log = logging.getLogger(__name__)
DAY_SECONDS = 86_400.0


class LiveSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When provisional sums are emitted, and how long they are kept."""

    emit_seconds: Annotated[float, Meta(ge=0.05, le=60, description="time between two emissions")] = 1.0
    snapshot_every: Annotated[
        int, Meta(ge=1, le=1000, description="every so many emissions, one holds all arms of all windows")
    ] = 5
    keep_seconds: Annotated[
        float, Meta(ge=10, le=DAY_SECONDS, description="age at which the file of an emission is removed")
    ] = 120.0
    recorded_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=DAY_SECONDS,
            description="how long after its close a window stays in the emissions once its record is there, so that a"
            " policy can be trained on the record meanwhile",
        ),
    ] = 600.0
    record_wait_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=7 * DAY_SECONDS,
            description="how long after its close a window waits for its record; then its sums are dropped",
        ),
    ] = 3600.0

    @property
    def kept_emissions(self) -> int:
        """How many emissions are kept: at least two snapshots, so that a reader always finds one."""
        return max(math.ceil(self.keep_seconds / self.emit_seconds), 2 * self.snapshot_every)


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """What the join of one bucket made of some events."""

    events: int
    changes: list[tuple[int, dict[str, int], list[bytes]]]  # WindowChange, its sums encoded


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far the source has been read, and how many of its events are in no bucket because they are unreadable."""

    dead_letters: int
    complete_until: datetime | None
    events_read: int | None
    caught_up: bool


class Recorded(msgspec.Struct, frozen=True, tag="recorded"):
    """The record's sums of a window whose manifest is there."""

    start: int
    columns: list[bytes]
    joined: bool  # whether this job has joined the window itself; not if it was recorded when the job started


Item = Joined | Progress | Recorded
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Item)


def encode_item(item: Item) -> bytes:
    """The bytes of an item, for the runner's state."""
    return _encoder.encode(item)


def joined(events: int, changes: Iterable[WindowChange]) -> Joined:
    """What `BucketRows.add` returned for so many events."""
    return Joined(events, [(one.start, one.counts, live_sums.encode(one.sums)) for one in changes])


class LiveWindow(msgspec.Struct):
    """The cumulative sums of one window."""

    state: State
    counts: dict[str, int]  # fields of WindowCounts
    columns: list[bytes]
    changed: list[int]  # arms that changed since the last emission


class LiveState(msgspec.Struct):
    """All windows, by their start in microseconds."""

    sequence: int = 0  # of the last emission
    since_snapshot: int = 0
    events: int = 0  # joined or unreadable
    dead_letters: int = 0
    healed: int = 0
    ready: bool = False  # whether all that was there when the job started has been taken in
    complete_until: datetime | None = None
    pending: list[Progress] = []  # waiting for the events before them
    dropped_before: int = -(2**62)  # windows that start before this are no longer learned
    windows: dict[int, LiveWindow] = {}


def encode_state(state: LiveState) -> bytes:
    """The bytes of the state."""
    return _encoder.encode(state)


_state_decoder = msgspec.msgpack.Decoder(LiveState)


def decode_state(data: bytes | None) -> LiveState:
    """The inverse of `encode_state`; without data, the state of a job that starts."""
    return LiveState() if data is None else _state_decoder.decode(data)


def fold(state: LiveState, items: Iterable[bytes], plan: JoinPlan, settings: LiveSettings) -> None:
    """Takes in encoded items, in any order."""
    changes: list[WindowChange] = []
    records: list[Recorded] = []
    for item in map(_decoder.decode, items):
        match item:
            case Joined():
                state.events += item.events
                changes += [
                    WindowChange(start, counts, live_sums.decode(columns, plan.width))
                    for start, counts, columns in item.changes
                ]
            case Progress():
                state.events += item.dead_letters
                state.dead_letters += item.dead_letters
                state.pending.append(item)
            case Recorded():
                records.append(item)
    for change in all_changes(changes, plan.width).values():
        _add(state, change, plan)
    for record in records:
        _heal(state, record, plan)
    _advance(state)
    _close(state, plan, settings)


def _add(state: LiveState, change: WindowChange, plan: JoinPlan) -> None:
    if change.start < state.dropped_before:
        return
    window = state.windows.get(change.start)
    if window is None:
        counts = dict.fromkeys(WindowCounts.__struct_fields__, 0)
        window = LiveWindow("open", counts, live_sums.encode(live_sums.empty(plan.width)), [])
        state.windows[change.start] = window
    if window.state == "recorded":
        return  # an event that came after the record was made; the record's next revision is another window
    window.counts = {name: window.counts[name] + value for name, value in change.counts.items()}
    _set_sums(window, live_sums.add(_sums(window, plan), change.sums), change.sums.arms)


def _heal(state: LiveState, record: Recorded, plan: JoinPlan) -> None:
    """Puts the sums of the record in place of the job's own, and counts a difference."""
    if record.start < state.dropped_before:
        return
    sums = live_sums.decode(record.columns, plan.width)
    window = state.windows.get(record.start)
    mine = _sums(window, plan) if window else live_sums.empty(plan.width)
    arms = live_sums.differing(mine, sums)
    if window is None:
        window = LiveWindow("recorded", dict.fromkeys(WindowCounts.__struct_fields__, 0), [], [])
        state.windows[record.start] = window
    window.state = "recorded"
    _set_sums(window, sums, arms)
    if record.joined and len(arms):
        state.healed += 1
        log.warning(
            "window %s: provisional sums of %d arms differ from the record, and are replaced by it",
            plan.window(record.start).folder,
            len(arms),
        )


def _advance(state: LiveState) -> None:
    """Takes in how far the source has been read, once the events before that have been."""
    waiting = []
    for one in state.pending:
        if one.events_read is not None and one.events_read > state.events:
            waiting.append(one)
            continue
        state.ready = state.ready or one.caught_up
        if one.complete_until is not None:
            state.complete_until = max(one.complete_until, state.complete_until or one.complete_until)
    state.pending = waiting


def _close(state: LiveState, plan: JoinPlan, settings: LiveSettings) -> None:
    if state.complete_until is None:
        return
    for start, window in sorted(state.windows.items()):
        closes_at = plan.closes_at(start)
        if window.state == "open" and state.complete_until >= closes_at:
            window.state = "closed"
        recorded = window.state == "recorded"
        kept = settings.recorded_seconds if recorded else settings.record_wait_seconds
        if state.complete_until >= closes_at + timedelta(seconds=kept):
            if not recorded:
                log.warning("window %s: no record in time; its sums are dropped", plan.window(start).folder)
            del state.windows[start]
            state.dropped_before = max(state.dropped_before, start + 1)


def emission(state: LiveState, plan: JoinPlan, num_actions: int, emitted_at: datetime, *, snapshot: bool) -> Emission:
    """The next emission; in `state` its sequence number is taken and no arm is changed any more.

    Windows that begin after `complete_until` are left out: a clock that is wrong may have written events in the future.
    """
    state.sequence += 1
    state.since_snapshot = 0 if snapshot else state.since_snapshot + 1
    windows = []
    for start, window in sorted(state.windows.items()):
        span = plan.window(start)
        if state.complete_until is not None and span.start > state.complete_until:
            continue
        sums = _sums(window, plan)
        if not snapshot:
            sums = live_sums.select(sums, np.array(window.changed, np.int32))
        columns = live_sums.encode(sums)
        windows.append(WindowSums(window=span, state=window.state, counts=_counts(window.counts), columns=columns))
        window.changed = []
    return Emission(
        sequence=state.sequence,
        snapshot=snapshot,
        emitted_at=emitted_at,
        complete_until=state.complete_until,
        observation_dim=plan.width,
        num_actions=num_actions,
        encoder="" if plan.encoder is None else plan.encoder.digest,
        events=state.events,
        dead_letters=state.dead_letters,
        healed=state.healed,
        windows=windows,
    )


def _counts(counts: dict[str, Any]) -> LiveCounts:
    return LiveCounts(
        decisions=counts["decisions"],
        rewards=counts["rewards"],
        defaulted=counts["defaulted"],
        waiting=counts["dropped"] + counts["not_activated"],
        cancelled=counts["cancelled"],
    )


def _sums(window: LiveWindow, plan: JoinPlan) -> ArmSums:
    return live_sums.decode(window.columns, plan.width)


def _set_sums(window: LiveWindow, sums: ArmSums, changed: np.ndarray) -> None:
    window.columns = live_sums.encode(sums)
    window.changed = sorted({*window.changed, *changed.tolist()})
