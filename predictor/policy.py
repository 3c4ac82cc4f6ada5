"""A policy loaded for scoring: the expected reward of each arm for an observation, and its standard deviation.

Policies with arrays (`contracts.policy_arrays`) need numpy alone. TensorFlow is imported only for a policy that has
nothing but a SavedModel. This module knows no HTTP, because the gate uses it as well.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from contracts import policies, policy_arrays
from contracts.errors import InputError
from contracts.features import Encoder
from contracts.policies import Exploration, PolicyCard
from predictor import exploration as explorers

BASELINE_VERSION = "uniform"
_CHUNK_ROWS = 512  # rows scored at once, which bounds the memory that a long batch needs

Scorer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


# Of a large catalogue, only what is on offer is scored where that is a small part of it. Each set of arms is then scored
# apart, which for a small catalogue would cost more than scoring all arms for all rows together.
_LARGE_CATALOGUE, _SMALL_PART = 1_000, 4


class Choices(NamedTuple):
    """What some rows of a batch choose among, and the probability of each."""

    rows: np.ndarray  # [n] places in the batch, ascending
    arms: np.ndarray | None  # [m] int64, ascending: all that these rows have on offer; None: the columns are all K arms
    probabilities: np.ndarray  # [n, m] float64, rows summing to 1

    def draw(self, decision_ids: Sequence[str], policy_version: str) -> np.ndarray:
        """[n] int64: an action for each row, as `exploration.draw` draws it."""
        drawn = explorers.draw(self.probabilities, decision_ids, policy_version)
        return drawn if self.arms is None else self.arms[drawn]

    def of(self, actions: np.ndarray) -> np.ndarray:
        """[n] the probability of each row's action; 0 for one that is not on offer, or that the policy does not have."""
        rows = np.arange(len(actions))
        if self.arms is None:
            known = actions < self.probabilities.shape[1]
            return np.where(known, self.probabilities[rows, np.where(known, actions, 0)], 0.0)
        places = np.minimum(np.searchsorted(self.arms, actions), len(self.arms) - 1)
        return np.where(self.arms[places] == actions, self.probabilities[rows, places], 0.0)


