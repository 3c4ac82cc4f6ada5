"""What a policy would have earned with slates: several places, filled one after the other, each with a reward.

With w_p = target probability / propensity of the item at place p, given the places before it, the value of a slate (the sum
of its rewards) is estimated from S slates of P places by

    sips            mean_s(w_1 … w_P sum_p r_p)                          any click may depend on all places
    rips            mean_s(sum_p w_1 … w_p r_p)                          on the places before it: McInerney et al. 2020
    cascade_dr      mean_s(sum_p w_1 … w_p (r_p - q_p) + w_1 … w_(p-1) v_p)         likewise: Kiyohara et al. 2022
    iips            mean_s(sum_p m_p r_p)                                on its own place alone: Li et al. 2018
    pseudo_inverse  mean_s((1 - P + sum_p m_p) sum_p r_p)                the slate's is a sum: Swaminathan et al. 2017

where m_p is the ratio of the *marginal* probabilities of the item at place p; it is w_p where places are filled
independently (a product policy; example 4 of Swaminathan et al.). Equal to Open Bandit Pipeline 0.5.7 on the same arrays,
pseudo_inverse to VowpalWabbit/estimators 0.2.2.

A slate counts as one decision, so that intervals hold however its places depend on each other.
"""

from dataclasses import dataclass, field
from typing import Literal, Self, get_args

import numpy as np

from contracts.errors import InputError
from trainer.intervals import MIN_GROUPS, Estimator, Interval, Intervals, Question

Name = Literal["sips", "rips", "cascade_dr", "iips", "pseudo_inverse"]
NAMES: tuple[Name, ...] = get_args(Name)
GROUPS = 1_000


@dataclass(frozen=True)
class SlateEstimates:
    """The value of a slate. `cascade_dr` is None without a reward model.

    Which one to act on depends on what a viewer sees: `rips` (or `cascade_dr`) where a place may depend on those above.
    """

    slates: int
    sips: Interval
    rips: Interval
    cascade_dr: Interval | None
    iips: Interval
    pseudo_inverse: Interval


