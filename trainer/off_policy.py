"""The reward that a policy would have earned on decisions of another policy, with an interval.

With w = target probability of the logged action / its propensity, and where there is a reward model, q_logged its value
of the logged action and q_target the target policy's expected value, the estimates of the reward per decision are

    ips        mean(w r)                                          Horvitz and Thompson 1952
    snips      sum(w r) / sum(w)                                  Swaminathan and Joachims 2015
    dm         mean(q_target)                                     the reward model alone
    dr         mean(q_target + w (r - q_logged))                  Dudík, Langford and Li 2011
    switch_dr  as dr, the correction only where w <= threshold    Wang, Agarwal and Dudík 2017

Each is a function of sums over the decisions, so decisions are accumulated as `Sums`: per group of decisions, merged by
adding them up. The interval is the bootstrap's over the groups (Poisson weights, bias-corrected and accelerated: Efron
1987), which follows the skew that large weights bring, with Student's quantiles in place of normal ones, which are wider
where few decisions make most of the spread. No interval shows weights that were never drawn: look at
`effective_sample_size`, `largest_weight` and `mean_weight` (near 1 where the logging policy could take what the target
takes) before believing one. Where a single decision counts, nothing varies, and the interval has no width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple, Self

import numpy as np
from scipy.special import stdtrit

from contracts.errors import InputError

GROUPS = 1_000
RESAMPLES = 1_000
SWITCH_THRESHOLD = 10.0

_NORMAL = NormalDist()


class Interval(NamedTuple):
    """An estimated reward per decision (or a difference of two) and its confidence interval."""

    value: float
    low: float
    high: float


class Weights(NamedTuple):
    """How much the logged decisions say about the target policy."""

    effective_sample_size: float  # sum(w)^2 / sum(w^2)
    largest_weight: float
    mean_weight: float
    zero_weight_share: float


@dataclass(frozen=True)
class Estimates:
    """One target policy's estimates. Those that need a reward model are None without one."""

    decisions: int
    ips: Interval
    snips: Interval
    dm: Interval | None
    dr: Interval | None
    switch_dr: Interval | None
    effective_sample_size: float
    largest_weight: float
    mean_weight: float
    zero_weight_share: float

    @property
    def weights(self) -> Weights:
        """The four diagnostics of the weights."""
        return Weights(self.effective_sample_size, self.largest_weight, self.mean_weight, self.zero_weight_share)


@dataclass(frozen=True)
class Gain:
    """The candidate's reward per decision minus the champion's; `estimator`: "switch_dr", or "snips" without a model."""

    decisions: int
    estimator: str
    gain: Interval
    candidate: Weights
    champion: Weights


@dataclass
class Sums:
    """The mergeable accumulator of one target policy: sums over the decisions of each of G groups.

    `table` [G, 6] has the number of decisions, and the sums of w, w r, q_target, w (r - q_logged), and of the last one
    where w <= threshold.
    """

    table: np.ndarray
    squared_weight: float = 0.0
    zero_weights: int = 0
    largest_weight: float = 0.0

    @classmethod
    def zeros(cls, groups: int = GROUPS) -> Self:
        """No decisions yet."""
        return cls(np.zeros((groups, 6)))

    def add(
        self,
        group: np.ndarray,
        rewards: np.ndarray,
        propensities: np.ndarray,
        target_probabilities: np.ndarray,
        q_logged: np.ndarray | None = None,
        q_target: np.ndarray | None = None,
        switch_threshold: float = SWITCH_THRESHOLD,
    ) -> None:
        """Adds decisions, `[N]` each; `group` in [0, G) must not depend on what was decided or earned."""
        weight = target_probabilities / propensities
        nothing = np.zeros_like(weight)
        correction = weight * (rewards - q_logged) if q_logged is not None else nothing
        columns = [
            np.ones_like(weight),
            weight,
            weight * rewards,
            q_target if q_target is not None else nothing,
            correction,
            np.where(weight <= switch_threshold, correction, 0.0),
        ]
        for index, values in enumerate(columns):
            self.table[:, index] += np.bincount(group, values, minlength=len(self.table))
        self.squared_weight += float(weight @ weight)
        self.zero_weights += int(np.count_nonzero(weight == 0))
        self.largest_weight = max(self.largest_weight, float(weight.max(initial=0.0)))

    def merge(self, other: "Sums") -> None:
        """Adds the sums of other decisions."""
        self.table += other.table
        self.squared_weight += other.squared_weight
        self.zero_weights += other.zero_weights
        self.largest_weight = max(self.largest_weight, other.largest_weight)

    @property
    def decisions(self) -> int:
        """How many were added."""
        return int(self.table[:, 0].sum())

    def weights(self) -> Weights:
        """The diagnostics."""
        decisions, total = self.table[:, :2].sum(axis=0).tolist()
        return Weights(
            effective_sample_size=total**2 / self.squared_weight if self.squared_weight else 0.0,
            largest_weight=self.largest_weight,
            mean_weight=total / decisions,
            zero_weight_share=self.zero_weights / decisions,
        )

    def estimates(self, with_model: bool, confidence: float = 0.95, seed: int = 0) -> Estimates:
        """The estimates and their intervals; `with_model`: whether reward-model values were added."""
        interval = _Bootstrap(self.table, confidence, seed).interval
        return Estimates(
            self.decisions,
            interval(_ips),
            interval(_snips),
            interval(_dm) if with_model else None,
            interval(_dr) if with_model else None,
            interval(_switch_dr) if with_model else None,
            *self.weights(),
        )


