"""A simulated log in the making: a policy chooses, learns, and its regret is known. numpy alone, for ours and for peers."""

from typing import NamedTuple, Protocol

import numpy as np


class World(NamedTuple):
    """Who comes, what they would give each movie, and how their reward is blurred; the same for every policy."""

    observations: np.ndarray  # [N, D] float32
    expected: np.ndarray  # [N, K]
    noise: np.ndarray  # [N]


class Learner(Protocol):
    """A policy under test."""

    def choose(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[B, D] -> actions [B] and their propensities [B]."""

    def learn(
        self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, propensities: np.ndarray
    ) -> None:
        """Takes in what came of them."""


def sample(observations: np.ndarray, expected: np.ndarray, reward_noise: float, decisions: int, seed: int) -> World:
    """`decisions` visits of users drawn uniformly: observations [U, D], expected [U, K]."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, len(observations), decisions)
    return World(observations[users], expected[users], rng.normal(0, reward_noise, decisions))


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
        learner.learn(observations, actions, earned[rows] + world.noise[rows], propensities)
    return earned
