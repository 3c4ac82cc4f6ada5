"""The reward that a policy would have earned on decisions of another policy, with an interval that knows its limits.

With w = target probability of the logged action / its propensity, and where there is a reward model, q_logged its value
of the logged action and q_target the target policy's expected value, the estimates of the reward per decision are

    ips        mean(w r)                                          Horvitz and Thompson 1952
    snips      sum(w r) / sum(w)                                  Swaminathan and Joachims 2015
    dm         mean(q_target)                                     the reward model alone
    dr         mean(q_target + w (r - q_logged))                  Dudík, Langford and Li 2011
    switch_dr  as dr, the correction only where w <= t            Wang, Agarwal and Dudík 2017
    dros       as dr, with lambda w / (w^2 + lambda) for w        Su, Dimakopoulou, Krishnamurthy and Dudík 2020

The threshold t scales with the log: `support.support` finds it from the policies' probabilities, and without them it is
infinite. Lambda is tuned by the estimated error (see `shrinkage`).

Each is a function of sums over the decisions, so decisions are accumulated as `Sums`: per group of decisions, merged by
adding them up. Who wants one answer takes `Estimates.recommended`: switch_dr with a reward model, snips without. Every
interval says whether it is `reliable`, and the `reason` when it is not; `intervals` says how it is made. `dm` is never
reliable: its interval shows the spread of the model's values, not the model's error.
"""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Self

import numpy as np

from contracts.errors import InputError
from trainer import intervals, reliability
from trainer.arrays import checked, numbers
from trainer.estimators import COLUMNS, N, Name, Q, W, difference, estimator
from trainer.intervals import Interval, Question
from trainer.reliability import Evidence, Weights
from trainer.shrinkage import Shrunk
from trainer.spread import RESIDUAL_DEVIATIONS, REWARD_DEVIATIONS, Spread, residual_extremes, reward_extremes
from trainer.support import Support

GROUPS = 1_000


@dataclass(frozen=True)
class Estimates:
    """One target policy's estimates. Those that need a reward model are None without one."""

    decisions: int
    ips: Interval
    snips: Interval
    dm: Interval | None
    dr: Interval | None
    switch_dr: Interval | None
    dros: Interval | None
    weights: Weights

    @property
    def recommended(self) -> Interval:
        """The interval to act on: switch_dr's, or snips's without a reward model."""
        return self.snips if self.switch_dr is None else self.switch_dr

    @property
    def effective_sample_size(self) -> float:
        """sum(w)^2 / sum(w^2)."""
        return self.weights.effective_sample_size


@dataclass(frozen=True)
class Gain:
    """The candidate's reward per decision minus the champion's; `estimator` is "snips" where there is no model."""

    decisions: int
    estimator: Literal["switch_dr", "snips"]
    gain: Interval
    candidate: Weights
    champion: Weights


class Model(NamedTuple):
    """A reward model's values for `gain`, [N] each: of the logged action, and what each policy expects."""

    logged: np.ndarray
    candidate: np.ndarray
    champion: np.ndarray


