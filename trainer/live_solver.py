"""Solves the arms whose evidence changed: a base's sufficient statistics plus the provisional sums of open windows.

The evidence is that of a training on these windows: a window counts once, and with a half-life the base and earlier
windows weigh less. Only what changed is solved. With one model per arm that is the changed arms. With arm features the
shared coefficients change with every interaction, and with them the expected rewards of all arms, which are exact in
every version; the covariance of an arm without new interactions is as old as the last `solve_all`.
"""

from collections.abc import Mapping

import numpy as np

from contracts import live_sums
from contracts.live_sums import ArmSums
from contracts.policies import PolicyCard
from contracts.policy_arrays import ArmChanges, PolicyArrays
from contracts.windows import TrainingWindow
from trainer import arms, forgetting, linear
from trainer.linear import OwnTerms, SufficientStatistics


class LiveSolver:
    """The coefficients of a base with provisional sums added, float32 as they are served."""

    def __init__(self, card: PolicyCard, base: SufficientStatistics, arrays: PolicyArrays) -> None:
        """Solves nothing yet: the coefficients are the base's.

        Args:
          card: the base's.
          base: the statistics that it was trained from.
          arrays: what it serves with.
        """
        assert arrays.covariance is not None
        self._base = base
        self._upper = np.triu_indices(base.observation_dim)
        self._of_base = (arrays.theta, arrays.num_samples.astype(np.float32), arrays.covariance[:, *self._upper])
        self._theta, self._num_samples, self._covariance = (array.copy() for array in self._of_base)
        self._published = (self._theta.copy(), self._num_samples.copy(), self._covariance.copy())
        self._total = SufficientStatistics(base.a.copy(), base.b.copy(), base.n.copy())
        hyperparameters = card.hyperparameters
        self._card = card
        self._forgets = bool(hyperparameters.get("half_life", 0.0))
        self._tikhonov = float(hyperparameters["tikhonov"])
        self._weights: dict[TrainingWindow | None, float] = {None: 1.0}  # None: the base
        self._model: _SharedModel | None = None
        if (kind := str(hyperparameters.get("arm_features", "none"))) != "none":
            own = float(hyperparameters["arm_tikhonov"]) if kind == "hybrid" else None
            self._model = _SharedModel(
                self._total, arms.arm_features(card.catalogue, card.arm_columns), self._tikhonov, own
            )

    @property
    def num_actions(self) -> int:
        """K, the number of arms."""
        return self._base.num_actions

    def solve(self, windows: Mapping[TrainingWindow, ArmSums], changed: np.ndarray) -> None:
        """Takes the sums of all windows that count, and solves what depends on the `changed` arms.

        Args:
          windows: the cumulative sums by window.
          changed: the arms whose sums differ from those of the call before, ascending. If a window was added or left
            out and there is a half-life, all arms are.
        """
        weights = self._weights_of(windows)
        if weights != self._weights and self._forgets:
            changed = np.arange(self.num_actions)
        self._weights = weights
        changed = changed[changed < self.num_actions]
        if not len(changed):
            return
        self._sum_up(windows, changed)
        total = SufficientStatistics(self._total.a[changed], self._total.b[changed], self._total.n[changed])
        if self._model is None:
            theta, covariance = linear.disjoint(total, self._tikhonov)
            self._theta[changed] = theta
        else:
            self._model.update(changed, total)
            self._theta[:] = self._model.theta()
            covariance = self._model.covariance(changed)
        self._covariance[changed] = covariance[:, *self._upper]
        self._num_samples[changed] = total.n

    def solve_all(self) -> None:
        """Brings the covariance of every arm up to date, and the rounding of the sums over arms back to that of one sum."""
        if self._model is not None:
            self._model.renew(self._total)
            self._theta[:] = self._model.theta()
            self._covariance[:] = self._model.covariance(np.arange(self.num_actions))[:, *self._upper]

    def since_published(self) -> ArmChanges:
        """What differs from the version that was published last."""
        return self._changes(self._published)

    def since_base(self) -> ArmChanges:
        """What differs from the base."""
        return self._changes(self._of_base)

    def publish(self) -> None:
        """Marks the current coefficients as those published last."""
        for kept, current in zip(self._published, (self._theta, self._num_samples, self._covariance), strict=True):
            kept[:] = current

    def _changes(self, before: tuple[np.ndarray, np.ndarray, np.ndarray]) -> ArmChanges:
        theta, num_samples, covariance = before
        other = np.flatnonzero((self._theta != theta).any(axis=1) | (self._num_samples != num_samples))
        wider = np.flatnonzero((self._covariance != covariance).any(axis=1))
        return ArmChanges(
            other.astype(np.int32),
            self._theta[other],
            self._num_samples[other],
            wider.astype(np.int32),
            self._covariance[wider],
        )

    def _weights_of(self, windows: Mapping[TrainingWindow, ArmSums]) -> dict[TrainingWindow | None, float]:
        """The weight of each window's evidence, and of the base's: as after a training on all of them."""
        order: list[TrainingWindow | None] = [None, *sorted(windows)]
        later = range(len(order) - 1, -1, -1)
        return {window: forgetting.weight(self._card, count) for window, count in zip(order, later, strict=True)}

    def _sum_up(self, windows: Mapping[TrainingWindow, ArmSums], changed: np.ndarray) -> None:
        weight = self._weights[None]
        for total, base in zip(
            (self._total.a, self._total.b, self._total.n), (self._base.a, self._base.b, self._base.n), strict=True
        ):
            total[changed] = weight * base[changed]
        for window, sums in windows.items():
            found = live_sums.evidence(live_sums.select(sums, changed))
            weight = self._weights[window]
            self._total.a[found.arms] += weight * found.a
            self._total.b[found.arms] += weight * found.b
            self._total.n[found.arms] += weight * found.n


