"""Peers of the learning benchmark, run in an environment of their own (requirements/bench.txt): mabwiser, VowpalWabbit.

    python -m bench.peers worlds jobs.json results.npz

`worlds` is a folder of `bench.episode.World`s, one npz file each; `jobs.json` lists jobs ({"peer", "settings", "world",
"batch", "uniform_first", "seed"}, where "world" names a file); `results.npz` gets what each job earned, [N] under its number.
"""

import json
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.episode import Learner, World, play


class MabWiser:
    """mabwiser's LinUCB or LinTS, fitted incrementally."""

    def __init__(self, world: World, seed: int, policy: str, alpha: float, l2_lambda: float) -> None:
        from mabwiser.mab import MAB, LearningPolicy

        num_actions = world.expected.shape[1]
        self._mab = MAB(
            list(range(num_actions)), getattr(LearningPolicy, policy)(alpha=alpha, l2_lambda=l2_lambda), seed=seed
        )
        self._fitted = False
        self._rng, self._num_actions = np.random.default_rng([seed, 2]), num_actions

    def choose(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Uniform until there is something to go by; mabwiser has no propensities and needs none."""
        if not self._fitted:
            return self._rng.integers(0, self._num_actions, len(observations)), np.ones(len(observations))
        return np.atleast_1d(self._mab.predict(observations)), np.ones(len(observations))

    def learn(
        self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, propensities: np.ndarray
    ) -> None:
        """mabwiser's partial_fit."""
        (self._mab.partial_fit if self._fitted else self._mab.fit)(actions, rewards, observations)
        self._fitted = True


class VowpalWabbit:
    """VowpalWabbit's --cb_explore_adf: user features crossed with the identity of the movie, and with what is known of it.

    Costs lie in [0, 1], as its explorers expect: 0 for the highest and 1 for the lowest reward of the world, but for one in
    1,000 on each side. Parses and learns as `vowpalwabbit.Workspace` does, but without its Python object for each line,
    which takes three quarters of the time.
    """

    def __init__(
        self, world: World, seed: int, explorer: str, setting: float, learning_rate: float, arm_features: bool
    ) -> None:
        import pylibvw
        from vowpalwabbit import Workspace

        self._native = pylibvw.vw
        crossed = "-q UA -q UF" if arm_features else "-q UA"
        self._vw = Workspace(
            f"--cb_explore_adf {explorer.format(setting)} {crossed} --ignore_linear U -l {learning_rate} --power_t 0 -b 18 --quiet"
        )
        known = world.features[:, 1:] if arm_features else world.features[:, :0]
        self._arms = [
            f"|A a{k} |F " + " ".join(f"{name}:{value:.4f}" for name, value in enumerate(row))
            for k, row in enumerate(known.tolist())
        ]
        self._low, self._high = (0.0, 1.0) if world.clicks else np.quantile(world.expected, [0.001, 0.999])
        self._rng = np.random.default_rng([seed, 2])

    def choose(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draws from VowpalWabbit's own probabilities."""
        actions, propensities = np.empty(len(observations), int), np.empty(len(observations))
        for row, observation in enumerate(observations):
            examples = self._vw._parse("\n".join([self._shared(observation), *self._arms]))
            self._native.predict_multi(self._vw, examples)
            pmf = np.maximum(examples[0].get_action_scores(), 0)
            self._native._finish_example_multi_ex(self._vw, examples)
            pmf /= pmf.sum()
            actions[row] = np.searchsorted(pmf.cumsum(), self._rng.random() * (1 - 1e-12))
            propensities[row] = pmf[actions[row]]
        return actions, propensities

    def learn(
        self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, propensities: np.ndarray
    ) -> None:
        """One example after the other."""
        costs = np.clip((self._high - rewards) / (self._high - self._low), 0, 1)
        for observation, action, cost, propensity in zip(observations, actions, costs, propensities, strict=True):
            arms = list(self._arms)
            arms[action] = f"0:{cost:.6f}:{propensity:.6f} {arms[action]}"
            examples = self._vw._parse("\n".join([self._shared(observation), *arms]))
            self._native.learn_multi(self._vw, examples)
            self._native._finish_example_multi_ex(self._vw, examples)

    @staticmethod
    def _shared(observation: np.ndarray) -> str:
        return "shared |U " + " ".join(f"{index}:{value:.6f}" for index, value in enumerate(observation))


@lru_cache(maxsize=1)
def _world(path: Path) -> World:
    with np.load(path) as arrays:
        return World(*(arrays[name] for name in World._fields[:-1]), bool(arrays["clicks"]))


def main(worlds: str, jobs_path: str, results_path: str) -> None:
    """Runs the jobs."""
    jobs: list[dict[str, Any]] = json.loads(Path(jobs_path).read_text())
    results = {}
    for number, job in enumerate(jobs):
        world = _world(Path(worlds) / job["world"])
        make = {"mabwiser": MabWiser, "vowpalwabbit": VowpalWabbit}[job["peer"]]
        learner: Learner = make(world, job["seed"], **job["settings"])
        begin = time.perf_counter()
        results[str(number)] = play(world, learner, job["batch"], job["uniform_first"], job["seed"])
        print(
            f"  {number + 1}/{len(jobs)} {job['world']} {job['peer']} {job['settings']} every {job['batch']}:"
            f" {results[str(number)].mean():.3f} in {time.perf_counter() - begin:.1f} s",
            flush=True,
        )
    np.savez(results_path, **results)


if __name__ == "__main__":
    if len(sys.argv) != 4:  # contracts.command_line needs packages that this environment has not
        sys.exit(
            "bench.peers: error: wanted worlds jobs.json results.npz, got " + (" ".join(sys.argv[1:]) or "nothing")
        )
    main(*sys.argv[1:])
