"""Whether a decision counts, and the rules that combine several rewards of it into the one that counts.

    first   the reward that occurred first; of several at one moment the smallest
    last    the one that occurred last; of several at one moment the largest
    max     the largest; of equal ones the one that occurred first
    sum     all of them added, in the order of their times and then their values; it stops at the bounds of a reward

Rewards of one decision with the same time and value are one reward that was read again: it counts once. This module has
the rules record by record; `beam_jobs.reward_join` has them for whole buckets of rows.
"""

from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from contracts.records import FLOAT32_MAX, Status

RewardRule = Literal["first", "sum", "last", "max"]

T = TypeVar("T", bound=Any)


def happened(deferred: bool | None, statuses: Iterable[Status]) -> bool:
    """Whether a decision counts, given the statuses that occurred within its reward window."""
    found = set(statuses)
    return "cancelled" not in found and (not deferred or "activated" in found)


def combine(rule: RewardRule, rewards: Iterable[tuple[T, float]]) -> tuple[T, float]:
    """The reward that counts, and its time (of a sum, the last one's).

    Args:
      rule: how they are combined.
      rewards: (time, value) of at least one reward of one decision, in any order.
    """
    ordered = sorted(set(rewards))
    match rule:
        case "first":
            return ordered[0]
        case "last":
            return ordered[-1]
        case "max":
            return max(ordered, key=lambda one: one[1])
        case "sum":
            total = 0.0
            for _, value in ordered:
                total += value
            return ordered[-1][0], min(max(total, -FLOAT32_MAX), FLOAT32_MAX)
    raise ValueError(f"an unknown rule: {rule!r}")