class _SharedModel:
    """The shared coefficients over arm features, with each arm's own term if there is a ridge on it.

    The sums over all arms are kept, and changed by the difference that an arm makes.
    """

    def __init__(
        self, total: SufficientStatistics, features: np.ndarray, tikhonov: float, arm_tikhonov: float | None
    ) -> None:
        self._features = features
        self._tikhonov = tikhonov
        self._arm_tikhonov = arm_tikhonov
        self.renew(total)

    def renew(self, total: SufficientStatistics) -> None:
        """Adds up all arms."""
        self._own = linear.own_terms(total.a, total.b, self._arm_tikhonov) if self._arm_tikhonov is not None else None
        self._a, self._b = (self._own.a, self._own.b) if self._own else (total.a.copy(), total.b.copy())
        self._products = linear.crossed(self._a, self._features)
        self._moment = self._b.T @ self._features
        self._solve()

    def update(self, changed: np.ndarray, total: SufficientStatistics) -> None:
        """Replaces the statistics of the changed arms; `total` holds those arms alone."""
        a, b = total.a, total.b
        if self._own is not None:
            own = linear.own_terms(total.a, total.b, self._own.arm_tikhonov)
            a, b = own.a, own.b
            self._own.inverse[changed], self._own.own[changed] = own.inverse, own.own
        features = self._features[changed]
        self._products += linear.crossed(a - self._a[changed], features)
        self._moment += (b - self._b[changed]).T @ features
        self._a[changed], self._b[changed] = a, b
        self._solve()

    def theta(self) -> np.ndarray:
        """[K, D]."""
        prior = self._features @ self._mean.T
        return self._own.theta(prior) if self._own is not None else prior

    def covariance(self, chosen: np.ndarray) -> np.ndarray:
        """[n, D, D], of the chosen arms."""
        prior = linear.of_each_arm(self._covariance, self._features[chosen], self._mean.shape[0])
        if self._own is None:
            return prior
        own = self._own
        of_chosen = OwnTerms(own.arm_tikhonov, own.inverse[chosen], own.own[chosen], own.a[chosen], own.b[chosen])
        return of_chosen.covariance(prior)

    def _solve(self) -> None:
        self._mean, self._covariance = linear.shared_coefficients(self._products, self._moment, self._tikhonov)
