"""The policies that serve at one moment, and which of them decides what."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from contracts.errors import InputError
from predictor import exploration
from predictor.policy import Policy


@dataclass(frozen=True)
class LineUp:
    """The policy that serves, the one under trial, and the one that steps in when either fails."""

    serving: Policy
    baseline: Policy
    candidate: Policy | None = None  # takes `candidate_share` of the decisions
    candidate_share: float = 0.0
    shadow: Policy | None = None  # scored and logged, never served

    def __iter__(self) -> Iterator[Policy]:
        """The policies that were loaded from the store: serving, candidate and shadow, as far as there are."""
        return (policy for policy in (self.serving, self.candidate, self.shadow) if policy is not None)

    def takes_candidate(self, decision_ids: Sequence[str]) -> np.ndarray:
        """Whether the candidate makes each decision: [B] bool.

        Depends only on the ids (for a slate, the id of its first place) and the candidate's share, so it can be computed
        again from the log.
        """
        return exploration.uniforms("\0candidate", decision_ids) < self.candidate_share

    def shares(self, decision_ids: Sequence[str]) -> list[tuple[Policy, list[int]]]:
        """Each policy that makes decisions, and the rows of `decision_ids` that it makes. No row appears twice."""
        if self.candidate is None:
            return [(self.serving, list(range(len(decision_ids))))]
        takes = self.takes_candidate(decision_ids)
        rows = (np.flatnonzero(takes == candidate).tolist() for candidate in (False, True))
        return [share for share in zip((self.serving, self.candidate), rows, strict=True) if share[1]]


def check_alike(policy: Policy, serving: Policy) -> None:
    """Raises InputError unless both policies have the same observations and actions."""
    for name in ("observation_dim", "num_actions"):
        found, wanted = getattr(policy.card, name), getattr(serving.card, name)
        if found != wanted:
            raise InputError(
                f"{policy.card.version}: {name} must be {wanted} as in {serving.card.version}, got {found}"
            )
