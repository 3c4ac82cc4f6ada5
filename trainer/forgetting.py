"""How much of earlier evidence counts: by a half-life that is given, or by what predicts each new window best.

With `half_life` "auto", each training decides how much of the evidence so far to keep when it takes in a new window. The
window's training records are split in two. For each of a few half-lives, the evidence so far is weighted by it, one half
of the window is added, and the model predicts the rewards of the other half, both ways. The half-life with the smallest
squared error is taken for this window. So evidence is forgotten where tastes have changed, and kept where they have not;
a forgetting factor that varies with the error is known from recursive least squares (Fortescue et al. 1981,
"Implementation of self-tuning regulators with variable forgetting factors").
"""

import itertools
import math
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from contracts.policies import PolicyCard
from trainer.agents import AUTO
from trainer.dataset import ReadyWindow
from trainer.linear import SufficientStatistics

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch

HALF_LIVES = (math.inf, 16.0, 8.0, 4.0, 2.0, 1.0)  # in windows; of equal errors the first counts


def weight(card: PolicyCard, later: int) -> float:
    """The weight of evidence that the policy was trained on last, after `later` more windows.

    With "auto" those windows are assumed to be as the policy's newest one was.
    """
    half_life = card.hyperparameters.get("half_life", 0.0)  # some have none
    if half_life == AUTO:
        newest = max((one for one in card.trained_on if one.split == "train"), key=lambda one: one.window.start)
        return newest.kept**later
    return float(0.5 ** (later / float(half_life))) if half_life else 1.0


def evidence_weight(card: PolicyCard, start: datetime) -> float:
    """The weight of evidence from the window that starts at `start`, given the later windows trained on."""
    later = [one for one in card.trained_on if one.window.start > start]
    if card.hyperparameters.get("half_life") == AUTO:
        return math.prod(one.kept for one in later if one.split == "train")
    return weight(card, len({one.window.start for one in later}))


def with_shares_kept(
    card: PolicyCard,
    parent: PolicyCard | None,
    statistics: SufficientStatistics,
    new: Iterable[tuple[ReadyWindow, Iterable["TrajectoryBatch"]]],
    solve: Callable[[SufficientStatistics], np.ndarray],
) -> PolicyCard:
    """The card with the share of earlier evidence that is kept at each of its new windows.

    Args:
      card: of the policy in training, with `half_life` "auto".
      parent: the policy that it continues.
      statistics: the parent's evidence, or none; they are changed.
      new: the records of each split that the parent has not seen, as the policy learns from them, by window. A window
        before the parent's newest is added, and nothing is forgotten for it.
      solve: statistics -> [K, D] coefficients.
    """
    newest = max((one.window.start for one in parent.trained_on), default=None) if parent is not None else None
    kept: dict[datetime, float] = {}
    for start, parts in itertools.groupby(new, lambda part: part[0].start):
        halves = _halves(itertools.chain.from_iterable(batches for _, batches in parts), card)
        if statistics.n.any() and (newest is None or start > newest):
            kept[start] = share_kept(statistics, halves, solve)
            statistics.scale(kept[start])
        for half in halves:
            statistics.merge(half)
        newest = start if newest is None else max(newest, start)
    return msgspec.structs.replace(
        card,
        trained_on=[
            msgspec.structs.replace(one, kept=kept[one.window.start])
            if one.split == "train" and one.window.start in kept
            else one
            for one in card.trained_on
        ],
    )


def share_kept(
    earlier: SufficientStatistics,
    halves: tuple[SufficientStatistics, SufficientStatistics],
    solve: Callable[[SufficientStatistics], np.ndarray],
) -> float:
    """The share of the `earlier` evidence with which each half of a window predicts the other one best."""

    def error(share: float) -> float:
        # Half of the window stands for all of it, so half of the earlier evidence is put beside it.
        return sum(
            _squared_error(solve(_sum(earlier, 0.5 * share, known)), other) for known, other in (halves, halves[::-1])
        )

    return min((0.5 ** (1 / half_life) for half_life in HALF_LIVES), key=error)


def _sum(earlier: SufficientStatistics, share: float, known: SufficientStatistics) -> SufficientStatistics:
    return SufficientStatistics(share * earlier.a + known.a, share * earlier.b + known.b, share * earlier.n + known.n)


def _squared_error(theta: np.ndarray, statistics: SufficientStatistics) -> float:
    """The sum of (r - theta_k x)^2, less the sum of r^2, which is the same for all coefficients theta [K, D]."""
    quadratic = np.einsum("kd,kde,ke->", theta, statistics.a, theta, optimize=True)
    return float(quadratic - 2 * (theta * statistics.b).sum())


def _halves(
    batches: Iterable["TrajectoryBatch"], card: PolicyCard
) -> tuple[SufficientStatistics, SufficientStatistics]:
    """The sums of every other record, and of those between them."""
    halves = (
        SufficientStatistics.zeros(card.num_actions, card.observation_dim),
        SufficientStatistics.zeros(card.num_actions, card.observation_dim),
    )
    for batch in batches:
        for first, half in enumerate(halves):
            rows = slice(first, None, 2)
            half.add(batch.observation[rows], batch.action[rows], batch.reward[rows])
    return halves
