"""What two policies' whole probabilities say about the weights that a log can show, before any reward is looked at."""

from dataclasses import dataclass

import numpy as np

from contracts.errors import InputError

# 95% of logs show a weight that is expected three times (the rule of three).
EXPECTED_TIMES = 3.0


@dataclass(frozen=True)
class Support:
    """The largest weight that is relied on, and the share of the target policy's choices with a larger one.

    That share is left to the reward model, and the interval is widened by what the model may be wrong there.
    """

    largest_weight: float
    untried: float = 0.0


def support(target: np.ndarray, logging: np.ndarray) -> Support:
    """The threshold that a log of N decisions can carry: it grows with N, and so does what is relied on.

    Of the weights w > t that a log may show, up to 3 t / N of the target's probability may not show at all; what is left
    out by relying on w <= t only is U(t), the target's probability of larger weights. The threshold is the t that makes
    3 t / N + U(t) least. It uses no reward, so that it does not bias what is estimated with it. (Wang, Agarwal and Dudík
    2017 choose their threshold by the same trade, with an estimated variance in place of the first term.)

    Args:
      target: [N, K], the target policy's probabilities at each logged decision, 0 for what was not on offer.
      logging: [N, K], the logging policy's.

    Raises:
      InputError: shapes that differ, or no decisions.
    """
    if target.shape != logging.shape or target.ndim != 2 or not len(target):
        raise InputError(f"target and logging must both be [N, K] with N > 0, got {target.shape} and {logging.shape}")
    decisions = len(target)
    wanted = target > 0
    probability = target[wanted].astype(np.float64)
    with np.errstate(divide="ignore", over="ignore"):
        weight = np.where(logging[wanted] > 0, probability / logging[wanted].astype(np.float64), np.inf)
    order = np.argsort(weight)
    weight, left_out = weight[order], probability[order][::-1].cumsum()[::-1] / decisions
    beyond = np.append(left_out[1:], 0.0)
    cost = EXPECTED_TIMES * weight / decisions + beyond
    # Of equal weights the last counts: all of them are relied on, or none.
    best = int(np.searchsorted(weight, weight[int(np.argmin(cost))], side="right")) - 1
    if not np.isfinite(weight[best]):
        return Support(1.0, 1.0)
    return Support(float(weight[best]), float(max(beyond[best], 0.0)))


def observed_support(weights: np.ndarray) -> Support:
    """`support`, where the logging policy's whole probabilities are not known: from the weights of the logged actions.

    The mean of the weights w <= t is 1 - U(t) but for chance, so that U(t) is estimated without a look at rewards.

    Args:
      weights: [N], target probability / propensity of the logged actions.

    Raises:
      InputError: no decisions.
    """
    if not len(weights):
        raise InputError("weights must be [N] with N > 0, got none")
    ordered = np.sort(weights)
    untried = np.maximum(1 - ordered.cumsum() / len(ordered), 0.0)
    thresholds = np.maximum(ordered, 1.0)
    best = int(np.argmin(EXPECTED_TIMES * thresholds / len(ordered) + untried))
    best = int(np.searchsorted(thresholds, thresholds[best], side="right")) - 1
    return Support(float(thresholds[best]), float(untried[best]))


def difference_support(candidate: np.ndarray, champion: np.ndarray, difference: np.ndarray) -> Support:
    """`observed_support` of the difference of two policies: choices on which they agree need no evidence.

    Args:
      candidate: [N, K], a policy's probabilities at each logged decision.
      champion: [N, K], the other's.
      difference: [N], of the two probabilities of the logged action, divided by its propensity.

    Returns:
      The largest weight relied on, at least 1, and the mean of sum_a |candidate - champion| with larger ones, in [0, 2].
    """
    ordered = np.sort(np.abs(difference))
    differs = float(np.abs(candidate - champion).sum(axis=1).mean())
    untried = np.maximum(differs - ordered.cumsum() / len(ordered), 0.0)
    thresholds = np.maximum(ordered, 1.0)
    best = int(np.argmin(EXPECTED_TIMES * thresholds / len(ordered) + untried))
    best = int(np.searchsorted(thresholds, thresholds[best], side="right")) - 1
    return Support(float(thresholds[best]), float(untried[best]))


def marginal_probabilities(probabilities: np.ndarray, embedding: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """The probability that a policy shows any arm with the embedding of the arm that was shown: for many arms.

    With those of the target and of the logging policy in place of its own probabilities, `off_policy.estimate` is MIPS
    (its `ips`) and its self-normalised form (`snips`): Saito and Joachims 2022. Its weights are far smaller where many
    arms share an embedding. It is unbiased where an arm acts on the reward through its embedding alone.

        p(e | x) = sum_a probabilities(a | x) embedding(a, e)

    Args:
      probabilities: [N, K], a policy's.
      embedding: [K] int, the category of each arm, or [K, E], the probability of each category per arm.
      shown: [N] int, the category that was shown.

    Returns:
      [N], in [0, 1].
    """
    if embedding.ndim == 1:
        return np.where(embedding[None, :] == shown[:, None], probabilities, 0.0).sum(axis=1)
    return np.asarray((probabilities @ embedding)[np.arange(len(shown)), shown])
