"""What happens to closed windows, wherever they come from: export, audit, watch, train, judge, promote.

The closed loop on one machine and the learner of a project folder call the same steps in the same order:

    export  writes the windows' records; `revise` takes late rows into windows that were exported before
    audit   checks each window against the log, and holds when one is refused
    watch   adds each accepted window to the evidence about the version on probation
    learn   trains the champion's next update, judges it, and lets it serve if it may

Each step can be repeated: what is done already is left as it is. The steps move pointers in the policy store; waiting
until a server has followed is the caller's.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from contracts.features import FeatureSpec
from contracts.items import Item
from contracts.policies import Exploration, PolicyCard
from contracts.windows import Manifest, TrainingWindow, WindowSettings
from orchestration import gate as gates
from orchestration import policy_store, probation
from orchestration.audit import guard
from orchestration.audit.auditor import Auditor
from orchestration.audit.settings import GuardSettings
from orchestration.audit.window_audits import WindowAudit
from orchestration.gate import GateResult
from orchestration.places import Places
from orchestration.watch import Caution, Look

if TYPE_CHECKING:
    from beam_jobs.warehouses import Warehouse
    from trainer.agents import Hyperparameters


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How records become policies, and how these are tried."""

    windows: WindowSettings
    algorithm: str
    hyperparameters: "Hyperparameters"
    exploration: Exploration
    catalogue: list[Item]
    features: FeatureSpec | None = None
    guard: GuardSettings = GuardSettings()
    caution: Caution = Caution()


class Learned(NamedTuple):
    """The result of one update: `gate.promoted` says whether the candidate serves."""

    candidate: str  # the champion's own version if nothing was trained
    gate: GateResult
    card: PolicyCard | None = None  # of the candidate; None if nothing was trained
    train_seconds: float = 0.0
    gate_seconds: float = 0.0


class Learning:
    """The steps below one root."""

    def __init__(self, places: Places, source: "Warehouse", recipe: Recipe) -> None:
        self._places = places
        self._source = source
        self._recipe = recipe

    def export(self, windows: Sequence[TrainingWindow]) -> None:
        """Exports closed windows."""
        from beam_jobs import export_trajectories

        for window in windows:
            export_trajectories.export(self._source, self._places.windows, window, self._recipe.windows)

    def revise(self, until: datetime) -> list[Manifest]:
        """Exports windows that ended by `until` again if rows of them came since. Returns the revisions' manifests."""
        from beam_jobs import export_trajectories

        return export_trajectories.revise_late(self._source, self._places.windows, until, self._recipe.windows)

    def audit(self, windows: Mapping[TrainingWindow, int], interrupted: bool = False) -> list[WindowAudit]:
        """Audits revisions of exported windows. When one is refused, the guard holds, and the champion may have been rolled back."""
        places = self._places
        auditor = Auditor(self._source, places.policies, places.audit, self._recipe.windows, places.live)
        watch = guard.Guard(places, auditor, self._recipe.guard)
        return [watch.check(one, datetime.now(UTC), interrupted, revision) for one, revision in windows.items()]

    def watch(self, windows: Sequence[TrainingWindow]) -> list[Look | None]:
        """A look at the version on probation after each audited window; None where there is nothing to look at.

        It may confirm the version, or roll it back.
        """
        refused = guard.refused_windows(self._places)
        return [
            None
            if window.start in refused
            else probation.step(self._places, self._probation_source, window, datetime.now(UTC))
            for window in windows
        ]

    def learn(self) -> Learned:
        """Trains, judges and promotes the champion's next update, unless the guard holds."""
        places = self._places
        champion = policy_store.champion(places.policies)
        before, anchor = (champion.version, champion.anchor) if champion else (None, None)
        held = guard.state(places.root)
        if held is not None and held.held:
            since = held.window.folder if held.window else f"{held.changed_at:%H:%M:%S}"
            return Learned(before or "", _unchanged(f"held since {since}"))
        if not self._anything_to_train_on():
            return Learned(before or "", _unchanged("no interactions to train on yet"))
        with timed() as train_seconds:
            card = self._train(before)
        if card.version == before:
            return Learned(card.version, _unchanged("nothing new to train on"), train_seconds=train_seconds[0])
        with timed() as gate_seconds:
            log = self._probation_source
            gate = gates.evaluate(places.policies, places.windows, card.version, before, anchor=anchor, log=log)
        if gate.promoted:
            caution, now = self._recipe.caution, datetime.now(UTC)
            probation.enter(places, self._probation_source, card.version, caution, gate.reason, now)
        return Learned(card.version, gate, card, train_seconds[0], gate_seconds[0])

    def _anything_to_train_on(self) -> bool:
        from trainer import dataset

        refused = guard.refused_windows(self._places)
        ready = dataset.ready_windows(self._places.windows)
        return any(window.manifest.observation_dim for window in ready if window.start not in refused)

    @property
    def _probation_source(self) -> probation.Source:
        return probation.Source(self._source, self._recipe.windows)

    def _train(self, parent: str | None) -> PolicyCard:
        from trainer import training

        recipe = self._recipe
        return training.train(
            training.Settings(
                windows=self._places.windows,
                policies=self._places.policies,
                num_actions=len(recipe.catalogue),
                catalogue=recipe.catalogue,
                parent=parent,
                algorithm=recipe.algorithm,
                hyperparameters=recipe.hyperparameters,
                exploration=recipe.exploration,
                features=recipe.features,
                refused=guard.refused_windows(self._places),
            )
        )


@contextmanager
def timed() -> Iterator[list[float]]:
    """Yields a list whose only element becomes the seconds spent in the block."""
    spent = [0.0]
    begin = time.monotonic()
    yield spent
    spent[0] = time.monotonic() - begin


def _unchanged(reason: str) -> GateResult:
    return GateResult(verdict="undecided", promoted=False, reason=reason, evaluation=None)