def estimate(
    rewards: np.ndarray,
    propensities: np.ndarray,
    target_probabilities: np.ndarray,
    *,
    q_logged: np.ndarray | None = None,
    q_target: np.ndarray | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    switch_threshold: float = SWITCH_THRESHOLD,
) -> Estimates:
    """A target policy's reward per decision, estimated from logged decisions.

    Args:
      rewards: [N], finite.
      propensities: [N] in (0, 1], the logging policy's probability of the action it took.
      target_probabilities: [N] in [0, 1], the target policy's probability of that same action.
      q_logged: [N], the reward model's value of the logged action.
      q_target: [N], the target policy's expected value under the reward model.
      confidence: of the intervals, in (0, 1).
      seed: of the bootstrap.
      switch_threshold: weights above it are left to the reward model by `switch_dr`.

    Raises:
      InputError: an array of another shape or not of numbers, a value out of range or NaN, one of the q without the
        other.
    """
    if (q_logged is None) != (q_target is None):
        raise InputError("q_logged and q_target must be given together")
    sums = _sums(rewards, propensities, target_probabilities, q_logged, q_target, seed, switch_threshold)
    return sums.estimates(q_logged is not None, confidence, seed)


def gain(
    rewards: np.ndarray,
    propensities: np.ndarray,
    candidate_probabilities: np.ndarray,
    champion_probabilities: np.ndarray,
    *,
    q_logged: np.ndarray | None = None,
    q_candidate: np.ndarray | None = None,
    q_champion: np.ndarray | None = None,
    seed: int = 0,
) -> Gain:
    """The candidate's reward per decision minus the champion's, on the same logged decisions, with its 95% interval.

    Paired: where the two policies agree, a decision adds nothing to the difference or to its uncertainty. With a reward
    model the estimator is switch_dr: one explored decision in thousands, at a propensity of 1 in thousands, would
    otherwise outweigh all others.

    Args:
      rewards: [N], finite.
      propensities: [N] in (0, 1].
      candidate_probabilities: [N] in [0, 1], of the logged action.
      champion_probabilities: [N] in [0, 1], of the logged action.
      q_logged: [N], a reward model's value of the logged action; with it (and the next two) the estimator is switch_dr,
        without it self-normalised.
      q_candidate: [N], the candidate's expected value under that model.
      q_champion: [N], the champion's.
      seed: of the bootstrap.

    Raises:
      InputError: as `estimate`.
    """
    modelled = [array is not None for array in (q_logged, q_candidate, q_champion)]
    if any(modelled) != all(modelled):
        raise InputError("q_logged, q_candidate and q_champion must be given together")
    return gain_of(
        _sums(rewards, propensities, candidate_probabilities, q_logged, q_candidate, seed),
        _sums(rewards, propensities, champion_probabilities, q_logged, q_champion, seed),
        with_model=all(modelled),
        seed=seed,
    )


def gain_of(candidate: Sums, champion: Sums, *, with_model: bool, confidence: float = 0.95, seed: int = 0) -> Gain:
    """`gain`, from the sums of the two policies over the same decisions in the same groups."""
    value = _switch_dr if with_model else _snips
    columns = candidate.table.shape[1]

    def difference(sums: np.ndarray) -> np.ndarray:
        return value(sums[..., :columns]) - value(sums[..., columns:])

    both = np.concatenate([candidate.table, champion.table], axis=1)
    return Gain(
        candidate.decisions,
        "switch_dr" if with_model else "snips",
        _Bootstrap(both, confidence, seed).interval(difference),
        candidate.weights(),
        champion.weights(),
    )


# The estimators: functions of the sums (last axis, in the order of `Sums`), so that they apply to resamples as well.


def _ips(sums: np.ndarray) -> np.ndarray:
    return sums[..., 2] / sums[..., 0]


def _snips(sums: np.ndarray) -> np.ndarray:
    # A resample may hold no decision that the target policy would take: it says nothing, NaN is left out.
    return np.divide(sums[..., 2], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] > 0)


def _dm(sums: np.ndarray) -> np.ndarray:
    return sums[..., 3] / sums[..., 0]


