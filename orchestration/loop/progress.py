"""The lines that the loop prints while it runs."""

import sys
import time
from datetime import datetime

import numpy as np

from beam_jobs import warehouse
from beam_jobs.movielens import MovieLens
from contracts import schemas
from contracts.command_line import show_status
from contracts.policies import PolicyCard
from contracts.records import utc_microseconds
from orchestration import held_back
from orchestration.loop.audience import share_answered_in_time
from orchestration.loop.run_folder import JournalEntry, RunFolder
from orchestration.loop.settings import LoopSettings
from orchestration.loop.truth import ServedDecision, SessionStart, TruthReader, decided_milliseconds, windows_passed
from predictor import policy as serving

STATUS_SECONDS = 0.5


class Progress:
    """Makes the line that is printed for each window."""

    def __init__(self, folder: RunFolder, movielens: MovieLens, settings: LoopSettings) -> None:
        self._folder = folder
        self._movielens = movielens
        self._settings = settings
        self._truth = TruthReader(folder.truth)
        self._sessions: list[SessionStart] = []
        self._served: list[tuple[int, float, float]] = []  # milliseconds, expected reward, oracle's
        self._next_status = 0.0
        self._users = {row.tobytes(): user for user, row in enumerate(movielens.observations)}

    def decisions_between(self, begin: datetime, end: datetime) -> int:
        """The number of decisions made in `[begin, end)` that the warehouse holds."""
        rows, _ = warehouse.read(self._folder.warehouse, schemas.DECISIONS, begin, end, ["decision_id"])
        count: int = rows.num_rows
        return count

    def true_value(self, card: PolicyCard) -> float | None:
        """The expected reward per decision of the policy, on the decisions on which the gate judges it.

        It is the true value of the quantity that the gate estimates. Where tastes drift, it takes the tastes in the
        middle of the window. Where silence takes the default reward, it includes the expected share of such decisions.
        None when the gate has no decisions to judge by.
        """
        self._read()
        policy = serving.load(self._folder.policies / card.version)
        judged = held_back.read(self._folder.policies, self._folder.windows, card).judged_by([policy], card.num_actions)
        observations = judged.decisions.observation
        users = np.array([self._users.get(row.tobytes(), -1) for row in observations], np.int64)
        known = users >= 0
        if not known.any():
            return None
        probabilities = policy.probabilities(observations[known], judged.offered[known])
        users = users[known]
        window = max((trained.window for trained in card.trained_on), key=lambda window: window.start)
        middle = (window.start + (window.end - window.start) / 2).timestamp()
        passed = windows_passed(self._sessions, np.array([middle]), self._settings.window_seconds)
        expected = self._movielens.expected_of_all_actions(users, self._settings.drift * passed)
        value = float((probabilities * expected).sum(axis=1).mean())
        if self._settings.missing_reward == "drop":
            return value
        answered = share_answered_in_time(self._settings, serving_began=bool(self._sessions))
        return answered * value + (1 - answered) * self._settings.default_reward

    def line(self, entry: JournalEntry) -> str:
        """One line: the window's decisions, the value of the next policy, and whether it was promoted."""
        self._read()
        begin, end = (utc_microseconds(moment) // 1000 for moment in (entry.window.start, entry.window.end))
        inside = [(reward, oracle) for moment, reward, oracle in self._served if begin <= moment < end]
        self._served = [decision for decision in self._served if decision[0] >= end]
        name = "bootstrap" if entry.number == 0 else f"window {entry.number:>2}/{self._settings.windows}"
        parts = [f"{'interrupted' if entry.interrupted else name:<12}"]
        if inside:
            rewards, oracle = np.array(inside).T
            parts.append(
                f"{len(inside):>5} decisions, reward {rewards.mean():.3f} = {rewards.sum() / oracle.sum():.1%} of oracle"
            )
        if (evaluation := entry.gate.evaluation) is not None:
            parts.append(
                f"next policy {evaluation.value:.2f} [{evaluation.low:.2f}, {evaluation.high:.2f}]"
                + (f", truth {entry.true_value:.2f}" if entry.true_value is not None else "")
            )
        if entry.held_by:
            parts.append(f"waited {entry.ingest_seconds:.1f} s for its events")
        outcome = "promoted" if entry.gate.promoted else f"not promoted: {entry.gate.reason}"
        after = (
            f" {(entry.serving_at - entry.window.end).total_seconds():.1f} s after the window"
            if entry.serving_at and entry.number
            else ""
        )
        parts.append(f"{outcome}{after} (train {entry.train_seconds:.2f} s)")
        return "  ".join(parts)

    def show(self) -> None:
        """Shows how the window that is open now goes, in the last line of a terminal; at most twice per second."""
        if not sys.stdout.isatty() or time.monotonic() < self._next_status:
            return
        self._next_status = time.monotonic() + STATUS_SECONDS
        self._read()
        show_status(self.status(time.time()))

    def status(self, now: float) -> str:
        """How the window that is open at `now` (seconds since the epoch) goes; nothing while no viewer has come."""
        if not self._sessions:
            return ""
        session, seconds = self._sessions[-1], self._settings.window_seconds
        passed = int((now - session.start) // seconds)
        number = session.first_window + passed
        if passed < 0 or number > self._settings.windows:
            return "the last windows are being processed" if passed >= 0 else "the viewers are about to come"
        begin = 1000 * (session.start + passed * seconds)
        inside = [(reward, oracle) for moment, reward, oracle in self._served if moment >= begin]
        text = f"window {number}/{self._settings.windows}: {len(inside):,} decisions so far"
        if inside:
            rewards, oracle = np.array(inside).T
            text += f", reward {rewards.mean():.3f} = {rewards.sum() / oracle.sum():.1%} of oracle"
        return f"{text}; {begin / 1000 + seconds - now:.0f} s left"

    def _read(self) -> None:
        for entry in self._truth.read():
            if isinstance(entry, SessionStart):
                self._sessions.append(entry)
            elif isinstance(entry, ServedDecision):
                moment = decided_milliseconds(entry.decision_id)
                self._served.append((moment, entry.expected_reward, entry.oracle_reward))
