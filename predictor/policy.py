"""A policy loaded for scoring: the expected reward of each arm for an observation, and its standard deviation.

Policies with arrays (`contracts.policy_arrays`) need numpy alone. TensorFlow is imported only for a policy that has
nothing but a SavedModel. This module knows no HTTP, because the gate uses it as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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

    def scores(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The expected reward of each arm, and its standard deviation.

        Args:
          observations: [B, D] float32.

        Returns:
          mean and std, [B, K] float64 each.

        Raises:
          ValueError: D is not the policy's observation_dim.
        """
        if observations.ndim != 2 or observations.shape[1] != self.card.observation_dim:
            raise ValueError(f"observations must be [B, {self.card.observation_dim}], got {observations.shape}")
        return self.scorer(observations)

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
        settings = exploration or self.card.exploration
        if candidates is None or isinstance(candidates, np.ndarray):
            mask = candidates
        else:
            mask = mask_of(candidates, self.card.num_actions)
        if self.active is not None:
            mask = np.tile(self.active, (len(observations), 1)) if mask is None else mask & self.active
        blocks = []
        for start in range(0, max(len(observations), 1), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            mean, std = self.scores(observations[rows])
            offered = mask[rows] if mask is not None else None
            blocks.append(explorers.probabilities(settings, mean, std, offered, self.new))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


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
