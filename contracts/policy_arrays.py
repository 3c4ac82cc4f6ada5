"""The arrays of a policy: their codec (`linear.npz`, `network.npz`), and the scores that they give, in numpy alone.

An observation x [D] first passes through the layers, of which a linear policy has none: x -> relu(x weights + bias).
With e [E] the result, the expected reward of arm k and its standard deviation are

    mean_k = theta_k . e + bias_k        std_k = sqrt(e^T covariance_k e)

Without layers and bias these are LinUCB's (Li et al. 2010, "A contextual-bandit approach to personalized news article
recommendation", algorithm 1).
"""

import copy
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contracts.errors import InputError
from contracts.policies import LINEAR_NAME, NETWORK_NAME, PolicyCard

_BLOCK_ROWS = 8


class ArmChanges(NamedTuple):
    """New coefficients of some arms over the same layers. An arm may be in `arms`, in `covariance_arms`, or in both."""

    arms: np.ndarray  # [n] int32, ascending
    theta: np.ndarray  # [n, E] float32
    num_samples: np.ndarray  # [n] float32
    covariance_arms: np.ndarray  # [m] int32, ascending
    covariance: np.ndarray  # [m, E (E + 1) / 2] float32: the upper triangles, row by row


class PolicyArrays(NamedTuple):
    """What a policy has learned, in the form that it serves in; float32 in the files."""

    layers: list[tuple[np.ndarray, np.ndarray]]  # ([in, out], [out]) each
    theta: np.ndarray  # [K, E]
    bias: np.ndarray  # [K]; zeros for a linear policy
    covariance: np.ndarray | None  # [K, E, E]; None where the policy does not estimate its uncertainty
    num_samples: np.ndarray  # [K], interactions with each arm that the policy was trained on

    @classmethod
    def linear(cls, theta: np.ndarray, covariance: np.ndarray, num_samples: np.ndarray) -> "PolicyArrays":
        """A linear policy's: theta [K, D], covariance [K, D, D], num_samples [K].

        Numbers that do not fit into float32 become infinite, and `write` refuses them.
        """
        return cls([], _float32(theta), np.zeros(len(theta), np.float32), _float32(covariance), num_samples)

    def with_posterior(self, theta: np.ndarray, covariance: np.ndarray) -> "PolicyArrays":
        """The same layers under a linear model of their output: theta [K, E], covariance [K, E, E]."""
        return self._replace(theta=_float32(theta), covariance=_float32(covariance))

    def changed(self, changes: ArmChanges) -> "PolicyArrays":
        """A copy with the changes; the policy must estimate its uncertainty."""
        assert self.covariance is not None
        theta, num_samples, covariance = self.theta.copy(), self.num_samples.copy(), self.covariance.copy()
        theta[changes.arms], num_samples[changes.arms] = changes.theta, changes.num_samples
        left, right = np.triu_indices(theta.shape[1])
        covariance[changes.covariance_arms[:, None], left, right] = changes.covariance
        covariance[changes.covariance_arms[:, None], right, left] = changes.covariance
        return self._replace(theta=theta, num_samples=num_samples, covariance=covariance)