@dataclass
class Sums:
    """The mergeable accumulator of one target policy: sums over the decisions of each of G groups.

    `table` [G, 7] has the number of decisions, and the sums of w, w r, q_target, w (r - q_logged), and of w and the
    last one where w <= the threshold.
    """

    table: np.ndarray
    support: Support | None = None
    squared_weight: float = 0.0
    zero_weights: int = 0
    largest_weight: float = 0.0
    smallest_propensity: float = 1.0
    rewards: Spread = field(default_factory=Spread)
    residuals: Spread = field(default_factory=Spread)
    shrunk: Shrunk = field(default_factory=Shrunk)

    @classmethod
    def zeros(cls, groups: int = GROUPS, support: Support | None = None) -> Self:
        """No decisions yet; `support`: of all decisions that will be added."""
        return cls(np.zeros((groups, COLUMNS)), support)

    def add(
        self,
        group: np.ndarray,
        rewards: np.ndarray,
        propensities: np.ndarray,
        target_probabilities: np.ndarray,
        q_logged: np.ndarray | None = None,
        q_target: np.ndarray | None = None,
        relied_on: np.ndarray | None = None,
    ) -> None:
        """Adds decisions, `[N]` each; `group` in [0, G) must not depend on what was decided or earned.

        `relied_on`: which weights switch_dr takes; without it, those up to the threshold.
        """
        weight = target_probabilities / propensities
        nothing = np.zeros_like(weight)
        residual = rewards - q_logged if q_logged is not None else nothing
        expected = q_target if q_target is not None else nothing
        # A float32 weight may exceed the largest one in the last digit.
        kept = weight <= self.threshold * (1 + 1e-6) if relied_on is None else relied_on
        columns = [
            np.ones_like(weight),
            weight,
            weight * rewards,
            expected,
            weight * residual,
            np.where(kept, weight, 0.0),
            np.where(kept, weight * residual, 0.0),
        ]
        for index, values in enumerate(columns):
            self.table[:, index] += np.bincount(group, values, minlength=len(self.table))
        self.squared_weight += float(weight @ weight)
        self.zero_weights += int(np.count_nonzero(weight == 0))
        self.largest_weight = max(self.largest_weight, float(weight.max(initial=0.0)))
        self.smallest_propensity = min(self.smallest_propensity, float(propensities.min(initial=1.0)))
        self.rewards.add(rewards, propensities)
        if q_logged is not None:
            self.residuals.add(residual, propensities)
            self.shrunk.add(weight, residual, expected)

    def merge(self, other: "Sums") -> None:
        """Adds the sums of other decisions."""
        self.table += other.table
        self.squared_weight += other.squared_weight
        self.zero_weights += other.zero_weights
        self.largest_weight = max(self.largest_weight, other.largest_weight)
        self.smallest_propensity = min(self.smallest_propensity, other.smallest_propensity)
        self.rewards.merge(other.rewards)
        self.residuals.merge(other.residuals)
        self.shrunk.merge(other.shrunk)

    @property
    def threshold(self) -> float:
        """Larger weights are left to the reward model by switch_dr."""
        return self.support.largest_weight if self.support is not None else np.inf

    @property
    def decisions(self) -> int:
        """How many were added."""
        return int(self.table[:, N].sum())

    def weights(self) -> Weights:
        """The diagnostics."""
        decisions, total = self.table[:, :2].sum(axis=0).tolist()
        return Weights(
            effective_sample_size=total**2 / self.squared_weight if self.squared_weight else 0.0,
            largest_weight=self.largest_weight,
            mean_weight=total / decisions,
            zero_weight_share=self.zero_weights / decisions,
        )

    def possible_weight(self) -> float:
        """The largest weight that the log may not have shown: from `support`, or 1 / the smallest propensity."""
        return self.support.largest_weight if self.support is not None else 1 / self.smallest_propensity

    @property
    def untried(self) -> float:
        """The share of the target policy's choices with larger weights than that."""
        return self.support.untried if self.support is not None else 0.0

    def evidence(self, groups: int) -> Evidence:
        """What speaks for the estimates and against them; `groups`: how many hold decisions."""
        return Evidence(
            self.decisions,
            groups,
            self.weights(),
            self.squared_weight,
            self.possible_weight(),
            self.untried,
            self.rewards,
        )

    def unseen(self, with_model: bool, question: Question, possible: float) -> np.ndarray:
        """[F, 7]: the most extreme decisions that the log may have missed, as rows of the table: `possible` weight."""
        total = float(self.table[:, W].sum())
        mean_of_target = min(self.squared_weight / total, possible) if total else possible
        q_target = self.table[:, Q].sum() / self.decisions
        rewards = reward_extremes(self.rewards, question.reward_range)
        residuals = residual_extremes(self.residuals, self.rewards, question.reward_range) if with_model else rewards
        rows = [[1.0, 0.0, 0.0, q_target, 0.0, 0.0, 0.0]]
        for weight, typical in ((mean_of_target, False), (possible, True)):
            for side in (0, 1):
                reward, residual = (
                    found.typical[side] if typical else found.seen[side] for found in (rewards, residuals)
                )
                rows.append([1.0, weight, weight * reward, q_target, weight * residual, weight, weight * residual])
        return np.array(rows)

    def reach(self, with_model: bool) -> float:
        """How far the mean of what the log has not tried may lie from what is assumed of it."""
        if with_model:
            return RESIDUAL_DEVIATIONS * self.residuals.deviation(0.0)
        return REWARD_DEVIATIONS * self.rewards.deviation()

    def estimates(self, with_model: bool, question: Question | None = None) -> Estimates:
        """The estimates and their intervals; `with_model`: whether reward-model values were added."""
        question = question or Question()
        resampled = intervals.Intervals(self.table, self.unseen(with_model, question, self.possible_weight()), question)
        why = reliability.doubt(self.evidence(resampled.groups), question)

        def interval(name: Name) -> Interval:
            found = resampled.interval(estimator(name, self.untried))
            reach = self.reach(name in ("dr", "switch_dr"))
            return found.widened(self.untried * reach).doubted(why)

        ips, snips = interval("ips"), interval("snips")
        if not with_model:
            return Estimates(self.decisions, ips, snips, None, None, None, None, self.weights())
        switch_dr = interval("switch_dr")
        dm = resampled.interval(estimator("dm", 0.0)).doubted(
            "the interval does not show the error of the reward model"
        )
        # Shrinking makes a better point; its bias is only known through the whole weights, and so is the interval.
        value = self.shrunk.value()
        dros = replace(switch_dr, value=value, low=min(switch_dr.low, value), high=max(switch_dr.high, value))
        return Estimates(self.decisions, ips, snips, dm, interval("dr"), switch_dr, dros, self.weights())


