"""Candidates whose true gain over the anchor is known, and the decisions that both make, in worlds of MovieLens viewers.

The world is linear, so a candidate is the anchor with coefficients that are moved towards the true ones (better) or towards
those of other arms (worse), until its true value is the one that is wanted.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np

from beam_jobs.movielens import MovieLens
from contracts.policies import Exploration, PolicyCard, TrainedWindow
from contracts.windows import TrainingWindow
from orchestration.watch import Rows
from predictor.policy import Policy
from trainer.linear import SufficientStatistics, disjoint

TIKHONOV = 0.3
ANCHOR_SHARE_OF_ORACLE = 0.8  # leaves room for a candidate that is 10% better
DETOUR = 0.05  # a candidate that is no better is first made this much better, so that it differs in its choices
HALVINGS = 25  # of the interval in which the wanted value lies
START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """Viewers, and an anchor that was trained on uniform decisions until it earns enough of what the oracle earns."""

    def __init__(self, viewers: MovieLens, exploration: Exploration, seed: int) -> None:
        self.viewers = viewers
        self._rng = np.random.default_rng([seed, 7])
        self._users = {row.tobytes(): user for user, row in enumerate(viewers.observations)}
        statistics = SufficientStatistics.zeros(viewers.num_actions, viewers.observation_dim)
        observations = viewers.observations.astype(np.float64)
        while True:
            users = self._rng.integers(0, viewers.num_users, 5 * viewers.num_actions)
            action = self._rng.integers(0, viewers.num_actions, len(users))
            statistics.add(viewers.observations[users], action, viewers.observed_rewards(users, action, self._rng))
            posterior = disjoint(statistics, TIKHONOV)
            variance = np.stack([((observations @ one) * observations).sum(axis=1) for one in posterior.covariance], 1)
            self._std, self._theta = np.sqrt(variance), posterior.theta
            self.anchor = self.policy(posterior.theta, exploration, "anchor")
            if self.value(self.anchor) >= ANCHOR_SHARE_OF_ORACLE * viewers.reference.oracle:
                return

    def policy(self, theta: np.ndarray, exploration: Exploration, version: str) -> Policy:
        """A policy with these coefficients [K, D] and the anchor's uncertainty. Its scores of all viewers are kept."""
        window = TrainingWindow(START, START + timedelta(seconds=5))
        card = PolicyCard(
            version=version,
            parent=None if version == "anchor" else "anchor",
            algorithm="lin_ucb",
            hyperparameters={"tikhonov": TIKHONOV},
            observation_dim=theta.shape[1],
            num_actions=len(theta),
            catalogue=[],
            trained_on=[TrainedWindow(window=window, split="train", records=1)],
            exploration=exploration,
        )
        mean = self.viewers.observations @ theta.T

        def scores(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            users = [self._users[row.tobytes()] for row in observations]
            return mean[users], self._std[users]

        return Policy(card, scores)

    def value(self, policy: Policy) -> float:
        """The true reward per decision."""
        probabilities = policy.probabilities(self.viewers.observations)
        return float((probabilities * self.viewers.expected_reward_matrix).sum(axis=1).mean())

    def candidate(self, gain: float, exploration: Exploration) -> Policy:
        """A candidate whose true value is (1 + gain) times the anchor's."""

        def of(theta: np.ndarray) -> Policy:
            return self.policy(theta, exploration, "candidate")

        def between(start: np.ndarray, end: np.ndarray, wanted: float) -> np.ndarray:
            """A mixture of both whose value is the wanted one, which lies between theirs."""
            low, high = 0.0, 1.0
            rises = self.value(of(end)) > self.value(of(start))
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                if (self.value(of((1 - middle) * start + middle * end)) < wanted) == rises:
                    low = middle
                else:
                    high = middle
            return (1 - high) * start + high * end

        value = self.value(self.anchor)
        wanted = (1 + gain) * value
        detour = max(wanted, (1 + DETOUR) * value)
        theta = between(self._theta, self.viewers.movie_factors, detour)
        if wanted < detour:
            mixed_up = theta[self._rng.permutation(len(theta))]
            if self.value(of(mixed_up)) > wanted:
                theta, mixed_up = mixed_up, -mixed_up
            theta = between(theta, mixed_up, wanted)
        return of(theta)

    def decisions(self, candidate: Policy, anchor_share: float, count: int) -> tuple[Rows, np.ndarray]:
        """What candidate and anchor decide together for viewers who come at random, and the propensities."""
        users = self._rng.integers(0, self.viewers.num_users, count)
        observation = self.viewers.observations[users]
        by_anchor = self._rng.random(count) < anchor_share
        new, old = (policy.probabilities(observation) for policy in (candidate, self.anchor))
        probabilities = np.where(by_anchor[:, np.newaxis], old, new)
        cumulative = probabilities.cumsum(axis=1)
        action = (cumulative > self._rng.random((count, 1)) * cumulative[:, -1:]).argmax(axis=1)
        reward = self.viewers.observed_rewards(users, action, self._rng)
        rows = Rows(observation, [[]] * count, action, reward, by_anchor)
        return rows, probabilities[np.arange(count), action]

    def trial(self, candidate: Policy, anchor_share: float, step: int, steps: int) -> Iterator[Rows]:
        """What both decide together, `step` decisions at a time."""
        for _ in range(steps):
            yield self.decisions(candidate, anchor_share, step)[0]
