"""Viewers of a running predictor, for tests of whole runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from orchestration import policy_store
from predictor import policy as serving
from predictor.client import Client
from predictor.messages import Instance, SentReward
from tests.servers import Server


class Viewers:
    """Ask a predictor for movies and reward it at once, as their tastes say.

    While `candidate_reward` is set, that is what a candidate in its canary gets for whatever it shows.
    """

    def __init__(self, server: Server, root: Path, num_actions: int, rank: int) -> None:
        self._movielens = MovieLens.build(
            load_ratings("sample"), num_actions=num_actions, rank=rank, reward_noise=0.5, seed=0
        )
        self._client = Client(server.url, timeout_seconds=60)
        self._rng = np.random.default_rng(1)
        self._root = root
        self.candidate_reward: float | None = None

    def value(self, version: str) -> float:
        """The policy's expected reward a decision, over all users and the probabilities of its actions."""
        probabilities = serving.load(self._root / "policies" / version).probabilities(self._movielens.observations)
        expected = (probabilities * self._movielens.expected_reward_matrix).sum(axis=1)
        return float(expected.mean())

    def watch(self, decisions: int) -> None:
        """Asks for that many decisions, 20 at a time, and rewards each batch."""
        for _ in range(decisions // 20):
            users = self._rng.integers(0, self._movielens.num_users, 20)
            instances = [Instance(row, str(user)) for user, row in zip(users, self._rows(users), strict=True)]
            served = self._client.predict(instances)
            ids, actions = [one.decision_id for one in served], np.array([one.action for one in served])
            rewards = self._movielens.observed_rewards(users, actions, self._rng)
            champion = policy_store.champion(self._root / "policies")
            assert champion is not None
            if self.candidate_reward is not None:
                rewards[[one.policy_version != champion.version for one in served]] = self.candidate_reward
            self._client.rewards([SentReward(*pair) for pair in zip(ids, rewards.tolist(), strict=True)])

    def _rows(self, users: np.ndarray) -> list[list[float]]:
        rows: list[list[float]] = self._movielens.observations[users].tolist()
        return rows

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """They go on in the background while the block lasts."""
        enough = threading.Event()

        def go_on() -> None:
            while not enough.wait(0.05):
                self.watch(20)

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()
