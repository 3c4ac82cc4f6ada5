"""Tests of a mean that may be looked at after every observation: a confidence sequence, and a detector of sudden faults.

A test of H0 "the mean is at most m" is a bet against it. Its capital starts at 1, and an observation x multiplies it by
1 + stake (x - m). Under H0 no way of betting makes the expected capital grow, so the probability that it ever exceeds
1 / alpha is at most alpha (Ville 1939), however often it is looked at. The observations need not be independent or
alike: H0 says that the mean of each, given those before, is at most m. They must lie in a known range.

Each stake is chosen from the observations before: "approximately growth rate adaptive", Waudby-Smith and Ramdas,
"Estimating means of bounded random variables by betting" (2023), appendix B.
"""

import math
from typing import Annotated, Self

import msgspec
import numpy as np
from msgspec import Meta
from scipy.special import logsumexp

from contracts.errors import InputError

# A stake may lose at most this share of the capital at once: half is the usual compromise between learning fast from
# ordinary observations and surviving an extreme one.
MAX_LOSS = 0.5
# How many observations the prior counts as: a mean of m, and the variance of an even spread over a quarter of the range.
PRIOR_OBSERVATIONS = 1.0
PRIOR_SPREAD = 0.25

# Of the detector, each as the share of the capital that the largest possible observation would cost.
DETECTOR_STAKES = (0.01, 0.03, 0.1, 0.3, 0.9)

Capital = Annotated[list[float], Meta(description="logarithm of the capital of the bet against each mean")]


