"""The held-back decisions that judge a policy, and what was on offer in each of them.

A policy is judged by what it could have chosen. Its probabilities are therefore computed over the arms that were on offer
when a decision was made: the decision's candidates, without the arms that the version that made it did not offer. A
record does not name its version, so an arm counts as offered only if every version that made decisions in the window
offered it. Whichever of them decided, the policy's probabilities then sum to 1 over arms that it could have taken, so the
mean of probability / propensity is 1.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from contracts.errors import InputError
from contracts.policies import PolicyCard
from predictor.policy import BASELINE_VERSION, Policy, active_arms, same_items
from trainer import artifact, contexts, dataset
from trainer.contexts import Reader

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch  # TensorFlow: only judging needs it, rolling out does not


class Judged(NamedTuple):
    """Decisions in which every policy that is judged had something to choose from."""

    decisions: "TrajectoryBatch"
    offered: np.ndarray  # [N, arms] bool
    left_out: int  # decisions in which one of the policies offers none of the arms that were on offer

    @property
    def clusters(self) -> np.ndarray | None:
        """[N] decisions of one slate have the same number; None if there are no slates."""
        return None if self.decisions.slate_id is None else dataset.clusters(self.decisions)


class HeldBack(NamedTuple):
    """The holdback of a window."""

    decisions: "TrajectoryBatch"
    offering: list[PolicyCard]  # the versions that decided, as far as they are known

    def judged_by(self, policies: Sequence[Policy], arms: int) -> Judged:
        """What `policies` are judged on when they choose among their first `arms` arms."""
        always = self.always_offered(arms)
        for policy in policies[1:]:
            same = same_items(policies[0].card, policy.card)[:arms]
            always[: len(same)] &= same
        offered = self.decisions.offers.mask(arms) & always
        some = np.ones(len(offered), bool)
        for policy in policies:
            some &= (offered if policy.active is None else offered & policy.active[:arms]).any(axis=1)
        if some.all():
            return Judged(self.decisions, offered, 0)
        return Judged(self.decisions.take(some), offered[some], int((~some).sum()))

    def always_offered(self, arms: int) -> np.ndarray:
        """[arms] bool: true for the arms that every known version that decided offers."""
        always = np.ones(arms, bool)
        for card in self.offering:
            always[card.num_actions :] = False
            if (active := active_arms(card)) is not None:
                always[: len(active)] &= active[:arms]
        return always


def read(store: Path, windows: Path, card: PolicyCard, champion: PolicyCard | None = None) -> HeldBack:
    """The decisions on which a policy is judged: the holdback of the newest window that it was trained on.

    Args:
      store: the policy store, where the versions are that made the decisions.
      windows: the folder of training windows.
      card: the policy's.
      champion: the card of the policy whose arms the safe baseline offers.

    Raises InputError when that window is missing.
    """
    from contracts.trajectories import join

    newest = max(trained.window.start for trained in card.trained_on)
    for window in dataset.ready_windows(windows):
        if window.start == newest:
            batches = [_no_decisions(card.observation_dim), *Reader(store, card).read(window, "holdback")]
            return HeldBack(join(batches), list(_cards(store, window.manifest.policy_versions, champion)))
    raise InputError(f"{windows} has no window that starts at {newest.isoformat()}")


def seen_as(policy: Policy, card: PolicyCard) -> Policy:
    """The policy for observations of the context that `card` takes: what it does not know of them is left out."""
    own, given = contexts.of_card(policy.card), contexts.of_card(card)
    if own == given:
        return policy
    taken, scorer = contexts.places(given, own), policy.scorer
    seen = msgspec.structs.replace(policy.card, observation_dim=given.observation_dim, features=given.features)
    return Policy(seen, lambda observations: scorer(contexts.project(observations, taken)))


def _cards(store: Path, versions: Iterable[str], champion: PolicyCard | None) -> Iterable[PolicyCard]:
    for version in versions:
        card = champion if version == BASELINE_VERSION else artifact.read_card(store, version)
        if card is not None:
            yield card


def _no_decisions(observation_dim: int) -> "TrajectoryBatch":
    from contracts.trajectories import TrajectoryBatch

    return TrajectoryBatch(
        observation=np.zeros((0, observation_dim), np.float32),
        action=np.zeros(0, np.int32),
        reward=np.zeros(0, np.float32),
        propensity=np.zeros(0, np.float32),
        defaulted=np.zeros(0, bool),
    )
