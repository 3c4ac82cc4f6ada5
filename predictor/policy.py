"""A policy loaded for scoring: how good each arm looks for an observation, and how sure that is.

Policies in a numpy form need numpy only; TensorFlow is imported for those that have none. Nothing here knows of HTTP:
the gate that compares two policies uses it too.
"""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from contracts import policies
from contracts.errors import InputError
from contracts.policies import Exploration, PolicyCard
from predictor import exploration as explorers

BASELINE_VERSION = "uniform"
_BLOCK_ROWS = 8
_CHUNK_ROWS = 512  # bounds the memory that a batch takes, whatever its length

Scorer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Policy:
    """A card, and the function that scores observations [B, D] as (mean [B, K], std [B, K])."""

    card: PolicyCard
    scorer: Scorer

    @cached_property
    def active(self) -> np.ndarray | None:
        """[K] bool, false for arms whose movie is masked or retired: they are not on offer. None when all are."""
        statuses = np.array([movie.status == "active" for movie in self.card.catalogue], bool)
        return None if statuses.all() else statuses

    def scores(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What each arm is expected to bring, and how unsure that is.

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
        candidates: Sequence[Sequence[int]] | None = None,
        exploration: Exploration | None = None,
    ) -> np.ndarray:
        """The probability of each arm, by the card's exploration unless another is given.

        Args:
          observations: [B, D] float32.
          candidates: for each row the arms on offer, all when empty; None when all are for every row. Of them, those
            of movies that are masked or retired are not.
          exploration: instead of the card's.

        Returns:
          [B, K] float64, rows summing to 1; exactly 0 where the arm is not on offer.

        Raises:
          ValueError: the observations have another length, a row has no arm on offer, or the scores are not finite.
        """
        settings = exploration or self.card.exploration
        mask = mask_of(candidates, self.card.num_actions) if candidates is not None else None
        if self.active is not None:
            mask = np.tile(self.active, (len(observations), 1)) if mask is None else mask & self.active
        blocks = []
        for start in range(0, max(len(observations), 1), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            mean, std = self.scores(observations[rows])
            blocks.append(explorers.probabilities(settings, mean, std, mask[rows] if mask is not None else None))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def mask_of(candidates: Sequence[Sequence[int]], num_actions: int) -> np.ndarray | None:
    """[B, K] bool, true where an arm is on offer (an empty row offers all); None when every row offers all."""
    if not any(candidates):
        return None
    mask = np.zeros((len(candidates), num_actions), bool)
    for row, on_offer in enumerate(candidates):
        mask[row, on_offer or slice(None)] = True
    return mask


def load(folder: Path) -> Policy:
    """The policy in `folder`.

    Raises InputError, naming the file and what is wrong with it, for a folder that is no policy or holds half of one.
    """
    card = read_card(folder)
    explorers.check(card.exploration)
    if not any(movie.status == "active" for movie in card.catalogue) and card.catalogue:
        raise InputError(f"{folder / policies.CARD_NAME}: catalogue must have an active movie")
    return Policy(card, _read_scorer(folder, card))


def read_card(folder: Path) -> PolicyCard:
    """The card of the policy in `folder`. Raises InputError."""
    path = folder / policies.CARD_NAME
    try:
        return policies.decode_card(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def baseline(card: PolicyCard) -> Policy:
    """The declared safe policy for `card`'s arms and observations: uniform over what is on offer. It cannot fail."""
    safe = msgspec.structs.replace(
        card,
        version=BASELINE_VERSION,
        parent=None,
        algorithm="uniform",
        hyperparameters={},
        trained_on=[],
        exploration=Exploration(strategy="uniform"),
        evaluation=None,
    )

    def scorer(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nothing_known = np.zeros((len(observations), card.num_actions))
        return nothing_known, nothing_known

    return Policy(safe, scorer)


def _read_scorer(folder: Path, card: PolicyCard) -> Scorer:
    """What is there, the lightest form first."""
    if (path := folder / policies.LINEAR_NAME).is_file():
        arrays = _read_arrays(path)
        k, d = card.num_actions, card.observation_dim
        _check(path, arrays, {"theta": (k, d), "covariance": (k, d, d), "num_samples": (k,)})
        return _scorer([], arrays["theta"], np.zeros(k), arrays["covariance"])
    if (path := folder / policies.NETWORK_NAME).is_file():
        return _read_network(path, card)
    if (path := folder / policies.SAVED_MODEL_NAME).is_dir():
        return _read_saved_model(path, card)
    raise InputError(f"{folder / policies.LINEAR_NAME}: is missing")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as raw, np.lib.npyio.NpzFile(raw, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable npz file: {error}") from None


def _check(path: Path, arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises InputError unless all are there, of these shapes, and of numbers that can be."""
    for name, shape in shapes.items():
        if name not in arrays:
            raise InputError(f"{path}: {name} is missing")
        if arrays[name].shape != shape:
            raise InputError(f"{path}: {name} must have shape {list(shape)}, got {list(arrays[name].shape)}")
        if arrays[name].dtype.kind not in "fiu" or not np.isfinite(arrays[name]).all():
            raise InputError(f"{path}: {name} must be finite numbers")
    if "covariance" in shapes and not (np.diagonal(arrays["covariance"], axis1=1, axis2=2) > 0).all():
        raise InputError(f"{path}: covariance must have a positive diagonal")


def _read_network(path: Path, card: PolicyCard) -> Scorer:
    arrays = _read_arrays(path)
    layers = []
    width = card.observation_dim
    for index in range(sum(name.startswith("weights_") for name in arrays)):
        weights, bias = f"weights_{index}", f"bias_{index}"
        out = arrays[bias].shape[-1] if arrays.get(bias) is not None and arrays[bias].ndim else 0
        _check(path, arrays, {weights: (width, out), bias: (out,)})
        layers.append((arrays[weights], arrays[bias]))
        width = out
    k = card.num_actions
    shapes: dict[str, tuple[int, ...]] = {"theta": (k, width), "bias": (k,), "num_samples": (k,)}
    if "covariance" in arrays:
        shapes["covariance"] = (k, width, width)
    _check(path, arrays, shapes)
    return _scorer(layers, arrays["theta"], arrays["bias"], arrays.get("covariance"))


def _read_saved_model(path: Path, card: PolicyCard) -> Scorer:
    """The `scores` signature of a policy that has no numpy form: observation [B, D] to mean and std [B, K]."""
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


def _scorer(
    layers: list[tuple[np.ndarray, np.ndarray]], theta: np.ndarray, bias: np.ndarray, covariance: np.ndarray | None
) -> Scorer:
    """mean theta_k . e + bias_k, std sqrt(e^T covariance_k e), where e is the observation after the layers, each a relu.

    Without layers and bias this is LinUCB's (Li et al., 2010, algorithm 1). The quadratic form is a dot product with
    the products e_i e_j, i <= j: half the work of the plain form, and one matrix product for all arms. Always in blocks
    of eight rows, the last filled up with zeros: BLAS adds up matrices of other shapes in other orders, and a
    decision's scores may not depend on the batch it came in, or a replayed propensity would differ in its last digits.
    """
    num_actions, encoding_dim = theta.shape
    wide_layers = [(weights.astype(np.float64), bias.astype(np.float64)) for weights, bias in layers]
    means = np.ascontiguousarray(theta.astype(np.float64).T)  # [E, K]
    biased = bias.astype(np.float64) if bias.any() else None
    left, right = np.triu_indices(encoding_dim)
    if covariance is not None:
        symmetric = covariance.astype(np.float64)
        weights = (symmetric + symmetric.transpose(0, 2, 1))[:, left, right]
        weights[:, left == right] /= 2
        weights = np.ascontiguousarray(weights.T)  # [E (E + 1) / 2, K]

    def scorer(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count, observation_dim = observations.shape
        rows = np.zeros((-(-count // _BLOCK_ROWS) * _BLOCK_ROWS, observation_dim))
        rows[:count] = observations
        encoded = rows.reshape(-1, _BLOCK_ROWS, observation_dim)
        for layer, layer_bias in wide_layers:
            encoded = np.matmul(encoded, layer)
            encoded += layer_bias
            np.maximum(encoded, 0.0, out=encoded)
        mean = np.matmul(encoded, means)
        if biased is not None:
            mean += biased
        mean = mean.reshape(-1, num_actions)[:count]
        if covariance is None:
            return mean, np.zeros_like(mean)
        products = encoded.take(left, axis=2) * encoded.take(right, axis=2)
        variance = np.matmul(products, weights)
        np.sqrt(np.maximum(variance, 0.0, out=variance), out=variance)  # a rounding below 0 is 0
        return mean, variance.reshape(-1, num_actions)[:count]

    return scorer