@dataclass(frozen=True)
class Policy:
    """A policy's card, and the function from observations [B, D] to mean and std, [B, K] float64 each."""

    card: PolicyCard
    scorer: Scorer

    @cached_property
    def active(self) -> np.ndarray | None:
        """[K] bool, false for arms that are not on offer, because their item is masked or retired; None if all are."""
        return active_arms(self.card)

    @cached_property
    def new(self) -> np.ndarray | None:
        """[K] bool, true for the arms of new items, which share `exploration.new_item_share`; None if there are none."""
        if not self.card.new_actions:
            return None
        new = np.zeros(self.card.num_actions, bool)
        new[self.card.new_actions] = True
        return new

    @cached_property
    def on_offer(self) -> list[int]:
        """The actions whose items are active, ascending."""
        return list(range(self.card.num_actions)) if self.active is None else np.flatnonzero(self.active).tolist()

    @cached_property
    def action_of(self) -> dict[str, int]:
        """The action of each item of the catalogue, by item id."""
        return {item.item_id: item.action for item in self.card.catalogue}

    @cached_property
    def encoder(self) -> Encoder | None:
        """Encodes named features; None for a policy without a feature spec."""
        return Encoder(self.card.features) if self.card.features is not None else None

    def can_choose(self, candidates: Sequence[int]) -> bool:
        """Whether `candidates` (empty: all arms) are arms of this policy, at least one of them on offer."""
        if not candidates:
            return True
        if max(candidates) >= self.card.num_actions:
            return False
        return self.active is None or bool(self.active[list(candidates)].any())

    def scored(self, candidates: int) -> int:
        """How many arms are scored for a row that lists `candidates` of them (0: all arms)."""
        few = self.card.num_actions >= _LARGE_CATALOGUE and candidates * _SMALL_PART <= self.card.num_actions
        return candidates if candidates and few else self.card.num_actions

    def scores(self, observations: np.ndarray, arms: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The expected reward of each arm, and its standard deviation.

        Args:
          observations: [B, D] float32.
          arms: [n] the arms to score; None for all K.

        Returns:
          mean and std, [B, K] float64 each; with `arms` [B, n]. Among other arms, an arm's last digits may differ.

        Raises:
          ValueError: D is not the policy's observation_dim.
        """
        if observations.ndim != 2 or observations.shape[1] != self.card.observation_dim:
            raise ValueError(f"observations must be [B, {self.card.observation_dim}], got {observations.shape}")
        if arms is None:
            return self.scorer(observations)
        if isinstance(self.scorer, policy_arrays.Scorer):
            return self.scorer.scores(observations, arms)
        mean, std = self.scorer(observations)
        return mean[:, arms], std[:, arms]

    def probabilities(
        self,
        observations: np.ndarray,
        candidates: Sequence[Sequence[int]] | np.ndarray | None = None,
        exploration: Exploration | None = None,
    ) -> np.ndarray:
        """The probability of each arm.

        Args:
          observations: [B, D] float32.
          candidates: the arms on offer: a list per row, an empty one meaning all arms, or [B, K] bool; None for all arms
            in every row. Arms of masked and retired items are never on offer.
          exploration: replaces the card's exploration.

        Returns:
          [B, K] float64, rows summing to 1; exactly 0 where the arm is not on offer.

        Raises:
          ValueError: D is not the policy's observation_dim, a row has no arm on offer, or a score is not finite.
        """
        choices = self.choices(observations, candidates, exploration)
        if len(choices) == 1 and choices[0].arms is None:
            return choices[0].probabilities
        result = np.zeros((len(observations), self.card.num_actions))
        for rows, arms, found in choices:
            result[rows if arms is None else np.ix_(rows, arms)] = found
        return result

    def choices(
        self,
        observations: np.ndarray,
        candidates: Sequence[Sequence[int]] | np.ndarray | None = None,
        exploration: Exploration | None = None,
    ) -> list[Choices]:
        """The numbers of `probabilities`, without the arms that are not on offer where they are most of a large catalogue.

        Each row of the batch is in one of the choices. Its numbers depend on its observation and on the set of arms that
        it has on offer, and on nothing else in the batch. Same arguments and errors as `probabilities`.
        """
        settings = exploration or self.card.exploration
        found = []
        for rows, arms, mask in self._offers(len(observations), candidates):
            chosen = observations if len(rows) == len(observations) else observations[rows]
            new = self.new if self.new is None or arms is None else self.new[arms]
            blocks = []
            for start in range(0, max(len(rows), 1), _CHUNK_ROWS):
                part = slice(start, start + _CHUNK_ROWS)
                mean, std = self.scores(chosen[part], arms)
                offered = None if mask is None else mask[part]
                blocks.append(explorers.probabilities(settings, mean, std, offered, new))
            found.append(Choices(rows, arms, blocks[0] if len(blocks) == 1 else np.concatenate(blocks)))
        return found

    def _offers(
        self, count: int, candidates: Sequence[Sequence[int]] | np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]:
        """The rows of a batch by what they have on offer: each with its few arms, or together with a mask [n, K] or None."""
        few: dict[bytes, list[int]] = {}
        rest = np.arange(count)
        if self.card.num_actions >= _LARGE_CATALOGUE and not (candidates is None and self.active is None):
            left: list[int] = []
            for row in range(count):
                arms = self._few_arms(candidates[row] if candidates is not None else ())
                (few.setdefault(arms.tobytes(), []) if arms is not None else left).append(row)
            rest = np.array(left, np.int64)
        for key, rows in few.items():
            yield np.array(rows), np.frombuffer(key, np.int64), None
        if len(rest) or not few:
            yield rest, None, self._mask(rest, candidates)

    def _few_arms(self, offered: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """The arms of a row's list or mask that are on offer, ascending; None if they are more than a small part of all."""
        if isinstance(offered, np.ndarray):
            arms = np.flatnonzero(offered)
        elif len(offered):
            arms = np.unique(np.asarray(offered, np.int64))
        elif self.active is None:
            return None
        else:
            arms = np.array(self.on_offer, np.int64)
        if self.active is not None:
            arms = arms[self.active[arms]]
        if not len(arms):
            raise ValueError("every row must have an arm on offer")
        return arms if len(arms) * _SMALL_PART <= self.card.num_actions else None

    def _mask(self, rows: np.ndarray, candidates: Sequence[Sequence[int]] | np.ndarray | None) -> np.ndarray | None:
        if candidates is None:
            mask = None
        elif isinstance(candidates, np.ndarray):
            mask = candidates if len(rows) == len(candidates) else candidates[rows]
        else:
            mask = mask_of([candidates[row] for row in rows], self.card.num_actions)
        if self.active is None:
            return mask
        return np.tile(self.active, (len(rows), 1)) if mask is None else mask & self.active


def active_arms(card: PolicyCard) -> np.ndarray | None:
    """[K] bool, false for arms of masked and retired items; None if all are active."""
    statuses = np.array([item.status == "active" for item in card.catalogue], bool)
    return None if statuses.all() else statuses


def same_items(one: PolicyCard, other: PolicyCard) -> np.ndarray:
    """[min K] bool: actions that stand for the same item in both; a policy without a catalogue does not say otherwise."""
    shared = min(one.num_actions, other.num_actions)
    same = [first.item_id == second.item_id for first, second in zip(one.catalogue, other.catalogue, strict=False)]
    return np.array(same, bool) if same else np.ones(shared, bool)


def in_common(one: Policy, other: Policy) -> list[int] | None:
    """The actions that both policies offer, for the same items, ascending; None if they offer exactly the same."""
    if one.card.num_actions == other.card.num_actions and one.card.catalogue == other.card.catalogue:
        return None
    same = same_items(one.card, other.card)
    offered = [
        np.ones(len(same), bool) if policy.active is None else policy.active[: len(same)] for policy in (one, other)
    ]
    both = np.flatnonzero(same & offered[0] & offered[1]).tolist()
    return None if both == one.on_offer == other.on_offer else both


def mask_of(candidates: Sequence[Sequence[int]], num_actions: int) -> np.ndarray | None:
    """[B, K] bool, true where an arm is on offer (an empty row offers all); None when every row offers all."""
    if not any(candidates):
        return None
    mask = np.zeros((len(candidates), num_actions), bool)
    for row, on_offer in enumerate(candidates):
        mask[row, on_offer or slice(None)] = True
    return mask


def load(folder: Path) -> Policy:
    """The policy in `folder`. Raises InputError that names the file and the fact if it is missing or incomplete."""
    card = read_card(folder)
    if not any(item.status == "active" for item in card.catalogue) and card.catalogue:
        raise InputError(f"{folder / policies.CARD_NAME}: catalogue must have an active item")
    return Policy(card, _read_scorer(folder, card))


def read_card(folder: Path) -> PolicyCard:
    """The card of the policy in `folder`. Raises InputError."""
    path = folder / policies.CARD_NAME
    try:
        return policies.decode_card(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def baseline(card: PolicyCard) -> Policy:
    """The safe policy for the arms and observations of `card`: uniform over the arms on offer. It cannot fail."""
    safe = msgspec.structs.replace(
        card,
        version=BASELINE_VERSION,
        parent=None,
        algorithm="uniform",
        hyperparameters={},
        trained_on=[],
        exploration=Exploration(strategy="uniform"),
        new_actions=[],
        evaluation=None,
    )

    def scorer(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        zeros = np.zeros((len(observations), card.num_actions))
        return zeros, zeros

    return Policy(safe, scorer)


def _read_scorer(folder: Path, card: PolicyCard) -> Scorer:
    """The arrays where there are some, because they need no TensorFlow; otherwise the SavedModel."""
    saved_model = folder / policies.SAVED_MODEL_NAME
    if saved_model.is_dir() and not policy_arrays.exist(folder):
        return _read_saved_model(saved_model, card)
    return policy_arrays.Scorer(policy_arrays.read(folder, card))


def _read_saved_model(path: Path, card: PolicyCard) -> Scorer:
    """The `scores` signature of a SavedModel: observation [B, D] to mean and std, [B, K] each."""
    try:
        import tensorflow as tf
    except ImportError:
        raise InputError(f"{path}: needs TensorFlow, which is not installed here") from None
    try:
        signature = tf.saved_model.load(str(path)).signatures["scores"]
        shape = signature.structured_outputs["mean"].shape
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a SavedModel with the signature scores: {error}") from None
    if shape[-1] != card.num_actions:
        raise InputError(f"{path}: scores must be of {card.num_actions} actions, got {shape[-1]}")

    def scorer(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = signature(observation=tf.constant(observations, tf.float32))
        return scores["mean"].numpy().astype(np.float64), scores["std"].numpy().astype(np.float64)

    return scorer