def estimate(
    rewards: np.ndarray,
    propensities: np.ndarray,
    target_probabilities: np.ndarray,
    *,
    q_logged: np.ndarray | None = None,
    q_target: np.ndarray | None = None,
    support: Support | None = None,
    clusters: np.ndarray | None = None,
    question: Question | None = None,
) -> Estimates:
    """A target policy's reward per decision, estimated from logged decisions.

    Args:
      rewards: [N], finite.
      propensities: [N] in (0, 1], the logging policy's probability of the action it took.
      target_probabilities: [N] in [0, 1], the target policy's probability of that same action.
      q_logged: [N], the reward model's value of the logged action.
      q_target: [N], the target policy's expected value under the reward model.
      support: what the policies' whole probabilities say about large weights (`support.support`); without it, weights up
        to 1 / the smallest propensity are taken to be possible.
      clusters: [N], decisions with the same value depend on each other, such as those of one viewer; without it, all
        are independent.
      question: the confidence, the seed and the range of rewards.

    Raises:
      InputError: an array of another shape or not of numbers, a value out of range or NaN, one of the q without the
        other.
    """
    if (q_logged is None) != (q_target is None):
        raise InputError("q_logged and q_target must be given together")
    question = question or Question()
    columns = _columns(rewards, propensities, target_probabilities, q_logged, q_target)
    return _sums(columns, support, clusters, question.seed).estimates(q_logged is not None, question)


def gain(
    rewards: np.ndarray,
    propensities: np.ndarray,
    candidate_probabilities: np.ndarray,
    champion_probabilities: np.ndarray,
    *,
    model: Model | None = None,
    support: Support | None = None,
    clusters: np.ndarray | None = None,
    question: Question | None = None,
) -> Gain:
    """The candidate's reward per decision minus the champion's, on the same logged decisions.

    Paired: where the two policies agree, a decision adds nothing to the difference or to its uncertainty.

    Args:
      rewards: [N], finite.
      propensities: [N] in (0, 1].
      candidate_probabilities: [N] in [0, 1], of the logged action.
      champion_probabilities: [N] in [0, 1], of the logged action.
      model: a reward model's values; with it the estimator is switch_dr, without it self-normalised.
      support: of their difference (`support.difference_support`); where it is larger, switch_dr leaves both to the model.
      clusters, question: as in `estimate`.

    Raises:
      InputError: as `estimate`.
    """
    question = question or Question()
    if model is not None and any(values is None for values in model):
        raise InputError("model: logged, candidate and champion must be given together")
    logged, of_candidate, of_champion = model or (None, None, None)
    candidate = _columns(rewards, propensities, candidate_probabilities, logged, of_candidate)
    champion = _columns(rewards, propensities, champion_probabilities, logged, of_champion)
    relied_on = None
    if support is not None:
        moved = np.abs(np.subtract(candidate_probabilities, champion_probabilities))
        relied_on = moved <= support.largest_weight * np.asarray(propensities) * (1 + 1e-6)
    sums = [_sums([*columns, relied_on], None, clusters, question.seed) for columns in (candidate, champion)]
    return gain_of(*sums, with_model=model is not None, support=support, question=question)


