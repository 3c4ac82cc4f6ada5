"""Linear bandits from their sufficient statistics: numpy alone, float64, one pass.

Every model below depends on the interactions with action k only through

    A_k = sum of x x^T      b_k = sum of r x      n_k = number of interactions

The statistics of two disjoint sets of interactions add up. So continuing from a checkpoint, or adding the statistics of
many machines, gives the numbers of one pass over everything. `disjoint`, `shared` and `hybrid` turn them into a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np


@dataclass(frozen=True)
class SufficientStatistics:
    """The evidence of linear policies: `a` [K, D, D], `b` [K, D], `n` [K], all float64. `add` changes them in place."""

    a: np.ndarray
    b: np.ndarray
    n: np.ndarray

    @classmethod
    def zeros(cls, num_actions: int, observation_dim: int) -> Self:
        """Statistics without evidence."""
        return cls(
            np.zeros((num_actions, observation_dim, observation_dim)),
            np.zeros((num_actions, observation_dim)),
            np.zeros(num_actions),
        )

    @property
    def num_actions(self) -> int:
        """K, the number of actions."""
        return self.b.shape[0]

    @property
    def observation_dim(self) -> int:
        """D, the length of an observation."""
        return self.b.shape[1]

    def add(self, observation: np.ndarray, action: np.ndarray, reward: np.ndarray, weight: float = 1.0) -> None:
        """Adds interactions: observation [N, D], action [N] in [0, K), reward [N], each with `weight`."""
        # Sorted by action, the rows of one action lie together, and one matrix product of [x, r] with itself gives
        # their sums of x x^T and of r x. numpy sorts numbers of 16 bits by radix.
        order = np.argsort(action.astype(np.uint16) if self.num_actions < 2**16 else action, kind="stable")
        rows = np.empty((len(action), self.observation_dim + 1))
        rows[:, :-1] = observation[order]
        rows[:, -1] = reward[order]
        counts = np.bincount(action, minlength=self.num_actions)
        ends = np.cumsum(counts)
        for k in np.flatnonzero(counts):
            mine = rows[ends[k] - counts[k] : ends[k]]
            products = weight * (mine.T @ mine)
            self.a[k] += products[:-1, :-1]
            self.b[k] += products[:-1, -1]
        self.n[:] += weight * counts

    def merge(self, other: "SufficientStatistics") -> None:
        """Adds the statistics of other interactions."""
        self.a[:] += other.a
        self.b[:] += other.b
        self.n[:] += other.n

    def scale(self, factor: float) -> None:
        """Multiplies the weight of all evidence so far by `factor`."""
        for array in (self.a, self.b, self.n):
            array *= factor

    def grown(self, num_actions: int) -> "SufficientStatistics":
        """The same evidence for more actions; the new ones have none."""
        more = num_actions - self.num_actions
        return SufficientStatistics(
            *(np.pad(array, [(0, more)] + [(0, 0)] * (array.ndim - 1)) for array in (self.a, self.b, self.n))
        )

    def without(self, actions: Sequence[int]) -> "SufficientStatistics":
        """The same evidence but for `actions`, which have none."""
        left = SufficientStatistics(self.a.copy(), self.b.copy(), self.n.copy())
        for array in (left.a, left.b, left.n):
            array[actions] = 0.0
        return left


class Posterior(NamedTuple):
    """Mean and covariance of every action's coefficients, given the evidence, for reward noise of variance 1."""

    theta: np.ndarray  # [K, D]
    covariance: np.ndarray  # [K, D, D]


def posterior(
    statistics: SufficientStatistics, model: str, tikhonov: float, arm_tikhonov: float, features: np.ndarray
) -> Posterior:
    """The posterior of a model: "none" (`disjoint`), "shared" or "hybrid", over arm `features` [K, F].

    Raises ValueError for an unknown model.
    """
    match model:
        case "none":
            return disjoint(statistics, tikhonov)
        case "shared":
            return shared(statistics, tikhonov, features)
        case "hybrid":
            return hybrid(statistics, tikhonov, arm_tikhonov, features)
        case _:
            raise ValueError(f"model must be none, shared or hybrid, got {model!r}")


def disjoint(statistics: SufficientStatistics, tikhonov: float) -> Posterior:
    """A separate model per action, by ridge regression: theta_k = (A_k + tikhonov I)^-1 b_k.

    Li et al. 2010, "A contextual-bandit approach to personalized news article recommendation", algorithm 1.
    """
    inverse = np.linalg.inv(statistics.a + tikhonov * np.eye(statistics.observation_dim))
    return Posterior(np.einsum("kde,ke->kd", inverse, statistics.b), _symmetric(inverse))


