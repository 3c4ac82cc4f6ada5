"""`generator`: simulated decisions a second inside one DoFn, JSON and file included.

Reference: the same decisions and rewards one at a time, drawn with numpy and written with `json`.
"""

import json
import tempfile
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
import numpy as np

from beam_jobs.generate_movielens import GenerateShardFn, GeneratorSettings
from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from bench.measure import Result, compare, seconds

DECISIONS = 200_000
REFERENCE_DECISIONS = 10_000
START = datetime(2026, 1, 1, tzinfo=UTC)


class GenerateOneFn(beam.DoFn):
    """Decision number -> lines of the event log."""

    def __init__(self, viewers: MovieLens) -> None:
        self._viewers = viewers
        self._rng = np.random.default_rng(0)

    def process(self, number: int) -> Iterator[str]:
        """Simulates one decision."""
        user = self._rng.integers(self._viewers.num_users)
        action = int(self._rng.integers(self._viewers.num_actions))
        observation = self._viewers.observations[user]
        decided_at = START + timedelta(microseconds=25 * number)
        decision_id = str(uuid.UUID(bytes=self._rng.bytes(16)))
        yield json.dumps(
            {
                "kind": "decision",
                "decision_id": decision_id,
                "decided_at": decided_at.isoformat(),
                "policy_version": "uniform",
                "user_id": str(self._viewers.user_ids[user]),
                "observation": observation.tolist(),
                "candidates": [],
                "action": action,
                "propensity": 1 / self._viewers.num_actions,
            }
        )
        if self._rng.random() >= 0.05:
            reward = observation @ self._viewers.movie_factors[action] + self._rng.normal(0, self._viewers.reward_noise)
            occurred_at = decided_at + timedelta(seconds=self._rng.uniform(0, 0.5))
            yield json.dumps(
                {
                    "kind": "reward",
                    "decision_id": decision_id,
                    "occurred_at": occurred_at.isoformat(),
                    "reward": float(reward),
                }
            )


def run() -> Result:
    """Both ways in turn."""
    viewers = MovieLens.build(load_ratings("sample"), num_actions=100, rank=20, reward_noise=0.5, seed=0)
    settings = GeneratorSettings(num_decisions=DECISIONS, start=START)
    with tempfile.TemporaryDirectory() as folder:
        by_one, by_shard = GenerateOneFn(viewers), GenerateShardFn(viewers, settings, folder)

        def one_by_one() -> None:
            with (Path(folder) / "reference.jsonl").open("w") as file:
                for number in range(REFERENCE_DECISIONS):
                    for line in by_one.process(number):
                        file.write(line + "\n")

        def shard_by_shard() -> None:
            for shard in range(settings.num_shards):
                list(by_shard.process(shard))

        return compare(
            reference=lambda: REFERENCE_DECISIONS / seconds(one_by_one),
            ours=lambda: DECISIONS / seconds(shard_by_shard),
            unit="decisions/s",
            runs=5,
        )
