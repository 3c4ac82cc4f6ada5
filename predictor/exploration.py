"""Turns a policy's scores into an action: first the probability of every arm, then one draw from these probabilities.

The logged propensity is therefore the probability that was used, and not an estimate of it. The draw depends only on the
decision's id and the policy's version, so any decision can be replayed and checked.
"""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from contracts.errors import InputError
from contracts.policies import STRATEGIES, Exploration

MAX_SHARE_OF_ONE_NEW_ITEM = 0.02  # times their number: so that a single new item does not take the whole budget
EVEN_SHARE_OF_BUDGET = 0.1  # of the budget of new items, what is spread evenly among them whatever the strategy prefers


def probabilities(
    exploration: Exploration,
    mean: np.ndarray,
    std: np.ndarray,
    mask: np.ndarray | None = None,
    new: np.ndarray | None = None,
) -> np.ndarray:
    """The probability of each arm, ties going to the first.

    The arms of new items have at most `exploration.new_item_share` together, and at most their number times
    MAX_SHARE_OF_ONE_NEW_ITEM.
    A tenth of this budget is always theirs, evenly, so that a strategy which does not value uncertainty learns about them,
    too. The strategy may give them the rest; what it would give them beyond that is shared among the other arms, as if
    these were alone. `uniform` treats all arms alike, and so does every strategy where all arms on offer are new.

    Args:
      exploration: the strategy and its settings.
      mean: [B, K] the expected reward of each arm.
      std: [B, K] its standard deviation, in the same unit, at least 0.
      mask: [B, K] bool, true where the arm is on offer; None when all are.
      new: [K] bool, true for the arms of new items; None when there are none.

    Returns:
      [B, K] float64. Rows sum to 1, and an arm that is not on offer has exactly 0.

    Raises:
      InputError: the strategy is unknown.
      ValueError: a row has no arm on offer, or a score is not finite.
    """
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    # One number that is not finite makes the sum not finite.
    if not math.isfinite(mean.sum() + std.sum()):
        raise ValueError("scores must be finite")
    if mask is not None and not mask.any(axis=1).all():
        raise ValueError("every row must have an arm on offer")
    if new is None or exploration.strategy == "uniform":
        return _by_strategy(exploration, mean, std, mask)
    offered = _all_unless(mask, mean)
    others, untried = offered & ~new, offered & new
    count = untried.sum(axis=1, keepdims=True)
    budget = np.minimum(exploration.new_item_share, MAX_SHARE_OF_ONE_NEW_ITEM * count)
    budget[~others.any(axis=1)] = 0.0
    even = EVEN_SHARE_OF_BUDGET * budget
    chosen = _by_strategy(exploration, mean, std, mask)
    of_new = (chosen * untried).sum(axis=1, keepdims=True)
    allowed = (budget - even) / (1 - even)
    over = np.flatnonzero((of_new > allowed) & others.any(axis=1, keepdims=True))
    if len(over):
        alone = _by_strategy(exploration, mean[over], std[over], others[over])
        most, scale = allowed[over], allowed[over] / of_new[over]
        chosen[over] = np.where(untried[over], chosen[over] * scale, (1 - most) * alone)
    return np.asarray((1 - even) * chosen + even * untried / np.maximum(count, 1))