class ConfidenceSequence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on a mean that hold at every look. This struct is all that has to be stored between looks.

    For each of `means` it bets against "the mean is at most m" (`rises`) and "the mean is at least m" (`falls`).
    Observations lie in [`low`, `high`]. Make one with `confidence_sequence`.
    """

    low: float
    high: float
    means: list[float]  # [G], increasing, inside (low, high)
    count: Annotated[int, Meta(ge=0)] = 0
    total: float = 0.0
    squares: float = 0.0
    rises: Capital
    falls: Capital
    rises_peak: Capital
    falls_peak: Capital

    @property
    def mean(self) -> float:
        """The mean of the observations so far; NaN without any."""
        return self.total / self.count if self.count else math.nan

    @property
    def variance(self) -> float:
        """Their variance; that of the prior without any."""
        return float(_moments(self.total, self.squares, self.count, _prior_variance(self.low, self.high))[1])

    def add(self, values: np.ndarray) -> Self:
        """The sequence after `values` [N], in their order. Raises InputError for one that is outside [low, high]."""
        values = _checked(values, self.low, self.high)
        if not len(values):
            return self
        means = np.array(self.means)
        totals = self.total + np.concatenate([[0.0], np.cumsum(values)])
        squares = self.squares + np.concatenate([[0.0], np.cumsum(values**2)])
        counts = self.count + np.arange(len(values))
        centre, variance = _moments(totals[:-1], squares[:-1], counts, _prior_variance(self.low, self.high))
        edge = (centre * counts / (counts + PRIOR_OBSERVATIONS))[:, np.newaxis] - means * (
            counts / (counts + PRIOR_OBSERVATIONS)
        )[:, np.newaxis]  # [N, G]: the running mean less m, drawn towards 0 by the prior
        stake = edge / (variance[:, np.newaxis] + edge**2)
        deviation = values[:, np.newaxis] - means
        up = np.log1p(np.clip(stake, 0.0, MAX_LOSS / (means - self.low)) * deviation)
        down = np.log1p(-np.clip(-stake, 0.0, MAX_LOSS / (self.high - means)) * deviation)
        rises, falls = self.rises + np.cumsum(up, axis=0), self.falls + np.cumsum(down, axis=0)
        return msgspec.structs.replace(
            self,
            count=self.count + len(values),
            total=float(totals[-1]),
            squares=float(squares[-1]),
            rises=rises[-1].tolist(),
            falls=falls[-1].tolist(),
            rises_peak=np.maximum(self.rises_peak, rises.max(axis=0)).tolist(),
            falls_peak=np.maximum(self.falls_peak, falls.max(axis=0)).tolist(),
        )

    def interval(self, alpha: float) -> tuple[float, float]:
        """Bounds that hold at all looks together with a probability of at least 1 - `alpha`.

        They lie on the grid of `means`, or at `low` and `high` where the observations say nothing yet.
        """
        threshold = math.log(2 / alpha)
        excluded_below = np.cumprod(np.array(self.rises_peak) >= threshold)  # all means up to here are too small
        excluded_above = np.cumprod((np.array(self.falls_peak) >= threshold)[::-1])
        below, above = int(excluded_below.sum()), int(excluded_above.sum())
        low = self.means[below - 1] if below else self.low
        high = self.means[len(self.means) - above] if above else self.high
        return low, high

    def still_needed(self, mean: float, alpha: float, variance_ratio: float = 1.0) -> float:
        """About how many more observations would exclude `mean`, if they are as those so far; infinity if they never would.

        `variance_ratio`: of future observations to those so far, for instance of another anchor share. The growth of the
        log capital per observation is stake * gap - stake² (variance + gap²) / 2, to second order.
        """
        gap = self.mean - mean
        if not self.count or gap == 0:
            return math.inf
        reach = mean - self.low if gap > 0 else self.high - mean
        second = self.variance * variance_ratio + gap**2
        stake = min(abs(gap) / second, MAX_LOSS / reach)
        growth = stake * abs(gap) - stake**2 * second / 2
        nearest = int(np.abs(np.array(self.means) - mean).argmin())
        capital = (self.rises if gap > 0 else self.falls)[nearest]
        return max(math.log(2 / alpha) - capital, 0.0) / growth


def confidence_sequence(low: float, high: float, means: list[float]) -> ConfidenceSequence:
    """A sequence without observations, which will lie in [`low`, `high`]; bounds will lie on `means`.

    Raises InputError for means that do not increase, or are not inside (low, high).
    """
    grid = sorted(means)
    if not (grid and grid == list(means) and len(set(grid)) == len(grid) and low < grid[0] and grid[-1] < high):
        raise InputError(f"means: must increase and lie inside ({low}, {high}), got {means}")
    nothing = [0.0] * len(grid)
    return ConfidenceSequence(
        low=low, high=high, means=grid, rises=nothing, falls=nothing, rises_peak=nothing, falls_peak=nothing
    )


class FaultDetector(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Alarms soon after the mean of observations falls below `mean`, whenever that happens.

    For each of a few fixed stakes it keeps a CUSUM of bets against "the mean is at least `mean`": the largest capital of
    any bet that began at an earlier observation. Its statistic is their mean. It alarms at 1 / alpha; the expected number
    of observations until a false alarm is at least 1 / alpha (Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric
    framework for sequential change detection", 2024). Fixed stakes need no observations to learn from, so a fault is seen
    at the same speed whatever came before it.
    """

    mean: float
    low: float
    high: float
    count: Annotated[int, Meta(ge=0)] = 0
    log_capital: tuple[float, ...] = (0.0,) * len(DETECTOR_STAKES)
    log_statistic_peak: float = 0.0

    def add(self, values: np.ndarray) -> Self:
        """The detector after `values` [N], in their order. Raises InputError for one that is outside [low, high]."""
        values = _checked(values, self.low, self.high)
        if not len(values):
            return self
        stakes = np.array(DETECTOR_STAKES) / (self.high - self.mean)
        growth = np.cumsum(np.log1p(-stakes * (values - self.mean)[:, np.newaxis]), axis=0)  # [N, J]
        # W_t = max(W_{t-1}, 0) + g_t, all at once: G_t less the smallest G before, where a bet may begin anew.
        begins = np.concatenate([-np.maximum([self.log_capital], 0.0), growth[:-1]])
        capital = growth - np.minimum.accumulate(begins, axis=0)
        statistic = logsumexp(capital, axis=1) - math.log(len(stakes))
        return msgspec.structs.replace(
            self,
            count=self.count + len(values),
            log_capital=tuple(capital[-1].tolist()),
            log_statistic_peak=max(self.log_statistic_peak, float(statistic.max())),
        )

    def alarms(self, alpha: float) -> bool:
        """Whether it has alarmed at level `alpha`."""
        return self.log_statistic_peak >= -math.log(alpha)


def _prior_variance(low: float, high: float) -> float:
    return (PRIOR_SPREAD * (high - low)) ** 2 / 12


def _moments(
    totals: np.ndarray | float, squares: np.ndarray | float, counts: np.ndarray | float, prior_variance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the observations, and their variance with the prior's."""
    counts = np.asarray(counts, np.float64)
    mean = np.divide(totals, counts, out=np.zeros_like(counts), where=counts > 0)
    spread = np.maximum(np.asarray(squares) - counts * mean**2, 0.0)
    return mean, (spread + PRIOR_OBSERVATIONS * prior_variance) / (counts + PRIOR_OBSERVATIONS)


def _checked(values: np.ndarray, low: float, high: float) -> np.ndarray:
    values = np.asarray(values, np.float64)
    wrong = ~((values >= low) & (values <= high))
    if wrong.any():
        at = int(wrong.argmax())
        raise InputError(f"values: must be from {low} to {high}, got {values[at]} at {at}")
    return values
