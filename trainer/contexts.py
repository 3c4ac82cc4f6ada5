"""A context that changes: what the numbers of one observation are in an observation of another generation.

A generation is a length of observations, with the feature spec that makes them if there is one. With two specs, a feature
that both have keeps its evidence, and so does each value of a category. Without, the first numbers of both are the same,
and the longer one has more at its end.

An observation of another generation counts with 0 for what it does not have. For sums of x x^T and r x this is the same as
carrying the sums over: those of what stayed are exact, and what is new has no evidence.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from contracts.features import Category, FeatureSpec, Hashed, Number, width
from contracts.policies import PolicyCard
from contracts.windows import Split
from trainer import arms, artifact, dataset
from trainer.dataset import ReadyWindow
from trainer.linear import SufficientStatistics

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch


class Generation(NamedTuple):
    """What observations are made of."""

    observation_dim: int
    features: FeatureSpec | None = None


def of_card(card: PolicyCard) -> Generation:
    """The generation that a policy takes."""
    return Generation(card.observation_dim, card.features)


def of_window(observation_dim: int, deciding: Iterable[PolicyCard]) -> Generation:
    """The generation of a window's observations, by the policies that decided in it, as far as they are known."""
    for card in deciding:
        if card.observation_dim == observation_dim and card.features is not None:
            return of_card(card)
    return Generation(observation_dim)


class Reader(NamedTuple):
    """Reads windows as a policy learns from them: its generation of the context, its items at their actions."""

    policies: Path  # the store, whose cards tell what the observations of a window are made of
    card: PolicyCard

    def generation(self, window: ReadyWindow) -> Generation:
        """What the observations of a window are made of: by the policies that decided in it, or else by the parent."""
        manifest = window.manifest
        parent = [self.card.parent] if self.card.parent is not None else []
        cards = (artifact.read_card(self.policies, version) for version in [*manifest.policy_versions, *parent])
        return of_window(manifest.observation_dim, (card for card in cards if card is not None))

    def fit(self, batch: "TrajectoryBatch", window: ReadyWindow) -> "TrajectoryBatch":
        """A batch of the window as the policy learns from it."""
        own = arms.own(batch, self.card.catalogue, window.manifest.window)
        return projected(own, self.generation(window), of_card(self.card))

    def read(self, window: ReadyWindow, split: Split) -> "Iterator[TrajectoryBatch]":
        """The records of one split; no batch is empty."""
        old, new = self.generation(window), of_card(self.card)
        for batch in dataset.read(window, split, self.card.num_actions):
            own = arms.own(batch, self.card.catalogue, window.manifest.window)
            if len(own.action):
                yield projected(own, old, new)


def places(old: Generation, new: Generation) -> np.ndarray:
    """[new D] int: the place in an `old` observation of each number of a `new` one; -1 for what is new."""
    found = np.full(new.observation_dim, -1)
    if old.features is None or new.features is None:
        shared = min(old.observation_dim, new.observation_dim)
        found[:shared] = np.arange(shared)
        return found
    known = {key: place for place, key in enumerate(_meanings(old.features))}
    for place, key in enumerate(_meanings(new.features)):
        found[place] = known.get(key, -1)
    return found


def project(observation: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """[N, old D] -> [N, new D], by `places`: 0 for what is new."""
    found: np.ndarray = observation[:, taken]
    found[:, taken < 0] = 0
    return found


def projected(batch: "TrajectoryBatch", old: Generation, new: Generation) -> "TrajectoryBatch":
    """A batch of the generation `old` for a policy of `new`."""
    if old == new:
        return batch
    return batch._replace(observation=project(batch.observation, places(old, new)))


def carried_over(statistics: SufficientStatistics, old: Generation, new: Generation) -> SufficientStatistics:
    """The evidence of a policy of `old` for one of `new`."""
    if old == new:
        return statistics
    taken = places(old, new)
    a, b = statistics.a[:, taken][:, :, taken], statistics.b[:, taken]
    a[:, taken < 0], b[:, taken < 0] = 0.0, 0.0
    a[:, :, taken < 0] = 0.0
    return SufficientStatistics(a, b, statistics.n.copy())


def _meanings(spec: FeatureSpec) -> list[tuple[str, object]]:
    """What each number of an observation means: its place, and how it is scaled or hashed."""
    found: list[tuple[str, object]] = [("constant", None)] * spec.constant
    names = iter(spec.places[int(spec.constant) :])
    for feature in spec.features:
        how: object = None
        match feature:
            case Number():
                how = (feature.mean, feature.scale)
            case Hashed():
                how = feature.buckets
            case Category():
                pass
        found += [(next(names), (type(feature).__name__, how)) for _ in range(width(feature))]
    return found
