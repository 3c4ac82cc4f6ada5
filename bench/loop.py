"""How much of the oracle's reward the loop earns in its last window, with its real processes, on several seeds.

The reference is the loop of the demo that this project goes back to, whose Logger pays each decision the reward of a random
other user: the same policy, viewers and windows, without processes. Runs on MovieLens 100K where there is a local copy.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from bench.episode import World, play, sample
from bench.learning import Linear
from bench.measure import Result
from orchestration.loop.settings import LoopSettings

MOVIELENS_100K = Path(__file__).resolve().parents[2] / "shared" / "data" / "ml-100k"
SEEDS = 5


class PaidForAnotherUser(Linear):
    """Learns each decision from what a random other user would have given the movie."""

    def __init__(self, world: World, settings: LoopSettings) -> None:
        hyperparameters = {"alpha": settings.alpha, "epsilon": settings.epsilon, "tikhonov": settings.tikhonov}
        super().__init__(world, settings.seed, settings.algorithm, **hyperparameters)
        self._world, self._others = world, np.random.default_rng([settings.seed, 3])

    def learn(
        self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, propensities: np.ndarray
    ) -> None:
        """As `Learner`."""
        others = self._others.integers(0, len(self._world.lots), len(actions))
        super().learn(observations, actions, self._world.rewards(others, actions), propensities)


def run() -> dict[str, Any]:
    """Shares of the oracle's expected reward in the last of ten windows, the median and the spread over seeds."""
    ratings = str(MOVIELENS_100K) if (MOVIELENS_100K / "u.data").is_file() else "sample"
    shares = np.array([_shares(LoopSettings(ratings=ratings, seed=seed)) for seed in range(SEEDS)])
    ratios = shares[:, 1] / shares[:, 0]
    result = Result(
        reference=float(np.median(shares[:, 0])),
        ours=float(np.median(shares[:, 1])),
        unit="share of the oracle's reward",
        ratio=float(np.median(ratios)),
        ratio_min=float(ratios.min()),
        ratio_max=float(ratios.max()),
        runs=SEEDS,
    )
    return {**result, "ours_min": float(shares[:, 1].min()), "ours_max": float(shares[:, 1].max())}


def _shares(settings: LoopSettings) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as scratch:
        loop = ["orchestration.cli", "loop", "--ratings", settings.ratings, "--seed", str(settings.seed)]
        subprocess.run([sys.executable, "-m", *loop, "--out", f"{scratch}/run"], check=True, stdout=subprocess.DEVNULL)
        report = json.loads(Path(scratch, "run", "report.json").read_text())
    assert report["totals"]["lost"] == report["totals"]["duplicated"] == report["totals"]["misattributed_rewards"] == 0
    last = report["windows"][-1]
    theirs, ours = _reference(settings), last["mean_expected_reward"] / last["oracle_reward"]
    print(f"  seed {settings.seed}: {ours:.1%} of the oracle, the reference way {theirs:.1%}", flush=True)
    return theirs, ours


def _reference(settings: LoopSettings) -> float:
    viewers = MovieLens.build(
        load_ratings(settings.ratings),
        num_actions=settings.num_actions,
        rank=settings.rank,
        reward_noise=settings.reward_noise,
        seed=settings.seed,
    )
    each, windows = settings.decisions_per_window, settings.windows
    world = sample(viewers, each * (1 + windows), settings.seed)
    earned = play(world, PaidForAnotherUser(world, settings), each, uniform_first=True, seed=settings.seed)
    return float(earned[-each:].sum() / world.expected[-each:].max(axis=1).sum())
