"""The held-back decisions that judge a policy, and what was on offer in each of them.

A policy is judged by what it could have chosen. Its probabilities are therefore computed over the arms that were on offer
when a decision was made: the decision's candidates, without the arms that the version that made it did not offer. A
record does not name its version, so an arm counts as offered only if every version that made decisions in the window
offered it. Whichever of them decided, the policy's probabilities then sum to 1 over arms that it could have taken, so the
mean of probability / propensity is 1.

Decisions for one viewer depend on each other. A record does not name its viewer either, so that an erasure leaves nothing
behind, but the tables do. A record is recognised there by its values; of decisions with the same values, the first of the
tables is taken for the first of the records.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import numpy as np

from contracts.errors import InputError
from contracts.policies import PolicyCard
from contracts.windows import Split, TrainingWindow, WindowSettings
from predictor.policy import BASELINE_VERSION, Policy, active_arms, same_items
from trainer import artifact, contexts, dataset
from trainer.contexts import Reader

if TYPE_CHECKING:
    import pyarrow as pa

    from contracts.trajectories import TrajectoryBatch  # TensorFlow: only judging needs it, rolling out does not


class Log(Protocol):
    """The tables of the log."""

    def held_back(self, window: TrainingWindow, settings: WindowSettings) -> tuple["pa.RecordBatch", list[str | None]]:
        """The interactions that an export of `window` with `settings` holds back, and the user of each."""


class Judged(NamedTuple):
    """Decisions in which every policy that is judged had something to choose from."""

    decisions: "TrajectoryBatch"
    offered: np.ndarray  # [N, arms] bool
    left_out: int  # decisions in which one of the policies offers none of the arms that were on offer
    viewers: np.ndarray | None = None  # as in `HeldBack`

    @property
    def clusters(self) -> np.ndarray | None:
        """[N] decisions of one slate, or for one viewer, have the same number; None if no decisions belong together."""
        if self.viewers is None:
            return None if self.decisions.slate_id is None else dataset.clusters(self.decisions)
        # A slate is shown to one viewer.
        return np.where(self.viewers >= 0, -1 - self.viewers, dataset.clusters(self.decisions))


class HeldBack(NamedTuple):
    """The holdback of a window."""

    decisions: "TrajectoryBatch"
    offering: list[PolicyCard]  # the versions that decided, as far as they are known
    # [N] a number per viewer, -1 where it is not known; None without the tables, or if no viewer comes twice.
    viewers: np.ndarray | None = None

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
            return Judged(self.decisions, offered, 0, self.viewers)
        viewers = None if self.viewers is None else self.viewers[some]
        return Judged(self.decisions.take(some), offered[some], int((~some).sum()), viewers)

    def always_offered(self, arms: int) -> np.ndarray:
        """[arms] bool: true for the arms that every known version that decided offers."""
        always = np.ones(arms, bool)
        for card in self.offering:
            always[card.num_actions :] = False
            if (active := active_arms(card)) is not None:
                always[: len(active)] &= active[:arms]
        return always


def read(
    store: Path, windows: Path, card: PolicyCard, champion: PolicyCard | None = None, log: Log | None = None
) -> HeldBack:
    """The decisions on which a policy is judged: the holdback of the newest window that it was trained on.

    Args:
      store: the policy store, where the versions are that made the decisions.
      windows: the folder of training windows.
      card: the policy's.
      champion: the card of the policy whose arms the safe baseline offers.
      log: the tables, which know the viewers; None: intervals take viewers for different ones.

    Raises InputError when that window is missing.
    """
    newest = max(trained.window.start for trained in card.trained_on)
    for window in dataset.ready_windows(windows):
        if window.start == newest:
            found = read_parts(store, [(window, "holdback")], card, champion)
            if log is None:
                return found
            rows = log.held_back(window.manifest.window, window.manifest.settings)
            places = contexts.places(Reader(store, card).generation(window), contexts.of_card(card))
            return HeldBack(found.decisions, found.offering, viewers(found.decisions, *rows, places))
    raise InputError(f"{windows} has no window that starts at {newest.isoformat()}")


def read_parts(
    store: Path,
    parts: Sequence[tuple[dataset.ReadyWindow, Split]],
    card: PolicyCard,
    champion: PolicyCard | None = None,
) -> HeldBack:
    """The decisions in splits of windows, with the versions that made them, as if each had a viewer of its own.

    The arguments are those of `read`.
    """
    from contracts.trajectories import join

    batches, reader = [_no_decisions(card.observation_dim)], Reader(store, card)
    for window, split in parts:
        batches += reader.read(window, split)
    versions = sorted({version for window, _ in parts for version in window.manifest.policy_versions})
    return HeldBack(join(batches), list(_cards(store, versions, champion)))


def viewers(
    decisions: "TrajectoryBatch", interactions: "pa.RecordBatch", users: Sequence[str | None], places: np.ndarray
) -> np.ndarray | None:
    """[N] a number per viewer of the decisions, -1 where it is not known; None if no viewer comes twice.

    Args:
      decisions: [N], in the order of their files.
      interactions: columns of `contracts.records.Interaction`, those of the decisions among them.
      users: of each interaction.
      places: [D], where in an interaction's observation the numbers of a decision's are; -1: a decision has 0 there.
    """
    numbers = {user: number for number, user in enumerate(dict.fromkeys(user for user in users if user is not None))}
    waiting: defaultdict[bytes, list[int]] = defaultdict(list)  # by values, the last one first
    for observation, *values, user in reversed(
        list(zip(*(interactions.column(name).to_pylist() for name in _VALUES), users, strict=True))
    ):
        if len(observation) > places.max(initial=-1):
            waiting[_key(contexts.project(np.array([observation], np.float32), places)[0], *values)].append(
                numbers.get(user, -1)
            )
    found = np.full(len(decisions.action), -1)
    for row, values in enumerate(zip(*(getattr(decisions, name) for name in _VALUES), strict=True)):
        if of_values := waiting.get(_key(*values)):
            found[row] = of_values.pop()
    known = found[found >= 0]
    return found if len(np.unique(known)) < len(known) else None


_VALUES = ("observation", "action", "propensity", "reward")


def _key(observation: np.ndarray, action: int, propensity: float, reward: float) -> bytes:
    """What a record and its row have in common: the values as the record has them."""
    return np.array([*observation, propensity, reward], np.float32).tobytes() + int(action).to_bytes(4, "little")


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
