"""Why an estimate should not be believed, if there is a reason that the log itself shows."""

from typing import NamedTuple

import numpy as np

from trainer.intervals import MIN_GROUPS, Question
from trainer.spread import Spread

# Beyond this share of the target policy's choices the estimate is the reward model's, with little of the log in it.
MAX_UNTRIED = 0.75
# One reward that makes up more of the spread than this speaks of a tail that the log has not seen the end of.
MAX_SHARE_OF_ONE_REWARD = 0.3
# The mean weight is tested at 1 in 1,000, on either side.
_LOG_ODDS = float(np.log(2 / 0.001))


class Weights(NamedTuple):
    """How much the logged decisions say about the target policy."""

    effective_sample_size: float  # sum(w)^2 / sum(w^2)
    largest_weight: float
    mean_weight: float
    zero_weight_share: float


class Evidence(NamedTuple):
    """What speaks for an estimate and against it."""

    decisions: int
    groups: int  # of decisions that are independent of each other
    weights: Weights
    squared_weight: float  # sum(w^2)
    possible_weight: float  # that the log may not have shown
    untried: float
    rewards: Spread


def doubt(evidence: Evidence, question: Question) -> str | None:
    """The reason not to believe intervals from this evidence, or None."""
    weights, rewards = evidence.weights, evidence.rewards
    if evidence.groups < MIN_GROUPS:
        return f"only {evidence.groups} independent decisions (or viewers), at least {MIN_GROUPS} are needed"
    if weights.mean_weight == 0:
        return f"in {evidence.decisions} decisions the log never took an action that the policy would take"
    if rewards.low == rewards.high and question.reward_range is None:
        return f"all rewards are {rewards.low:g}, and reward_range is not known"
    if evidence.untried > MAX_UNTRIED:
        return f"{evidence.untried:.0%} of the policy's choices are hardly ever tried in this log"
    if (share := rewards.share_of_largest()) > MAX_SHARE_OF_ONE_REWARD and question.reward_range is None:
        return f"one reward makes up {share:.0%} of the spread of all"
    if abs(weights.mean_weight - 1) > evidence.untried + _possible_error(evidence):
        return (
            f"the mean weight is {weights.mean_weight:.2f} where 1 is expected: the propensities are not those of the"
            " log, or it could not take what the policy takes"
        )
    return None


def _possible_error(evidence: Evidence) -> float:
    """How far the mean weight may be from 1 by chance: Bernstein's inequality; w <= m has a variance of m - 1 at most."""
    decisions, weights = evidence.decisions, evidence.weights
    possible = max(evidence.possible_weight, weights.largest_weight, 1.0)
    by_support = np.sqrt(2 * (possible - 1) * _LOG_ODDS / decisions) + possible * _LOG_ODDS / (3 * decisions)
    spread = max(evidence.squared_weight / decisions - weights.mean_weight**2, 0.0)
    # Empirical Bernstein (Maurer and Pontil 2009), with the spread that was seen.
    by_log = np.sqrt(2 * spread * _LOG_ODDS / decisions) + 7 * possible * _LOG_ODDS / (3 * max(decisions - 1, 1))
    return float(min(by_support, by_log)) + 1e-6