def shared(statistics: SufficientStatistics, tikhonov: float, arm_features: np.ndarray) -> Posterior:
    """One model for all actions, linear in the products of observation and arm features: theta_k = M f_k.

    So the rewards of one movie inform the model of every similar movie, also of one without interactions. With M [D, F]
    flattened to m, the reward's features are x (x) f_k, so the regression needs sum_k A_k (x) f_k f_k^T and
    sum_k b_k (x) f_k: sums of the same statistics.

    Args:
      statistics: the evidence.
      tikhonov: ridge on m.
      arm_features: [K, F].
    """
    mean, covariance = shared_coefficients(crossed(statistics.a, arm_features), statistics.b.T @ arm_features, tikhonov)
    return Posterior(arm_features @ mean.T, of_each_arm(covariance, arm_features, statistics.observation_dim))


def hybrid(
    statistics: SufficientStatistics, tikhonov: float, arm_tikhonov: float, arm_features: np.ndarray
) -> Posterior:
    """The shared model plus a term per action: theta_k = M f_k + beta_k.

    An action without evidence is predicted from its features; with evidence its own term takes over. Li et al. 2010,
    algorithm 2, solved in blocks: with G_k = (A_k + arm_tikhonov I)^-1, integrating beta_k out leaves for M a
    regression with arm_tikhonov G_k A_k and arm_tikhonov G_k b_k in the places of A_k and b_k (`own_terms`); then

        theta_k = G_k b_k + arm_tikhonov G_k M f_k
        covariance_k = G_k + arm_tikhonov^2 G_k Cov(M f_k) G_k

    Args:
      statistics: the evidence.
      tikhonov: ridge on M.
      arm_tikhonov: ridge on every beta_k; infinity would be `shared`.
      arm_features: [K, F].
    """
    own = own_terms(statistics.a, statistics.b, arm_tikhonov)
    mean, covariance = shared_coefficients(crossed(own.a, arm_features), own.b.T @ arm_features, tikhonov)
    prior = of_each_arm(covariance, arm_features, statistics.observation_dim)
    return Posterior(own.theta(arm_features @ mean.T), own.covariance(prior))


@dataclass(frozen=True)
class OwnTerms:
    """The arms' own terms of `hybrid`, and what their evidence leaves for the shared coefficients."""

    arm_tikhonov: float
    inverse: np.ndarray  # [K, D, D]: G_k
    own: np.ndarray  # [K, D]: G_k b_k
    a: np.ndarray  # [K, D, D]: arm_tikhonov G_k A_k
    b: np.ndarray  # [K, D]: arm_tikhonov G_k b_k

    def theta(self, prior: np.ndarray) -> np.ndarray:
        """[K, D], from the shared M f_k [K, D]."""
        return self.own + self.arm_tikhonov * np.einsum("kde,ke->kd", self.inverse, prior)

    def covariance(self, prior: np.ndarray) -> np.ndarray:
        """[K, D, D], from the covariance of the shared M f_k [K, D, D]."""
        return _symmetric(self.inverse + self.arm_tikhonov**2 * (self.inverse @ prior @ self.inverse))


def own_terms(a: np.ndarray, b: np.ndarray, arm_tikhonov: float) -> OwnTerms:
    """The own terms of arms with statistics a [K, D, D] and b [K, D]; each arm's depend on its statistics alone."""
    inverse = np.linalg.inv(a + arm_tikhonov * np.eye(b.shape[1]))
    own = np.einsum("kde,ke->kd", inverse, b)
    return OwnTerms(arm_tikhonov, inverse, own, _symmetric(arm_tikhonov * (inverse @ a)), arm_tikhonov * own)


def crossed(a: np.ndarray, arm_features: np.ndarray) -> np.ndarray:
    """sum_k A_k (x) f_k f_k^T [D F, D F], from a [K, D, D] and arm features [K, F]: one matrix product for any K."""
    num_actions, dim = a.shape[:2]
    size = arm_features.shape[1]
    products = (a.reshape(num_actions, -1).T @ _products(arm_features)).reshape(dim, dim, size, size)
    return products.transpose(0, 2, 1, 3).reshape(dim * size, dim * size)


def shared_coefficients(products: np.ndarray, moment: np.ndarray, tikhonov: float) -> tuple[np.ndarray, np.ndarray]:
    """M [D, F], and the covariance of M flattened [D F, D F]; `products` as `crossed` gives them, moment [D, F]."""
    covariance = np.linalg.inv(products + tikhonov * np.eye(len(products)))
    return (covariance @ moment.ravel()).reshape(moment.shape), covariance


def of_each_arm(covariance: np.ndarray, arm_features: np.ndarray, dim: int) -> np.ndarray:
    """[K, D, D]: the covariance of M f_k, from that of M."""
    size = arm_features.shape[1]
    blocks = covariance.reshape(dim, size, dim, size).transpose(0, 2, 1, 3).reshape(dim * dim, size * size)
    return _symmetric((_products(arm_features) @ blocks.T).reshape(-1, dim, dim))


def _products(arm_features: np.ndarray) -> np.ndarray:
    """[K, F^2]: f_k f_k^T, flattened."""
    return (arm_features[:, :, np.newaxis] * arm_features[:, np.newaxis, :]).reshape(len(arm_features), -1)


def _symmetric(matrices: np.ndarray) -> np.ndarray:
    return (matrices + matrices.transpose(0, 2, 1)) / 2