def _by_strategy(exploration: Exploration, mean: np.ndarray, std: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    match exploration.strategy:
        case "greedy":
            return _mostly_best(mean, 0.0, mask)
        case "epsilon_greedy":
            return _mostly_best(mean, exploration.epsilon, mask)
        case "ucb":
            return _mostly_best(mean + exploration.alpha * std, exploration.epsilon, mask)
        case "uniform":
            return _evenly(_all_unless(mask, mean))
        case "softmax":
            return _softmax(mean, exploration.temperature, _all_unless(mask, mean))
        case "inverse_gap":
            return _inverse_gap(mean, exploration.gamma, _all_unless(mask, mean))
        case "thompson":
            return _thompson(mean, exploration.alpha * std, _all_unless(mask, mean))
        case unknown:
            raise InputError(f"exploration.strategy: must be one of {', '.join(STRATEGIES)}, got {unknown!r}")


def draw(probabilities: np.ndarray, decision_ids: Sequence[str], policy_version: str) -> np.ndarray:
    """One arm per row, by inverse CDF at a number in (0, 1) that the decision's id and the policy's version determine.

    Args:
      probabilities: [B, K], rows summing to 1.
      decision_ids: B UUIDs.
      policy_version: the version that decides.

    Returns:
      [B] int64. Never an arm whose probability is 0.
    """
    cumulative = probabilities.cumsum(axis=1)
    # Times the last one, which rounding may leave slightly off 1. The uniforms are below 1, so an arm is always found.
    points = uniforms(policy_version, decision_ids)[:, None] * cumulative[:, -1:]
    return np.asarray((cumulative > points).argmax(axis=1))


def uniforms(purpose: str, decision_ids: Sequence[str]) -> np.ndarray:
    """The number in (0, 1) that each id, a UUID whose last 62 bits are random, determines for `purpose`: [B] float64.

    Those bits, xored with a hash of the purpose, go through the finalizer of splitmix64 (Steele, Lea and Flood, "Fast
    Splittable Pseudorandom Number Generators", 2014; Stafford's variant 13). It maps one to one, so the numbers are as
    uniform as the ids are random, and it mixes, so those for two purposes have nothing to do with each other. Odd
    multiples of 2^-53: never 0 (an arm of vanishing probability in first place would win), never 1.
    """
    halves = np.frombuffer(bytes.fromhex("".join(decision_ids).replace("-", "")), ">u8")
    bits = halves[1::2] ^ _hash(purpose)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return np.asarray(((bits >> np.uint64(12)) + 0.5) * 2.0**-52)


@lru_cache(maxsize=64)
def _hash(purpose: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "big"))


def _all_unless(mask: np.ndarray | None, mean: np.ndarray) -> np.ndarray:
    """`mask`, or one of the shape of `mean` with every arm on offer."""
    return np.ones(mean.shape, bool) if mask is None else mask


def _mostly_best(scores: np.ndarray, epsilon: float, mask: np.ndarray | None) -> np.ndarray:
    """Epsilon evenly, the rest on the best. The marginal: the best arm can come up by exploration too."""
    if mask is None:
        chosen = np.full(scores.shape, epsilon * (1 / scores.shape[1]))  # to the last bit what a mask of all gives
    else:
        chosen = epsilon * _evenly(mask)
        scores = np.where(mask, scores, -np.inf)
    chosen[np.arange(len(scores)), scores.argmax(axis=1)] += 1 - epsilon
    return chosen


def _evenly(mask: np.ndarray) -> np.ndarray:
    return np.asarray(mask / mask.sum(axis=1, keepdims=True))


def _softmax(mean: np.ndarray, temperature: float, mask: np.ndarray) -> np.ndarray:
    best = np.where(mask, mean, -np.inf).max(axis=1, keepdims=True)
    # The floor keeps the quotient finite; the limit, even shares for the best, is long reached there.
    weights = np.exp(np.where(mask, mean - best, -np.inf) / max(temperature, 1e-100))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _inverse_gap(mean: np.ndarray, gamma: float, mask: np.ndarray) -> np.ndarray:
    """SquareCB: 1 / (n + gamma * gap) for every arm but the best, which takes the rest.

    Foster and Rakhlin, "Beyond UCB: Optimal and Efficient Contextual Bandits with Regression Oracles", 2020, eq. (2).
    """
    best = _mostly_best(mean, 0.0, mask)
    gap = np.where(mask, (mean * best).sum(axis=1, keepdims=True) - mean, 0.0)
    others = np.where(mask & (best == 0), 1 / (mask.sum(axis=1, keepdims=True) + gamma * gap), 0.0)
    return np.asarray(others + best * (1 - others.sum(axis=1, keepdims=True)))


_THOMPSON_SEARCH, _THOMPSON_CELLS = 32, 192
_THOMPSON_MANY, _THOMPSON_FRONT = 512, 64  # of more arms than that, so few first say where the maximum lies
_THOMPSON_REACH = 6.0  # standard deviations; beyond them lies 1e-9 of an arm's mass
_THOMPSON_REST = 1e-7  # of the mass of the maximum is left out at either end
_TABLE_STEP = 1 / 512
_TABLE_FROM, _TABLE_TO = -37.0, 9.0
# log of the normal CDF at multiples of the step; linear between them, within 5e-7.
_LOG_CDF = np.array(
    [
        math.log(0.5 * math.erfc(-(_TABLE_FROM + i * _TABLE_STEP) / math.sqrt(2)))
        for i in range(int((_TABLE_TO - _TABLE_FROM) / _TABLE_STEP) + 1)
    ]
)


