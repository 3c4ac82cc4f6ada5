"""Why an estimate should not be believed, if there is a reason that the log itself shows."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trainer.intervals import MIN_GROUPS, Question

if TYPE_CHECKING:
    from trainer.off_policy import Sums

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


def doubt(sums: "Sums", groups: int, question: Question) -> str | None:
    """The reason not to believe the intervals of these sums, or None."""
    weights, decisions = sums.weights(), sums.decisions
    if groups < MIN_GROUPS:
        return f"only {groups} independent decisions (or viewers), at least {MIN_GROUPS} are needed"
    if weights.mean_weight == 0:
        return f"in {decisions} decisions the log never took an action that the policy would take"
    if sums.rewards.low == sums.rewards.high and question.reward_range is None:
        return f"all rewards are {sums.rewards.low:g}, and reward_range is not known"
    if sums.untried > MAX_UNTRIED:
        return f"{sums.untried:.0%} of the policy's choices are hardly ever tried in this log"
    if (share := sums.rewards.share_of_largest()) > MAX_SHARE_OF_ONE_REWARD and question.reward_range is None:
        return f"one reward makes up {share:.0%} of the spread of all"
    if abs(weights.mean_weight - 1) > sums.untried + _possible_error(sums):
        return (
            f"the mean weight is {weights.mean_weight:.2f} where 1 is expected: the propensities are not those of the"
            " log, or it could not take what the policy takes"
        )
    return None


def _possible_error(sums: "Sums") -> float:
    """How far the mean weight may be from 1 by chance, Bernstein's inequality: w <= m has a variance of at most m - 1."""
    possible = max(sums.possible_weight(), sums.largest_weight, 1.0)
    decisions = sums.decisions
    by_support = np.sqrt(2 * (possible - 1) * _LOG_ODDS / decisions) + possible * _LOG_ODDS / (3 * decisions)
    spread = max(sums.squared_weight / decisions - sums.weights().mean_weight ** 2, 0.0)
    # Empirical Bernstein (Maurer and Pontil 2009), with the spread that was seen.
    by_log = np.sqrt(2 * spread * _LOG_ODDS / decisions) + 7 * possible * _LOG_ODDS / (3 * max(decisions - 1, 1))
    return float(min(by_support, by_log)) + 1e-6
