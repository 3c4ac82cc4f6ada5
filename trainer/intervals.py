"""Confidence intervals for means of weighted rewards that know when the log cannot carry them.

Decisions are summed up by group (a group may be a viewer): `counts`, `controls` and `totals`, [G] each. A control is a
number whose mean is known to be 0, such as w - 1 for an importance weight w.

Which interval is used. An interval sees only what was drawn. Imagine one more decision, as extreme as it may be: of the
largest possible weight with a typical residual, or of a typical weight with the largest residual seen. If it could move
the estimate by more than `LEVERAGE` of the half-width, the plain interval cannot know, and Cressie-Read's is taken,
which has that decision in it. Otherwise the plain one is taken.

plain          bootstrap over groups, bias-corrected and accelerated (Efron 1987), with Student's quantile at the degrees
               of freedom that the kurtosis leaves (Hesterberg 2015, Satterthwaite 1946)
cressie_read   empirical likelihood with the Cressie-Read divergence of power -2, the constraint that the controls have
               mean 0, and one decision that was not seen (Karampatziakis, Langford and Mineiro 2020). With one decision
               per group it equals `cressieread.py` of VowpalWabbit/estimators on the same extremes.

It is not a bound that holds for every distribution: it assumes that rewards outside the log are of the kind in it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Literal, Self

import numpy as np
from scipy.special import stdtrit

from contracts.errors import InputError

RESAMPLES = 1_000
LEVERAGE = 0.5
# An interval from fewer independent groups is not reliable: Student's quantile rests on the spread of a handful.
MIN_GROUPS = 20

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, and whether that is to be believed; `reason` says why it is not."""

    value: float
    low: float
    high: float
    method: Literal["plain", "cressie_read"] = "plain"
    reliable: bool = True
    reason: str | None = None

    def widened(self, by: float) -> Self:
        """The interval with `by` added on either side."""
        return replace(self, low=self.low - by, high=self.high + by)

    def doubted(self, reason: str | None) -> Self:
        """The interval marked unreliable, where there is a reason."""
        return self if reason is None else replace(self, reliable=False, reason=reason)


@dataclass(frozen=True)
class Question:
    """What is asked: the confidence in (0, 1), the seed of the bootstrap, and the range of a reward where it is known.

    Raises InputError when a value is out of range.
    """

    confidence: float = 0.95
    seed: int = 0
    reward_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise InputError(f"confidence must be in (0, 1), got {self.confidence}")
        if self.reward_range is not None and not self.reward_range[0] < self.reward_range[1]:
            raise InputError(f"reward_range must be (low, high) with low < high, got {self.reward_range}")


@dataclass(frozen=True)
class Estimator:
    """A function of sums (last axis: columns), and its linear form: controls and totals of each row."""

    value: Callable[[np.ndarray], np.ndarray]
    controls: Callable[[np.ndarray], np.ndarray]
    totals: Callable[[np.ndarray], np.ndarray]