def _thompson(mean: np.ndarray, std: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The probability that each arm is the largest when each is drawn from its own Normal(mean, std^2).

    P(k) is the integral of F d(log Phi_k), where F, the product of all arms' CDFs, is that of the maximum. On each of
    192 cells F is taken as its logarithmic mean, so that the P(k) of a cell add up to the mass of the maximum in it,
    and all of them to 1. The cells lie where the maximum does, found on a coarse grid first: half of them evenly, half by its
    mass, as many narrow arms among wide ones may be the largest within a sliver. The draw comes from these
    numbers, so they are exact as propensities; from ideal Thompson sampling they differ by less than 0.001 in an arm's
    probability as long as the arms' std are within a factor of 30 (0.0002 within a factor of 3). An arm with less than
    1e-7 of a chance may get 0.
    """
    # An arm known for certain is a step in F; a sliver of width keeps the arithmetic finite.
    std = np.maximum(std, 1e-9 * (1 + np.abs(mean)))
    result = np.zeros(mean.shape)
    for row, on_offer in enumerate(mask):
        arms = np.flatnonzero(on_offer)
        centres, widths = mean[row, arms, None], std[row, arms, None]
        tops = (centres + _THOMPSON_REACH * widths)[:, 0]
        highest = float(tops.max())
        lowest = float((centres - _THOMPSON_REACH * widths).max())
        if len(arms) > _THOMPSON_MANY:
            lowest = _front(centres, widths, lowest, highest)
            ahead = tops > lowest
            arms, centres, widths = arms[ahead], centres[ahead], widths[ahead]
        edges: np.ndarray = np.linspace(lowest, highest, _THOMPSON_SEARCH + 1)
        log_max = _log_cdf((edges - centres) / widths).sum(axis=0)
        first = max(int(np.searchsorted(log_max, math.log(_THOMPSON_REST))) - 1, 0)
        last = min(int(np.searchsorted(log_max, -_THOMPSON_REST)), _THOMPSON_SEARCH)
        edges = _where_it_lies(edges[first : last + 1], np.exp(log_max[first : last + 1]))
        # An arm whose reach ends before the maximum's begins cannot be it.
        contends = (centres + _THOMPSON_REACH * widths > edges[0])[:, 0]
        log_cdf = _log_cdf((edges - centres[contends]) / widths[contends])  # [n, cells + 1]
        log_max = log_cdf.sum(axis=0)
        growth = np.diff(log_max)
        # expm1 keeps the digits where F hardly grows; where it does not at all, its mean is F itself.
        mean_max = np.exp(log_max[:-1]) * np.divide(
            np.expm1(np.minimum(growth, 700.0)), growth, out=np.ones_like(growth), where=growth > 0
        )
        weights = np.diff(log_cdf, axis=1) @ mean_max
        result[row, arms[contends]] = weights / weights.sum()
    return result


def _front(centres: np.ndarray, widths: np.ndarray, lowest: float, highest: float) -> float:
    """A point below which the maximum lies with less than 1e-7 of its mass, found from a few of the arms, [n, 1] each.

    The maximum of all arms is at least that of those few. So the point holds for all, and the arms that do not reach it
    need no search.
    """
    leading = np.argpartition(-(centres + widths)[:, 0], _THOMPSON_FRONT)[:_THOMPSON_FRONT]
    edges: np.ndarray = np.linspace(lowest, highest, _THOMPSON_SEARCH + 1)
    log_max = _log_cdf((edges - centres[leading]) / widths[leading]).sum(axis=0)
    return float(edges[max(int(np.searchsorted(log_max, math.log(_THOMPSON_REST))) - 1, 0)])


def _where_it_lies(edges: np.ndarray, distribution: np.ndarray) -> np.ndarray:
    """The edges of the fine cells: half of them evenly, half by the mass that a coarse grid finds between its edges."""
    mass = np.diff(distribution)
    density = mass / mass.sum() + 1 / len(mass)
    cumulative = np.concatenate([[0.0], density.cumsum()])
    return np.interp(np.linspace(0.0, cumulative[-1], _THOMPSON_CELLS + 1), cumulative, edges)


def _log_cdf(z: np.ndarray) -> np.ndarray:
    position = (np.clip(z, _TABLE_FROM, _TABLE_TO - _TABLE_STEP) - _TABLE_FROM) / _TABLE_STEP
    index = position.astype(np.int64)
    left = _LOG_CDF[index]
    return np.asarray(left + (position - index) * (_LOG_CDF[index + 1] - left))
