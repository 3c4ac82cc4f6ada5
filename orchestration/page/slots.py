"""What is served, added up as it comes: one slot per training window, or per stretch of time where windows are unknown.

A slot holds sums alone, and only the latest decisions wait for their reward, so memory does not grow with traffic.
"""

from bisect import bisect_left
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

import msgspec

from contracts.records import UNREADABLE, Decision, RewardEvent, StatusEvent, event_decoder
from contracts.reward_rules import RewardRule, combine
from orchestration.loop.truth import Entry, ServedDecision, SessionStart, decided_milliseconds

SLOTS_KEPT = 600
DECISIONS_AWAITED = 20_000  # decisions that a reward may still come for
REWARDS_KEPT = 100  # of one decision, to add them up
STREAMED = 40  # the latest decisions
PROPENSITIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.9, 1.0)
# A decision explores when its action was less likely than all others together.
EXPLORES_BELOW = 0.5
RARE_BELOW = 50  # decisions, after which an item is no longer new


class Slot(msgspec.Struct, kw_only=True):
    """Sums over the decisions of a stretch of time."""

    number: int
    decisions: int = 0
    rewards: int = 0  # decisions with a reward in time
    late_rewards: int = 0
    reward: float = 0.0  # sum of their rewards
    rewarded_at: float = 0.0  # sum of their times, in seconds since the epoch
    explored: int = 0
    rare: int = 0  # of items that had been shown fewer than RARE_BELOW times
    truth_decisions: int = 0  # of which the viewers wrote down the expected reward
    expected: float = 0.0
    oracle: float = 0.0
    actions: Counter[int] = msgspec.field(default_factory=Counter)
    versions: Counter[str] = msgspec.field(default_factory=Counter)
    propensities: list[int] = msgspec.field(default_factory=lambda: [0] * len(PROPENSITIES))


class Streamed(msgspec.Struct, kw_only=True):
    """One of the latest decisions, and its reward once that came."""

    decision_id: str
    decided_at: datetime
    policy_version: str
    action: int
    propensity: float
    reward: float | None = None
    reward_seconds: float | None = None
    late: bool = False


class _Awaited(NamedTuple):
    """A decision that rewards may still come for, and those that came: (seconds after the decision, value)."""

    slot: int
    streamed: Streamed
    in_time: list[tuple[float, float]]


class Clock:
    """Which slot a moment belongs to: windows of a running loop, counted from 1; before its start slot 0."""

    def __init__(self, slot_seconds: float) -> None:
        self._slot_seconds = slot_seconds
        self._sessions: list[SessionStart] = []

    def add(self, session: SessionStart) -> None:
        """Notes that viewers came."""
        self._sessions.append(session)
        self._sessions.sort(key=lambda one: one.start)

    def slot(self, seconds: float) -> int:
        """The number of the slot of a moment in seconds since the epoch."""
        if not self._sessions:
            return 0
        index = bisect_left(self._sessions, seconds, key=lambda one: one.start) - 1
        if index < 0:
            return 0
        begun = self._sessions[index]
        return begun.first_window + int((seconds - begun.start) // self._slot_seconds)


class Slots:
    """Adds up events and, where viewers write it down, the truth."""

    def __init__(self, clock: Clock, reward_window_seconds: float, reward_rule: RewardRule = "first") -> None:
        self.events = self.unreadable = self.decisions = self.rewards = self.statuses = self.orphans = 0
        self.latest: deque[Streamed] = deque(maxlen=STREAMED)
        self.last_event_at: datetime | None = None
        self._clock = clock
        self._reward_window = reward_window_seconds
        self._reward_rule = reward_rule
        self._slots: OrderedDict[int, Slot] = OrderedDict()
        self._shown: Counter[int] = Counter()
        self._awaited: OrderedDict[str, _Awaited] = OrderedDict()

    def all(self) -> list[Slot]:
        """The slots kept, in order."""
        return [self._slots[number] for number in sorted(self._slots)]

    def add_lines(self, lines: Iterable[bytes]) -> None:
        """Adds lines of the event log."""
        for line in lines:
            self.events += 1
            try:
                event = event_decoder.decode(line)
            except UNREADABLE:
                self.unreadable += 1
                continue
            match event:
                case Decision():
                    self._decided(event)
                case RewardEvent():
                    self._rewarded(event)
                case StatusEvent():
                    self.statuses += 1

    def add_truth(self, entries: Iterable[Entry]) -> None:
        """Adds what viewers wrote down."""
        for entry in entries:
            if isinstance(entry, SessionStart):
                self._clock.add(entry)
            elif isinstance(entry, ServedDecision):
                slot = self._slot(decided_milliseconds(entry.decision_id) / 1000)
                slot.truth_decisions += 1
                slot.expected += entry.expected_reward
                slot.oracle += entry.oracle_reward

    def _decided(self, decision: Decision) -> None:
        self.decisions += 1
        self.last_event_at = decision.decided_at
        if decision.decision_id in self._awaited:
            return  # delivered again
        slot = self._slot(decision.decided_at.timestamp())
        slot.decisions += 1
        slot.explored += decision.propensity < EXPLORES_BELOW
        slot.rare += self._shown[decision.action] < RARE_BELOW
        self._shown[decision.action] += 1
        slot.actions[decision.action] += 1
        slot.versions[decision.policy_version] += 1
        slot.propensities[bisect_left(PROPENSITIES, decision.propensity)] += 1
        streamed = Streamed(
            decision_id=decision.decision_id,
            decided_at=decision.decided_at,
            policy_version=decision.policy_version,
            action=decision.action,
            propensity=decision.propensity,
        )
        self.latest.append(streamed)
        self._awaited[decision.decision_id] = _Awaited(slot.number, streamed, [])
        if len(self._awaited) > DECISIONS_AWAITED:
            self._awaited.popitem(last=False)

    def _rewarded(self, event: RewardEvent) -> None:
        self.rewards += 1
        awaited = self._awaited.get(event.decision_id)
        if awaited is None:
            self.orphans += 1
            return
        if (slot := self._slots.get(awaited.slot)) is None:
            return
        streamed = awaited.streamed
        seconds = (event.occurred_at - streamed.decided_at).total_seconds()
        if not 0 <= seconds <= self._reward_window:
            if streamed.reward is None:
                streamed.reward, streamed.reward_seconds, streamed.late = event.reward, seconds, True
                slot.late_rewards += 1
            return
        if not awaited.in_time:
            slot.rewards += 1
            slot.rewarded_at += streamed.decided_at.timestamp()
        elif len(awaited.in_time) == REWARDS_KEPT:
            return
        before = combine(self._reward_rule, awaited.in_time) if awaited.in_time else (0.0, 0.0)
        awaited.in_time.append((seconds, event.reward))
        after = combine(self._reward_rule, awaited.in_time)
        if self._reward_rule != "sum":
            awaited.in_time[:] = [after]  # the others cannot matter any more
        slot.reward += after[1] - before[1]
        slot.rewarded_at += after[0] - before[0]
        streamed.reward_seconds, streamed.reward = after
        streamed.late = False

    def _slot(self, seconds: float) -> Slot:
        number = self._clock.slot(seconds)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = Slot(number=number)
            if len(self._slots) > SLOTS_KEPT:
                self._slots.pop(min(self._slots))
        return slot
