"""A simulated log in the making: a policy chooses, learns, and its regret is known. numpy alone, for ours and for peers."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from beam_jobs.movielens import MovieLens


class World(NamedTuple):
    """Who comes, what they would give each movie, and how their reward is blurred; the same for every policy."""

    observations: np.ndarray  # [N, D] float32
    expected: np.ndarray  # [N, K]
    lots: np.ndarray  # [N] noise to add; of clicks, a number in [0, 1) below which a probability becomes a click
    features: np.ndarray  # [K, F] what is known of each movie, a constant 1 first
    clicks: bool = False

    def rewards(self, rows: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """[B] rows and the action chosen in each -> [B] observed rewards."""
        expected, lots = self.expected[rows, actions], self.lots[rows]
        return (lots < expected).astype(float) if self.clicks else expected + lots


class Learner(Protocol):
    """A policy under test."""

    def choose(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[B, D] -> actions [B] and their propensities [B]."""

    def learn(
        self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, propensities: np.ndarray
    ) -> None:
        """Takes in what came of them."""


def sample(viewers: "MovieLens", decisions: int, seed: int, angle: float = 0.0) -> World:
    """`decisions` visits of users drawn uniformly, while tastes or popularity turn by `angle` radians in all."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, viewers.num_users, decisions)
    angles = np.arange(decisions) * (angle / decisions)
    lots = rng.random(decisions) if viewers.clicks else rng.normal(0, viewers.reward_noise, decisions)
    features = np.concatenate([np.ones((viewers.num_actions, 1)), viewers.known_factors], axis=1)
    expected = viewers.expected_of_all_actions(users, angles)
    return World(viewers.observations[users], expected, lots, features, viewers.clicks)


def play(world: World, learner: Learner, batch: int, uniform_first: bool, seed: int) -> np.ndarray:
    """Runs the learner through the world, `batch` decisions between updates; the first batch uniform where asked.

    Returns:
      [N] the expected reward of what was chosen.
    """
    rng = np.random.default_rng([seed, 1])
    decisions, num_actions = world.expected.shape
    earned = np.empty(decisions)
    for begin in range(0, decisions, batch):
        rows = np.arange(begin, min(begin + batch, decisions))
        observations = world.observations[rows]
        if begin == 0 and uniform_first:
            actions, propensities = rng.integers(0, num_actions, len(rows)), np.full(len(rows), 1 / num_actions)
        else:
            actions, propensities = learner.choose(observations)
        earned[rows] = world.expected[rows, actions]
        learner.learn(observations, actions, world.rewards(rows, actions), propensities)
    return earned