def gain_of(
    candidate: Sums,
    champion: Sums,
    *,
    with_model: bool,
    support: Support | None = None,
    question: Question | None = None,
) -> Gain:
    """`gain`, from the sums of the two policies over the same decisions in the same groups."""
    question = question or Question()
    name: Literal["switch_dr", "snips"] = "switch_dr" if with_model else "snips"
    untried = support.untried if support is not None else 0.0
    possible = support.largest_weight if support is not None else candidate.possible_weight()
    mine, theirs = (sums.unseen(with_model, question, possible) for sums in (candidate, champion))
    # What was missed is a decision of the candidate's alone, or of the champion's alone; the first row has no weight.
    unseen = np.concatenate(
        [
            np.concatenate([mine, np.broadcast_to(theirs[0], mine.shape)], axis=1),
            np.concatenate([np.broadcast_to(mine[0], theirs.shape), theirs], axis=1),
        ]
    )
    resampled = intervals.Intervals(np.concatenate([candidate.table, champion.table], axis=1), unseen, question)
    found = resampled.interval(difference(name, controlled=untried == 0)).widened(untried * candidate.reach(with_model))
    doubts = [
        f"the {role}'s log: {why}"
        for role, sums in (("candidate", candidate), ("champion", champion))
        if (why := reliability.doubt(sums.evidence(resampled.groups), question)) is not None
    ]
    judged = found.doubted(doubts[0] if doubts else None)
    return Gain(candidate.decisions, name, judged, candidate.weights(), champion.weights())


def _columns(
    rewards: np.ndarray,
    propensities: np.ndarray,
    target_probabilities: np.ndarray,
    q_logged: np.ndarray | None,
    q_target: np.ndarray | None,
) -> list[np.ndarray | None]:
    """The arguments of `Sums.add`, checked."""
    shape = numbers("rewards", rewards).shape
    if len(shape) != 1 or not shape[0]:
        raise InputError(f"rewards must be [N] with N > 0, got shape {list(shape)}")
    size = shape[0]
    return [
        checked("rewards", rewards, size),
        checked("propensities", propensities, size, "be in (0, 1]", lambda array: (array > 0) & (array <= 1)),
        # A sum of float32 probabilities may exceed 1 in the last digit.
        checked(
            "target_probabilities",
            target_probabilities,
            size,
            "be in [0, 1]",
            lambda array: (array >= 0) & (array <= 1 + 1e-6),
        ),
        None if q_logged is None else checked("q_logged", q_logged, size),
        None if q_target is None else checked("q_target", q_target, size),
    ]


def _sums(columns: list, support: Support | None, clusters: np.ndarray | None, seed: int) -> Sums:
    """Sums up: by cluster, or in groups of one size that are drawn so that neighbours are apart."""
    decisions = len(columns[0])
    if clusters is None:
        groups = min(GROUPS, decisions)
        group = np.random.default_rng([seed, 0]).permutation(decisions) % groups
    elif np.shape(clusters) != (decisions,):
        raise InputError(f"clusters must have the shape of rewards, {[decisions]}, got {list(np.shape(clusters))}")
    else:
        group = np.unique(clusters, return_inverse=True)[1].astype(np.int64)
        groups = min(GROUPS, int(group.max()) + 1)
        group = np.random.default_rng([seed, 0]).permutation(int(group.max()) + 1)[group] % groups
    sums = Sums.zeros(groups, support)
    with np.errstate(over="ignore", invalid="ignore"):
        sums.add(group, *columns)
    if not (np.isfinite(sums.table).all() and np.isfinite(sums.squared_weight)):
        raise InputError(
            f"the sums of weights and rewards must be finite: the largest weight is {sums.largest_weight:g}"
        )
    return sums