@dataclass
class SlateSums:
    """The mergeable accumulator: `tables` has for each estimator [G, 3], the slates, the sum of weight - 1, of values."""

    tables: dict[Name, np.ndarray]
    largest_weights: dict[Name, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 1.0))
    smallest_propensity: float = 1.0
    lowest: float = np.inf
    highest: float = -np.inf

    @classmethod
    def zeros(cls, groups: int = GROUPS) -> Self:
        """No slates yet."""
        return cls({name: np.zeros((groups, 3)) for name in NAMES})

    def add(
        self,
        group: np.ndarray,
        rewards: np.ndarray,
        propensities: np.ndarray,
        target_probabilities: np.ndarray,
        marginals: tuple[np.ndarray, np.ndarray] | None = None,
        model: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Adds slates.

        Args:
          group: [S] int in [0, G), which must not depend on what was decided or earned.
          rewards: [S, P].
          propensities: [S, P] in (0, 1], of the item at each place, given the places before it.
          target_probabilities: [S, P] in [0, 1], likewise.
          marginals: [S, P] each, the logging and the target policy's marginal probability of that item at that place;
            without it, places are taken to be filled independently.
          model: [S, P] each, a reward model's value of the item (with what may follow), and the target policy's expected
            value at that place given the places before.
        """
        weight = target_probabilities / propensities
        marginal = marginals[1] / marginals[0] if marginals is not None else weight
        so_far = weight.cumprod(axis=1)
        total = rewards.sum(axis=1)
        pseudo = 1 - rewards.shape[1] + marginal.sum(axis=1)
        before = np.concatenate([np.ones((len(weight), 1)), so_far[:, :-1]], axis=1)
        logged, expected = model if model is not None else (np.zeros_like(rewards), np.zeros_like(rewards))
        values: dict[Name, tuple[np.ndarray, np.ndarray]] = {
            "sips": (so_far[:, -1], so_far[:, -1] * total),
            "rips": (so_far.mean(axis=1), (so_far * rewards).sum(axis=1)),
            "cascade_dr": (so_far.mean(axis=1), (so_far * (rewards - logged) + before * expected).sum(axis=1)),
            "iips": (marginal.mean(axis=1), (marginal * rewards).sum(axis=1)),
            "pseudo_inverse": (pseudo, pseudo * total),
        }
        for name, (weights, found) in values.items():
            for column, numbers in enumerate((np.ones(len(total)), weights - 1, found)):
                self.tables[name][:, column] += np.bincount(group, numbers, minlength=len(self.tables[name]))
            self.largest_weights[name] = max(self.largest_weights[name], float(np.abs(weights).max(initial=1.0)))
        self.smallest_propensity = min(self.smallest_propensity, float(propensities.min(initial=1.0)))
        self.lowest = min(self.lowest, float(total.min(initial=np.inf)))
        self.highest = max(self.highest, float(total.max(initial=-np.inf)))

    def merge(self, other: "SlateSums") -> None:
        """Adds the sums of other slates."""
        for name in NAMES:
            self.tables[name] += other.tables[name]
            self.largest_weights[name] = max(self.largest_weights[name], other.largest_weights[name])
        self.smallest_propensity = min(self.smallest_propensity, other.smallest_propensity)
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)

    def estimates(self, with_model: bool = False, question: Question | None = None) -> SlateEstimates:
        """The estimates and their intervals; `with_model`: whether reward-model values were added."""
        question = question or Question()
        found = {name: self._interval(name, question) for name in NAMES if with_model or name != "cascade_dr"}
        return SlateEstimates(
            int(self.tables["sips"][:, 0].sum()),
            found["sips"],
            found["rips"],
            found.get("cascade_dr"),
            found["iips"],
            found["pseudo_inverse"],
        )

    def _interval(self, name: Name, question: Question) -> Interval:
        table = self.tables[name]
        low, high = self.lowest, self.highest
        if question.reward_range is not None:
            low, high = min(low, question.reward_range[0]), max(high, question.reward_range[1])
        constant = low == high
        if constant:
            low, high = min(low, 0.0), max(high, 1.0)
        # One slate more with the largest weight so far or, where it is larger, one place of the smallest propensity.
        weight = max(self.largest_weights[name], 1 / self.smallest_propensity)
        unseen = np.array([[1.0, -1.0, 0.0], [1.0, weight - 1, weight * low], [1.0, weight - 1, weight * high]])
        intervals = Intervals(table, unseen, question)
        mean = Estimator(lambda sums: sums[..., 2] / sums[..., 0], lambda sums: sums[..., 1], lambda sums: sums[..., 2])
        found = intervals.interval(mean)
        reason = None
        if intervals.groups < MIN_GROUPS:
            reason = f"only {intervals.groups} independent slates, at least {MIN_GROUPS} are needed"
        elif constant and question.reward_range is None:
            reason = f"all slates earned {self.lowest:g}, and reward_range is not known"
        elif np.isclose(table[:, 1].sum(), -table[:, 0].sum()):
            reason = "the log never showed a slate that the policy would show"
        return Interval(found.value, found.low, found.high, found.method, reason is None, reason)


def estimate(
    rewards: np.ndarray,
    propensities: np.ndarray,
    target_probabilities: np.ndarray,
    *,
    marginals: tuple[np.ndarray, np.ndarray] | None = None,
    model: tuple[np.ndarray, np.ndarray] | None = None,
    question: Question | None = None,
) -> SlateEstimates:
    """The value of a slate under the target policy; `[S, P]` each, as `SlateSums.add`.

    Raises:
      InputError: arrays of different shapes, not finite, or probabilities out of range.
    """
    question = question or Question()
    arrays = [rewards, propensities, target_probabilities, *(marginals or ()), *(model or ())]
    shape = np.shape(rewards)
    if len(shape) != 2 or not shape[0] or not shape[1]:
        raise InputError(f"rewards must be [S, P] with S > 0 and P > 0, got shape {list(shape)}")
    for array in arrays:
        if np.shape(array) != shape:
            raise InputError(f"all arrays must have the shape of rewards, {list(shape)}, got {list(np.shape(array))}")
        if not np.isfinite(array).all():
            raise InputError("all arrays must be finite")
    for name, array, low in (("propensities", propensities, 0), ("target_probabilities", target_probabilities, -1)):
        if (array <= low).any() or (array > 1 + 1e-6).any() or (array < 0).any():
            raise InputError(f"{name} must be probabilities, got {array.min():g} to {array.max():g}")
    sums = SlateSums.zeros(min(GROUPS, shape[0]))
    group = np.random.default_rng([question.seed, 0]).permutation(shape[0]) % min(GROUPS, shape[0])
    sums.add(group, rewards, propensities, target_probabilities, marginals, model)
    return sums.estimates(model is not None, question)