def _dr(sums: np.ndarray) -> np.ndarray:
    return (sums[..., 3] + sums[..., 4]) / sums[..., 0]


def _switch_dr(sums: np.ndarray) -> np.ndarray:
    return (sums[..., 3] + sums[..., 5]) / sums[..., 0]


class _Bootstrap:
    """Resamples the groups once, for every estimator."""

    def __init__(self, table: np.ndarray, confidence: float, seed: int) -> None:
        if not 0 < confidence < 1:
            raise InputError(f"confidence must be in (0, 1), got {confidence}")
        filled = table[table[:, 0] > 0]
        drawn = np.random.default_rng([seed, 1]).poisson(1.0, (RESAMPLES, len(filled))).astype(np.float64)
        drawn = drawn[drawn.any(axis=1)]
        self._total = filled.sum(axis=0)
        self._resampled = drawn @ filled
        self._without_one = self._total - filled if len(filled) > 1 else filled
        self._tail = (1 - confidence) / 2

    def interval(self, value: Callable[[np.ndarray], np.ndarray]) -> Interval:
        """The bias-corrected and accelerated interval (Efron 1987) of an estimator."""
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
        jackknife = value(self._without_one)
        deviation = jackknife[np.isfinite(jackknife)]
        deviation = deviation.mean() - deviation if len(deviation) else np.zeros(1)
        deviation /= np.abs(deviation).max() or 1.0  # what follows does not depend on the unit
        squares = float((deviation**2).sum())
        acceleration = float((deviation**3).sum()) / (6 * squares**1.5) if squares else 0.0
        # How far the estimate may lie off is itself estimated, badly where a few weights make most of it. As in the
        # bootstrap's expanded interval (Hesterberg 2015), Student's quantile takes that in, with the degrees of freedom
        # that the kurtosis of the deviations leaves (Satterthwaite 1946).
        kurtosis = len(deviation) * float((deviation**4).sum()) / squares**2 if squares else 3.0
        reach = float(stdtrit(2 * len(deviation) / max(kurtosis - 1, 1e-9), 1 - self._tail))
        reach *= np.sqrt(len(deviation) / max(len(deviation) - 1, 1))

        def bound(offset: float) -> float:
            z = bias + offset
            shifted = _NORMAL.cdf(bias + z / max(1 - acceleration * z, 1e-3))
            return float(np.quantile(resampled, shifted))

        return Interval(estimate, bound(-reach), bound(reach))


def _sums(
    rewards: np.ndarray,
    propensities: np.ndarray,
    target_probabilities: np.ndarray,
    q_logged: np.ndarray | None,
    q_target: np.ndarray | None,
    seed: int,
    switch_threshold: float = SWITCH_THRESHOLD,
) -> Sums:
    """Checks what was given and sums it up, in groups of one size that are drawn so that neighbours are apart."""
    shape = _numbers("rewards", rewards).shape
    if len(shape) != 1 or not shape[0]:
        raise InputError(f"rewards must be [N] with N > 0, got shape {list(shape)}")
    if not switch_threshold >= 0:
        raise InputError(f"switch_threshold must be at least 0, got {switch_threshold}")
    decisions = shape[0]
    sums = Sums.zeros(min(GROUPS, decisions))
    with np.errstate(over="ignore", invalid="ignore"):
        sums.add(
            np.random.default_rng([seed, 0]).permutation(decisions) % len(sums.table),
            _checked("rewards", rewards, decisions),
            _checked("propensities", propensities, decisions, "be in (0, 1]", lambda array: (array > 0) & (array <= 1)),
            # A sum of float32 probabilities may exceed 1 in the last digit.
            _checked(
                "target_probabilities",
                target_probabilities,
                decisions,
                "be in [0, 1]",
                lambda array: (array >= 0) & (array <= 1 + 1e-6),
            ),
            None if q_logged is None else _checked("q_logged", q_logged, decisions),
            None if q_target is None else _checked("q_target", q_target, decisions),
            switch_threshold,
        )
    if not (np.isfinite(sums.table).all() and np.isfinite(sums.squared_weight)):
        raise InputError(
            f"the sums of weights and rewards must be finite: the largest weight is {sums.largest_weight:g}"
        )
    return sums


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers: {error}") from None


def _checked(
    name: str,
    values: np.ndarray,
    decisions: int,
    fact: str = "be finite",
    holds: Callable[[np.ndarray], np.ndarray] = np.isfinite,
) -> np.ndarray:
    array = _numbers(name, values)
    if array.shape != (decisions,):
        raise InputError(f"{name} must have the shape of rewards, {[decisions]}, got {list(array.shape)}")
    wrong = ~holds(array)
    if wrong.any():
        at = int(wrong.argmax())
        raise InputError(f"{name} must {fact}, got {array[at]} at {at}")
    return array
