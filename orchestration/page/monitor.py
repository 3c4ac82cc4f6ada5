"""Makes the page's document: follows the event log and the truth, and reads what else changed since the last look."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contracts.items import Item
from contracts.policies import Champion
from orchestration.event_tail import EventTail
from orchestration.loop.run_folder import JournalEntry, Running
from orchestration.loop.settings import LoopSettings
from orchestration.loop.truth import SessionStart, TruthReader
from orchestration.page import lights
from orchestration.page.slots import PROPENSITIES, Clock, Slot, Slots
from orchestration.page.sources import Sources
from orchestration.page.state import (
    Choice,
    Choices,
    Counts,
    Decided,
    Event,
    Learning,
    Light,
    Point,
    Reference,
    Rewarded,
    Serving,
    State,
    Wrong,
)

Health = dict[str, Any] | None
POINTS_SHOWN = 120
SLOTS_OF_CHOICES = 12
ITEMS_SHOWN = 12
EVENTS_SHOWN = 60
SLOT_SECONDS = 10.0  # where there are no windows to go by
# A reward may be on its way for a while before it counts as one for no decision.
_DEFAULT_REWARD_WINDOW = 3600.0


class Monitor:
    """Follows what happens below one root."""

    def __init__(self, root: Path) -> None:
        """Raises InputError for settings of the run that cannot be read."""
        self.sources = Sources(root)
        settings = self.sources.settings()
        clock = Clock(settings.window_seconds if settings else SLOT_SECONDS)
        if settings is None:
            clock.add(SessionStart(datetime.now(UTC).timestamp(), 1))
        reward_window = settings.reward_window_seconds if settings else _DEFAULT_REWARD_WINDOW
        self._slots = Slots(clock, reward_window, settings.reward_rule if settings else "first")
        self._tail = EventTail(self.sources.folder.events)
        self._truth = TruthReader(self.sources.folder.truth)

    def follow(self) -> None:
        """Takes in what was written since the last call. The truth comes first, as it says when the first window began."""
        self._slots.add_truth(self._truth.read())
        self._slots.add_lines(self._tail.read())

    def state(self, rewarded: Sequence[Rewarded], now: datetime) -> State:
        """The document of this moment. Raises InputError for a file that cannot be read."""
        settings = self.sources.settings()
        running = self.sources.running()
        health = self.sources.health()
        slots = self._slots.all()
        catalogue = self.sources.catalogue()
        return State(
            root=str(self.sources.folder.root),
            now=now,
            settings=_in_a_line(settings),
            slot="window" if settings else f"{SLOT_SECONDS:g} s",
            reward_window_seconds=settings.reward_window_seconds if settings else None,
            predictor=running.predictor if running else None,
            learning=Learning(
                # Without settings of a loop, slots are not windows, so the journal says nothing about them.
                points=_points(slots[-POINTS_SHOWN:], self.sources.journal() if settings else []),
                reference=_reference(running),
                serving=self._serving(health),
            ),
            wrong=self._wrong(settings, health, now),
            choices=_choices(slots[-SLOTS_OF_CHOICES:], catalogue),
            stream=[
                Decided(item=item_of(catalogue, decision.action), decision=decision)
                for decision in reversed(self._slots.latest)
            ],
            timeline=self._timeline(),
            rewarded=list(rewarded),
        )

    def _serving(self, health: Health) -> Serving | None:
        champion = self.sources.champion()
        if champion is None:
            return None
        card = self.sources.card(champion.version)
        return Serving(
            version=champion.version,
            since=champion.promoted_at,
            reason=champion.reason,
            algorithm=card.algorithm,
            exploration=card.exploration.strategy,
            windows=len({trained.window for trained in card.trained_on}),
            records=sum(trained.records for trained in card.trained_on),
            trained_until=max((trained.window.end for trained in card.trained_on), default=None),
            beside=_beside(champion, health),
        )

    def _wrong(self, settings: LoopSettings | None, health: Health, now: datetime) -> Wrong:
        root = self.sources.folder.root
        guard = self.sources.guard()
        journal = self.sources.journal()
        running = self.sources.running()
        newest = self.sources.manifest(journal[-1]) if journal else None
        counts = Counts(
            events=self._slots.events,
            decisions=self._slots.decisions,
            rewards=self._slots.rewards,
            statuses=self._slots.statuses,
            unreadable=self._slots.unreadable,
            orphans=self._slots.orphans,
        )
        shown: list[Light] = [
            lights.of_guard(guard, root),
            *lights.of_audit(self.sources.audits(), root),
            *lights.of_predictor(health, expected=running is not None and running.predictor is not None),
            lights.of_counts(counts, settings.fault_rate if settings else 0.0),
            *lights.of_windows(
                newest,
                settings.window_seconds if settings and running and running.predictor else None,
                settings.window_settings().closing_seconds if settings else 0.0,
                now,
            ),
        ]
        return Wrong(held=guard is not None and guard.held, lights=lights.worst_first(shown), counts=counts)

    def _timeline(self) -> list[Event]:
        events = [
            Event(
                at=past.promoted_at,
                what="rolled back" if past.rolled_back else "promoted",
                version=past.version,
                reason=past.reason + (f" (in place of {past.rolled_back})" if past.rolled_back else ""),
            )
            for past in self.sources.history()[-EVENTS_SHOWN:]
        ]
        events += [
            Event(at=entry.window.end, what="not promoted", version=entry.candidate, reason=entry.gate.reason)
            for entry in self.sources.journal()[-EVENTS_SHOWN:]
            if not entry.gate.promoted
        ]
        events += [
            Event(at=change.changed_at, what=change.verb, version=change.rolled_back_to or "", reason=change.reason)
            for change in self.sources.guard_changes()[-EVENTS_SHOWN:]
        ]
        return sorted(events, key=lambda event: event.at, reverse=True)[:EVENTS_SHOWN]


def item_of(catalogue: Sequence[Item], action: int) -> str:
    """What an action stands for, in words where the catalogue has them."""
    if action >= len(catalogue):
        return f"item {action}"
    return catalogue[action].name


def _reference(running: Running | None) -> Reference | None:
    if running is None or running.oracle is None or running.best_fixed is None or running.uniform is None:
        return None
    return Reference(oracle=running.oracle, best_fixed=running.best_fixed, uniform=running.uniform)


def _points(slots: Sequence[Slot], journal: Sequence[JournalEntry]) -> list[Point]:
    served_at = {entry.number: entry.serving_at for entry in journal if entry.serving_at and not entry.interrupted}
    return [
        Point(
            number=slot.number,
            decisions=slot.decisions,
            reward=slot.reward / slot.rewards if slot.rewards else None,
            expected=slot.expected / slot.truth_decisions if slot.truth_decisions else None,
            oracle=slot.oracle / slot.truth_decisions if slot.truth_decisions else None,
            explored=slot.explored / slot.decisions if slot.decisions else 0.0,
            rare=slot.rare / slot.decisions if slot.decisions else 0.0,
            freshness_seconds=served_at[slot.number].timestamp() - slot.rewarded_at / slot.rewards
            if slot.number in served_at and slot.number and slot.rewards
            else None,
        )
        for slot in slots
    ]


def _choices(slots: Sequence[Slot], catalogue: Sequence[Item]) -> Choices:
    totals: dict[int, int] = {}
    for slot in slots:
        for action, count in slot.actions.items():
            totals[action] = totals.get(action, 0) + count
    top = sorted(totals, key=lambda action: (-totals[action], action))[:ITEMS_SHOWN]
    decisions = [max(slot.decisions, 1) for slot in slots]

    def share(slot: Slot, action: int, of: int) -> float:
        return round(slot.actions.get(action, 0) / of, 4)

    return Choices(
        slots=[slot.number for slot in slots],
        items=[
            Choice(
                action=action,
                item=item_of(catalogue, action),
                shares=[share(slot, action, of) for slot, of in zip(slots, decisions, strict=True)],
            )
            for action in top
        ],
        others=[
            round(1 - sum(slot.actions.get(action, 0) for action in top) / of, 4) if slot.decisions else 0.0
            for slot, of in zip(slots, decisions, strict=True)
        ],
        propensities=[sum(bins) for bins in zip(*(slot.propensities for slot in slots), strict=True)],
        edges=list(PROPENSITIES),
    )


def _beside(champion: Champion, health: Health) -> str | None:
    """What else decides: an anchor, a candidate, or a live version over the champion."""
    parts = []
    if champion.anchor is not None:
        parts.append(f"on probation; the anchor {champion.anchor} takes {champion.anchor_share:.0%} of the decisions")
    if champion.candidate is not None:
        parts.append(f"{champion.mode}: {champion.candidate} takes {champion.candidate_share:.0%} of the decisions")
    live = (health or {}).get("live") or {}
    if live.get("version"):
        parts.append(f"live version {live['version']} decides, {float(live.get('age_seconds') or 0):.1f} s old")
    return "; ".join(parts) or None


def _in_a_line(settings: LoopSettings | None) -> str:
    if settings is None:
        return ""
    return (
        f"{settings.algorithm}, {settings.num_actions} items, windows of {settings.window_seconds:g} s,"
        f" {settings.decisions_per_window:,} decisions each, seed {settings.seed}"
    )