class Intervals:
    """Resamples the groups of a table once, for every estimator.

    Args:
      table: [G, C], sums by group; column 0 is the number of decisions.
      unseen: [F, C], the most extreme single decisions that the log may have missed.
      question: confidence and seed.
    """

    def __init__(self, table: np.ndarray, unseen: np.ndarray, question: Question) -> None:
        self._filled = table[table[:, 0] > 0]
        self._unseen = unseen
        self._total = self._filled.sum(axis=0)
        self._resampled = _drawn(question.seed, len(self._filled)) @ self._filled
        self._without_one = self._total - self._filled if len(self._filled) > 1 else self._filled
        self._confidence = question.confidence

    @property
    def groups(self) -> int:
        """How many groups hold decisions."""
        return len(self._filled)

    def interval(self, estimator: Estimator) -> Interval:
        """The plain interval, or Cressie-Read's where a decision that was not seen could move the plain one too far."""
        plain = self.plain(estimator)
        half_width = (plain.high - plain.low) / 2
        moved = np.abs(estimator.value(self._total + self._unseen) - plain.value)
        if half_width > 0 and moved.max(initial=0.0) <= LEVERAGE * half_width:
            return plain
        robust = self.cressie_read(estimator)
        # Cressie-Read's is of the policy's value whatever the estimator; it may not exclude what it is shown with.
        return Interval(
            plain.value,
            float(np.fmin(robust.low, plain.value)),
            float(np.fmax(robust.high, plain.value)),
            robust.method,
        )

    def cressie_read(self, estimator: Estimator) -> Interval:
        """Cressie-Read's interval of the estimator's linear form."""
        low, high = cressie_read(
            self._filled[:, 0],
            estimator.controls(self._filled),
            estimator.totals(self._filled),
            np.stack([estimator.controls(self._unseen), estimator.totals(self._unseen)], axis=1),
            self._confidence,
        )
        return Interval(float(estimator.value(self._total)), low, high, "cressie_read")

    def plain(self, estimator: Estimator) -> Interval:
        """The bootstrap's interval; it has no width where nothing varies, and is NaN where there is no estimate."""
        value = estimator.value
        estimate = float(value(self._total))
        resampled = value(self._resampled)
        resampled = np.sort(resampled[np.isfinite(resampled)])
        if np.isnan(estimate) or not len(resampled):
            return Interval(estimate, np.nan, np.nan)
        margin = 1e-12 * max(1.0, abs(estimate))
        if resampled[-1] - resampled[0] <= margin:  # nothing varies
            return Interval(estimate, estimate, estimate)
        below = np.mean(resampled < estimate - margin) / 2 + np.mean(resampled <= estimate + margin) / 2
        bias = _NORMAL.inv_cdf(float(np.clip(below, 1 / len(resampled), 1 - 1 / len(resampled))))
        reach, acceleration = self._reach(value(self._without_one))

        def bound(offset: float) -> float:
            z = bias + offset
            shifted = _NORMAL.cdf(bias + z / max(1 - acceleration * z, 1e-3))
            return float(np.quantile(resampled, shifted))

        return Interval(estimate, bound(-reach), bound(reach))

    def _reach(self, jackknife: np.ndarray) -> tuple[float, float]:
        """Student's quantile and the acceleration, from the estimates without one group each."""
        deviation = jackknife[np.isfinite(jackknife)]
        deviation = deviation.mean() - deviation if len(deviation) else np.zeros(1)
        deviation /= np.abs(deviation).max() or 1.0  # what follows does not depend on the unit
        squares = float((deviation**2).sum())
        acceleration = float((deviation**3).sum()) / (6 * squares**1.5) if squares else 0.0
        # The spread is itself estimated, badly where a few groups make most of it.
        kurtosis = len(deviation) * float((deviation**4).sum()) / squares**2 if squares else 3.0
        reach = float(stdtrit(2 * len(deviation) / max(kurtosis - 1, 1e-9), (1 + self._confidence) / 2))
        return reach * float(np.sqrt(len(deviation) / max(len(deviation) - 1, 1))), acceleration


def cressie_read(
    counts: np.ndarray, controls: np.ndarray, totals: np.ndarray, unseen: np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval of the mean total per decision, of groups whose controls have mean 0.

    With the unseen decision f among the n, the mean is corrected by its regression on the control, and

        half-width^2 = residual variance / (n + 1)^2 * (F + min_f' T(f') - T(f))

    where T(f) tests that the controls' mean is 0 and F is the quantile of F(1, G). The bounds are the widest over f.

    Args:
      counts, controls, totals: [G], the sums of each group over its decisions; at least one decision per group.
      unseen: [F, 2], the control and the total of each decision that may not have been seen. With one of them, at least,
        the controls must be able to have mean 0.
      confidence: of the interval, in (0, 1).
    """
    decisions = float(counts.sum())
    quantile = float(stdtrit(len(counts), (1 + confidence) / 2)) ** 2
    centre = float(totals.sum()) / decisions
    scale = (
        float(np.abs(np.concatenate([totals, unseen[:, 1]])).max()) or 1.0
    )  # what follows does not depend on the unit
    candidates = []
    for control, total in unseen:
        n = np.append(counts, 1.0)
        a = np.append(controls, control)
        x = (np.append(totals, total) - centre * n) / scale
        mean_a, mean_x = a.sum() / (decisions + 1), x.sum() / (decisions + 1)
        deviation_a, deviation_x = a - mean_a * n, x - mean_x * n
        squares, slope, tested = float(deviation_a @ deviation_a), 0.0, 0.0
        if squares > 1e-12 * decisions:
            slope, tested = float(deviation_x @ deviation_a) / squares, float(a.sum()) ** 2 / squares
        elif abs(a.sum()) > 1e-6 * decisions:
            continue  # no weighting of these decisions has controls of mean 0
        residual = deviation_x - slope * deviation_a
        candidates.append((mean_x - slope * mean_a, residual @ residual / (decisions + 1) ** 2, tested))
    least = min(tested for _, _, tested in candidates)
    possible = [
        (mean, float(np.sqrt(variance * (quantile + least - tested))))
        for mean, variance, tested in candidates
        if quantile + least >= tested
    ]
    low, high = min(mean - half for mean, half in possible), max(mean + half for mean, half in possible)
    return float(centre + scale * low), float(centre + scale * high)


@lru_cache(maxsize=4)
def _drawn(seed: int, groups: int) -> np.ndarray:
    """[resamples, G]: how often each group is in a resample (Poisson weights); kept, being the same for each table."""
    drawn = np.random.default_rng([seed, 1]).poisson(1.0, (RESAMPLES, groups)).astype(np.float64)
    return drawn[drawn.any(axis=1)]
