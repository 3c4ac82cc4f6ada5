"""The policies that serve at one moment, and which of them decides what."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from contracts.errors import InputError
from predictor import exploration
from predictor.policy import Policy, in_common


@dataclass(frozen=True)
class LineUp:
    """The policy that serves, the one under trial, and the one that steps in when either fails."""

    serving: Policy
    baseline: Policy
    candidate: Policy | None = None  # takes `candidate_share` of the decisions
    candidate_share: float = 0.0
    shadow: Policy | None = None  # scored and logged, never served
    anchor: Policy | None = None  # takes `anchor_share` of the decisions while `serving` is on probation
    anchor_share: float = 0.0
    live: Policy | None = None  # what decides in the place of `serving`, its base
    withdrawn: frozenset[str] = (
        frozenset()
    )  # items that are not on offer any more, though the policy's card has them active
    base_share: float = (
        0.0  # of the decisions, which the base keeps while a live version serves and no other is beside it
    )

    def __iter__(self) -> Iterator[Policy]:
        """The policies that were loaded from the store: serving, candidate, shadow and anchor, as far as there are."""
        every = (self.serving, self.candidate, self.shadow, self.anchor)
        return (policy for policy in every if policy is not None)

    @property
    def beside(self) -> tuple[str, Policy, float] | None:
        """The role, the policy and the share of the one that takes a share of the decisions; None without one."""
        if self.candidate is not None:
            return "candidate", self.candidate, self.candidate_share
        if self.anchor is not None:
            return "anchor", self.anchor, self.anchor_share
        if self.live is not None:
            return "base", self.serving, self.base_share
        return None

    @cached_property
    def withheld(self) -> frozenset[int]:
        """The actions of `serving` whose items were withdrawn. Decisions list what else was on offer, while there are any."""
        if not self.withdrawn:
            return frozenset()
        offered = set(self.serving.on_offer)
        return (
            frozenset(self.serving.action_of[one] for one in self.withdrawn & self.serving.action_of.keys()) & offered
        )

    @cached_property
    def common(self) -> list[int] | None:
        """What the policy that takes a share may choose from: the actions that it offers and `serving` offers, too.

        None if both offer the same. An item that was retired, or that it does not know, is never its choice.
        """
        beside = self.candidate or self.anchor
        return None if beside is None else in_common(beside, self.serving)

    @property
    def deciding(self) -> dict[str, tuple[str, float]]:
        """The policies that decide: role -> version and share of the decisions. A live version counts as its base."""
        main = "serving" if self.live is None else "live"
        if self.beside is None:
            return {main: (self.serving.card.version, 1.0)}
        role, policy, share = self.beside
        return {main: (self.serving.card.version, 1 - share), role: (policy.card.version, share)}

    def takes(self, decision_ids: Sequence[str]) -> np.ndarray:
        """Whether the candidate, the anchor, or the base of a live version makes each decision: [B] bool.

        Depends only on the ids (for a slate, the id of its first place), the role and the share, so it can be computed
        again from the log.
        """
        if self.beside is None:
            return np.zeros(len(decision_ids), bool)
        role, _, share = self.beside
        return takes(role, share, decision_ids)

    def shares(self, decision_ids: Sequence[str]) -> list[tuple[Policy, list[int]]]:
        """Each policy that makes decisions, and the rows of `decision_ids` that it makes. No row appears twice."""
        main = self.live or self.serving
        if self.beside is None:
            return [(main, list(range(len(decision_ids))))]
        taken = self.takes(decision_ids)
        rows = (np.flatnonzero(taken == beside).tolist() for beside in (False, True))
        return [share for share in zip((main, self.beside[1]), rows, strict=True) if share[1]]


def takes(role: str, share: float, decision_ids: Sequence[str]) -> np.ndarray:
    """Whether the policy in `role` ("candidate" or "anchor"), with that share, makes each decision: [B] bool."""
    return exploration.uniforms(f"\0{role}", decision_ids) < share


def check_alike(policy: Policy, serving: Policy) -> None:
    """Raises InputError unless both policies take the same observations, of the same features. They may know other items."""
    found, wanted = policy.card.observation_dim, serving.card.observation_dim
    if found != wanted:
        raise InputError(
            f"{policy.card.version}: observation_dim must be {wanted} as in {serving.card.version}, got {found}"
        )
    if policy.card.features != serving.card.features:
        raise InputError(f"{policy.card.version}: features must be those of {serving.card.version}, got others")