class Scorer:
    """Scores observations, in float64.

    It works in blocks of eight rows, the last one filled up with zeros. BLAS adds up matrices of other shapes in
    another order, so without blocks the last digits of a decision's scores, and with them the replayed propensity,
    would depend on the batch that the decision came in.
    """

    def __init__(self, arrays: PolicyArrays) -> None:
        self._layers = [(weights.astype(np.float64), bias.astype(np.float64)) for weights, bias in arrays.layers]
        # An arm's numbers stand together, so that those of a few arms can be taken without reading all.
        self._means = np.ascontiguousarray(arrays.theta.astype(np.float64))  # [K, E]
        self._bias = arrays.bias.astype(np.float64) if arrays.bias.any() else None
        self._variances: np.ndarray | None = None  # [K, E (E + 1) / 2]
        # e^T C e is a dot product with the products e_i e_j, i <= j: half the work of the plain form, and one matrix
        # product for all arms.
        self._left, self._right = left, right = np.triu_indices(arrays.theta.shape[1])
        if arrays.covariance is not None:
            symmetric = arrays.covariance.astype(np.float64)
            weights = (symmetric + symmetric.transpose(0, 2, 1))[:, left, right]
            weights[:, left == right] /= 2
            self._variances = np.ascontiguousarray(weights)

    def changed(self, changes: ArmChanges) -> "Scorer":
        """The scorer of the changed arrays, bit for bit. It copies what scoring reads, so this one stays as it is."""
        assert self._variances is not None
        scorer = copy.copy(self)
        scorer._means, scorer._variances = self._means.copy(), self._variances.copy()
        scorer._means[changes.arms] = changes.theta
        weights = changes.covariance.astype(np.float64) * np.where(self._left == self._right, 1.0, 2.0)
        scorer._variances[changes.covariance_arms] = weights
        return scorer

    @property
    def shape(self) -> tuple[int, int]:
        """K and E."""
        num_actions, width = self._means.shape
        return num_actions, width

    @property
    def estimates_uncertainty(self) -> bool:
        """Whether `scores` returns standard deviations that are not 0."""
        return self._variances is not None

    def scores(self, observations: np.ndarray, arms: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """[B, D] -> mean and std, [B, K] float64 each; std is 0 where the policy does not estimate its uncertainty.

        With `arms` [n] only those are scored: [B, n] each. A row's scores depend on its observation and on `arms` alone;
        their last digits may differ from those of the same arms among all.
        """
        encoded = encoded_blocks(self._layers, observations)
        mean = self._rows(self._mean(encoded, arms), len(observations))
        if self._variances is None:
            return mean, np.zeros_like(mean)
        products = encoded.take(self._left, axis=2) * encoded.take(self._right, axis=2)
        variances = self._variances if arms is None else self._variances[arms]
        variance = np.matmul(products, variances.T)
        np.sqrt(np.maximum(variance, 0.0, out=variance), out=variance)  # rounding may give a number just below 0
        return mean, self._rows(variance, len(observations))

    def __call__(self, observations: np.ndarray, arms: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """`scores`."""
        return self.scores(observations, arms)

    def means(self, observations: np.ndarray) -> np.ndarray:
        """[B, D] -> the mean alone, [B, K] float64, as in `scores`."""
        return self._rows(self._mean(encoded_blocks(self._layers, observations)), len(observations))

    def encode(self, observations: np.ndarray) -> np.ndarray:
        """[B, D] -> what the layers make of the observations, [B, E] float64."""
        return self._rows(encoded_blocks(self._layers, observations), len(observations))

    def _mean(self, encoded: np.ndarray, arms: np.ndarray | None = None) -> np.ndarray:
        means = self._means if arms is None else self._means[arms]
        mean: np.ndarray = np.matmul(encoded, means.T)
        if self._bias is not None:
            mean += self._bias if arms is None else self._bias[arms]
        return mean

    @staticmethod
    def _rows(blocks: np.ndarray, count: int) -> np.ndarray:
        return blocks.reshape(-1, blocks.shape[-1])[:count]


def encoded_blocks(layers: list[tuple[np.ndarray, np.ndarray]], observations: np.ndarray) -> np.ndarray:
    """[B, D] -> what the layers (float64) make of the observations, in blocks of rows: [blocks, 8, E] float64."""
    count, observation_dim = observations.shape
    rows = np.zeros((-(-count // _BLOCK_ROWS) * _BLOCK_ROWS, observation_dim))
    rows[:count] = observations
    encoded = rows.reshape(-1, _BLOCK_ROWS, observation_dim)
    for weights, bias in layers:
        encoded = np.matmul(encoded, weights)
        encoded += bias
        np.maximum(encoded, 0.0, out=encoded)
    return encoded


def write(policy: Path, arrays: PolicyArrays) -> None:
    """Writes the arrays into the folder of a policy: `network.npz` where there are layers, otherwise `linear.npz`.

    Raises InputError for arrays that `read` would refuse: training made numbers that do not fit into float32.
    """
    num_actions, width = arrays.theta.shape
    named: dict[str, np.ndarray] = {"theta": arrays.theta, "num_samples": arrays.num_samples}
    if arrays.covariance is not None:
        named["covariance"] = arrays.covariance
    if arrays.layers:
        named["bias"] = arrays.bias
        width = len(arrays.layers[0][0])
    for index, (weights, bias) in enumerate(arrays.layers):
        named |= {f"weights_{index}": weights, f"bias_{index}": bias}
    try:
        _decode(named, "trained policy", bool(arrays.layers), num_actions, width)
    except InputError as error:
        raise InputError(f"{error}: rewards or observations are too large, or a ridge too small") from None
    np.savez(policy / (NETWORK_NAME if arrays.layers else LINEAR_NAME), allow_pickle=False, **named)


def read(policy: Path, card: PolicyCard) -> PolicyArrays:
    """The arrays in the folder of a policy, whose shapes follow from its card.

    Raises InputError `<file>: <fact>`: the file is missing or unreadable; an array is missing, has another shape or
    holds a number that is not finite; or a variance is not above 0.
    """
    is_network = not (policy / LINEAR_NAME).is_file() and (policy / NETWORK_NAME).is_file()
    path = policy / (NETWORK_NAME if is_network else LINEAR_NAME)
    if not path.is_file():
        raise InputError(f"{path}: is missing")
    try:
        with path.open("rb") as raw, np.lib.npyio.NpzFile(raw, allow_pickle=False) as file:
            named = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable npz file: {error}") from None
    return _decode(named, str(path), is_network, card.num_actions, card.observation_dim)


def exist(policy: Path) -> bool:
    """Whether the folder of a policy holds arrays."""
    return any((policy / name).is_file() for name in (LINEAR_NAME, NETWORK_NAME))


def _decode(
    named: dict[str, np.ndarray], where: str, is_network: bool, num_actions: int, observation_dim: int
) -> PolicyArrays:
    layers, width = [], observation_dim
    for index in range(sum(name.startswith("weights_") for name in named) if is_network else 0):
        weights, bias = f"weights_{index}", f"bias_{index}"
        out = named[bias].shape[-1] if bias in named and named[bias].ndim else 0
        _check(named, where, {weights: (width, out), bias: (out,)})
        layers.append((named[weights], named[bias]))
        width = out
    shapes: dict[str, tuple[int, ...]] = {"theta": (num_actions, width)}
    if is_network:
        shapes["bias"] = (num_actions,)
    if "covariance" in named or not is_network:
        shapes["covariance"] = (num_actions, width, width)
    _check(named, where, shapes | {"num_samples": (num_actions,)})
    if "covariance" in named and not (np.diagonal(named["covariance"], axis1=1, axis2=2) > 0).all():
        raise InputError(f"{where}: covariance must have a positive diagonal")
    bias_of_arms = named["bias"] if is_network else np.zeros(num_actions, np.float32)
    return PolicyArrays(layers, named["theta"], bias_of_arms, named.get("covariance"), named["num_samples"])


def _check(named: dict[str, np.ndarray], where: str, shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if name not in named:
            raise InputError(f"{where}: {name} is missing")
        if named[name].shape != shape:
            raise InputError(f"{where}: {name} must have shape {list(shape)}, got {list(named[name].shape)}")
        if named[name].dtype.kind not in "fiu" or not np.isfinite(named[name]).all():
            raise InputError(f"{where}: {name} must be finite numbers")


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
