"""The loop in simulated time with live learning: the product's own sums, solver, judgement and watch, second by second."""

import dataclasses
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np

from bench.simulated_loop import SETTINGS, WINDOW, Rows, Sabotage, SimulatedLoop
from contracts import id_hashes, live_sums, policy_arrays
from contracts.policies import live_version, split_version
from contracts.policy_arrays import Scorer
from contracts.windows import TrainingWindow
from orchestration import policy_store
from orchestration.audit import guard
from orchestration.live_evidence import Decided, LiveCaution, LiveEvidence
from orchestration.watch import Rows as WatchedRows
from predictor.line_up import LineUp, takes
from predictor.live import JUDGED_ON, LiveServing, expected_loss
from predictor.policy import Policy
from trainer import checkpoint
from trainer.live_solver import LiveSolver

STEP = timedelta(seconds=1)
STEPS = round(WINDOW / STEP)
SERVING = LiveServing()

CHUNK = 20  # decisions that the watch takes at a time


class Held(NamedTuple):
    """Why live learning was held, and when."""

    why: str
    decisions: int  # with rewards, that the watch had taken in since `mark`
    second: int  # the first one that the alarm could change, counted from the first that was served


class LiveLoop(SimulatedLoop):
    """A loop that learns live, second by second. A sabotage reaches the feed of live learning as it happens."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.sabotage: Sabotage | None = None
        self.only_learner = False  # the sabotage is in what live learning reads; the log is right
        self.watch = LiveEvidence(LiveCaution())
        self.shares: list[float] = []  # of the oracle's reward, in each second since a policy serves
        self.by_live: list[float] = []  # of the decisions, made by live versions, in each second
        self.alarms: list[Held] = []
        self.releases: list[int] = []  # the seconds from which on it was not held again
        self.held: str | None = None  # why live learning is
        self.anchor_alone = False  # while it is held
        self.sequence = 0  # of the last live version
        self.taken_in = 0  # decisions with rewards that the watch has taken in since `mark`
        self.observed = np.zeros((0, self._viewers.observation_dim), np.float32)
        self._last: _LiveWindow | None = None

    def copy(self, root: Path) -> Self:
        """As `SimulatedLoop.copy`; between windows, when nothing of live learning is under way."""
        other = super().copy(root)
        if self._last is not None:
            self._last.take_in(np.inf)
        for name in ("watch", "held", "sequence", "observed", "shares", "by_live", "alarms", "releases"):
            setattr(other, name, deepcopy(getattr(self, name)))
        return other

    def mark(self) -> None:
        """Counts decisions from here on."""
        self.taken_in = 0

    def corrupted(self, rows: Rows) -> Rows:
        """The rows as the feed shows them."""
        return rows if self.sabotage is None else self.sabotage(rows, self._number, self._sabotage_rng)

    def decided(self, window: TrainingWindow, second: int, line_up: LineUp) -> tuple[Rows, float]:
        """A second of a window, and the share of the oracle's reward."""
        return self._decided(window.start + second * STEP, STEP, self._decisions // STEPS, line_up)

    def _serve(self, window: TrainingWindow) -> tuple[Rows, float]:
        champion = policy_store.champion(self.places.policies) if self.places.policies.is_dir() else None
        if champion is None:
            rows, share = super()._serve(window)
            self.watch.remember(_taken(rows, np.flatnonzero(rows.answered), [None] * len(rows.action), rows.answered))
            return rows, share
        if self.held is not None and not guard.is_held(self.places.root):  # the window before was accepted
            self.held, self.watch = None, self.watch.again()
            self.releases.append(len(self.shares))
        if self._last is not None:
            self._last.take_in(np.inf)
        self._last = run = _LiveWindow(self, self._line_up(champion), window)
        for second in range(STEPS):
            run.step(second)
        return run.rows, float(np.mean(self.shares[-STEPS:]))

    def hold(self, why: str, anchor_alone: bool) -> None:
        """Holds live learning, unless it is held already."""
        if self.held is None:
            self.held, self.anchor_alone = why, anchor_alone
            self.alarms.append(Held(why, self.taken_in, len(self.shares)))


class _LiveWindow:
    """Live learning over one base."""

    def __init__(self, loop: LiveLoop, line_up: LineUp, window: TrainingWindow) -> None:
        self._loop, self._line_up, self._window = loop, line_up, window
        card = line_up.serving.card
        folder = loop.places.policies / card.version
        self._solver = LiveSolver(card, checkpoint.read(folder), policy_arrays.read(folder, card))
        self._sums = live_sums.empty(card.observation_dim)
        self._live: dict[str, Policy] = {}
        self._newest: Policy | None = None
        self._anchor = line_up.anchor or line_up.serving
        self._role = "base" if line_up.anchor is None else "anchor"
        self._share = SERVING.base_share if line_up.anchor is None else line_up.anchor_share
        self._seconds: list[Rows] = []
        self._beside: list[str | None] = []  # the live version at the time of each decision
        self._done = np.zeros(0, bool)  # what has been taken in
        loop.watch.begin(line_up.serving, self._anchor, self._share)

    @property
    def rows(self) -> Rows:
        """All decisions of the window so far, as the feed shows them."""
        return Rows(*(np.concatenate(columns) for columns in zip(*self._seconds, strict=True)))

    def step(self, second: int) -> None:
        """Serves a second, and learns what came until its end."""
        loop, line_up = self._loop, self._line_up
        live = None if loop.held else self._newest
        if loop.held is not None and loop.anchor_alone and line_up.anchor is not None:
            line_up = dataclasses.replace(line_up, anchor_share=1.0)
        elif live is not None:
            line_up = dataclasses.replace(line_up, live=live, base_share=SERVING.base_share)
        rows, share = loop.decided(self._window, second, line_up)
        loop.shares.append(share)
        loop.by_live.append(np.mean([split_version(version)[1] is not None for version in rows.version.tolist()]))
        loop.observed = np.concatenate([loop.observed, rows.observation])[-JUDGED_ON:]
        self._seconds.append(rows if loop.only_learner else loop.corrupted(rows))
        self._beside += [None if live is None else live.card.version] * len(rows.action)
        self._done = np.concatenate([self._done, np.zeros(len(rows.action), bool)])
        learned = self.take_in(self._window.start.timestamp() * 1e6 + (second + 1) * STEP / timedelta(microseconds=1))
        self._publish(loop.corrupted(learned) if loop.only_learner else learned)

    def take_in(self, until: float) -> Rows:
        """Shows the watch the rewards that came before `until`, microseconds since the epoch, and returns these rows."""
        loop, rows = self._loop, self.rows
        in_time = rows.occurred_at - rows.decided_at <= SETTINGS.reward_window_seconds * 1e6
        here = np.flatnonzero(rows.answered & in_time & (rows.occurred_at < until) & ~self._done)
        here = here[np.argsort(rows.occurred_at[here], kind="stable")]
        self._done[here] = True
        side = takes(self._role, self._share, rows.decision_id.tolist())
        by_anchor = side & (rows.version == self._anchor.card.version)
        for begin in range(0, len(here), CHUNK):
            chunk = here[begin : begin + CHUNK]
            decided = _taken(rows, chunk, [self._beside[i] for i in chunk], by_anchor)
            loop.watch.add(decided, self._line_up.serving, self._anchor, self._live)
            if loop.held is None:
                loop.taken_in += len(chunk)
                if (alarm := loop.watch.alarm()) is not None:
                    loop.hold(alarm.reason, alarm.of_versions)
        return Rows(*(column[here] for column in rows))

    def _publish(self, learned: Rows) -> None:
        """The next live version."""
        kept = ~_held_back(learned)
        sums = live_sums.of_interactions(
            learned.observation[kept], learned.action[kept], learned.reward[kept].astype(np.float32)
        )
        self._sums = live_sums.add(self._sums, sums)
        self._solver.solve({self._window: self._sums}, sums.arms)
        base, judge = self._newest or self._line_up.serving, self._anchor
        assert isinstance(base.scorer, Scorer)
        self._loop.sequence += 1
        name = live_version(self._line_up.serving.card.version, self._loop.sequence)
        card = msgspec.structs.replace(base.card, version=name)
        self._newest = Policy(card, base.scorer.changed(self._solver.since_published()))
        self._solver.publish()
        self._live[name] = self._newest
        loss = expected_loss(self._newest, judge, self._loop.observed)
        if loss > SERVING.max_live_loss:
            self._loop.hold(f"refused: the anchor expects a loss of {loss:.2f}", anchor_alone=False)


def _held_back(rows: Rows) -> np.ndarray:
    hashes = id_hashes.lasting([one.encode() for one in rows.decision_id.tolist()])
    return id_hashes.held_back(hashes, SETTINGS.holdback_share)


def _taken(rows: Rows, at: np.ndarray, beside: list[str | None], by_anchor: np.ndarray) -> Decided:
    some = Rows(*(column[at] for column in rows))
    return Decided(
        rows=WatchedRows(
            some.observation, [[] for _ in at], some.action, some.reward.astype(np.float64), by_anchor[at]
        ),
        propensity=some.propensity,
        decided_at=some.decided_at,
        held_back=_held_back(some),
        live=[beside[i] for i in range(len(at))],
    )
