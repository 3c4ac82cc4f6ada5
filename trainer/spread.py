"""How rewards, or what a reward model leaves of them, are spread over the decisions of a log."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Extremes(NamedTuple):
    """(low, high) of single values that were seen, and of the mean over choices that were not."""

    seen: tuple[float, float]
    typical: tuple[float, float]


@dataclass
class Spread:
    """The mergeable sums of some values, [N]: plain, and weighted by 1 / propensity, as if all arms were equally tried.

    `sums`: the number, the sum, the sum of squares, and the last two weighted, with the sum of the weights between.
    """

    sums: np.ndarray = field(default_factory=lambda: np.zeros(6))
    low: float = np.inf
    high: float = -np.inf

    def add(self, values: np.ndarray, propensities: np.ndarray) -> None:
        """Adds values, [N]."""
        tries = 1 / propensities
        squares = values * values
        self.sums += [len(values), values.sum(), squares.sum(), tries.sum(), tries @ values, tries @ squares]
        self.low = min(self.low, float(values.min(initial=np.inf)))
        self.high = max(self.high, float(values.max(initial=-np.inf)))

    def merge(self, other: "Spread") -> None:
        """Adds other values."""
        self.sums += other.sums
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def mean(self) -> float:
        """The mean."""
        return float(self.sums[1] / self.sums[0])

    def deviation(self, centre: float | None = None) -> float:
        """The root mean square distance from `centre` (the mean), plain or over equally tried arms: the larger."""
        centre = self.mean if centre is None else centre
        plain = self.sums[2] / self.sums[0] - 2 * centre * self.sums[1] / self.sums[0] + centre**2
        tried = (self.sums[5] - 2 * centre * self.sums[4]) / self.sums[3] + centre**2
        return float(np.sqrt(max(plain, tried, 0.0)))

    def share_of_largest(self) -> float:
        """The share of the squared distances from the mean that the most extreme value makes up."""
        total = float(self.sums[2] - self.sums[1] ** 2 / self.sums[0])
        largest = max(self.high - self.mean, self.mean - self.low) ** 2
        return largest / total if total > 0 else 1.0


# A policy chooses the arms with high rewards, but a reward model is as wrong for what it chooses as for the rest, unless
# it is worse there: the mean reward of what was not seen is taken to be within 2 standard deviations of the log's, the
# mean residual within 1.25 root mean squares of 0. Assumptions; bench/coverage.py shows what they are worth.
REWARD_DEVIATIONS = 2.0
RESIDUAL_DEVIATIONS = 1.25


def reward_extremes(rewards: Spread, known: tuple[float, float] | None) -> Extremes:
    """Of rewards; `known`: their range, where it is known. Where all are c, [min(c, 0), max(c, 1)]."""
    low, high = rewards.low, rewards.high
    if known is not None:
        low, high = min(low, known[0]), max(high, known[1])
    if low == high:
        low, high = min(low, 0.0), max(high, 1.0)
        return Extremes((low, high), (low, high))
    reach = REWARD_DEVIATIONS * rewards.deviation()
    return Extremes((low, high), (max(low, rewards.mean - reach), min(high, rewards.mean + reach)))


def residual_extremes(residuals: Spread, rewards: Spread, known: tuple[float, float] | None) -> Extremes:
    """Of rewards minus a reward model's values of the logged actions."""
    predicted = rewards.mean - residuals.mean
    low, high = residuals.low, residuals.high
    if known is not None or high - low <= 1e-12 * max(abs(rewards.low), abs(rewards.high)):
        seen = reward_extremes(rewards, known).seen
        low, high = min(low, seen[0] - predicted), max(high, seen[1] - predicted)
    reach = RESIDUAL_DEVIATIONS * residuals.deviation(0.0) or max(-low, high)
    return Extremes((low, high), (max(low, -reach), min(high, reach)))
