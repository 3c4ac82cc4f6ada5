"""Peers of the learning benchmark, run in an environment of their own (requirements/bench.txt): mabwiser, VowpalWabbit.

    python -m bench.peers viewers.npz jobs.json results.npz

`viewers.npz` holds `<K>/observations` [U, D] and `<K>/expected` [U, K]; `jobs.json` lists jobs ({"peer", "settings",
"num_actions", "batch", "uniform_first", "seed", "reward_noise", "decisions"}); `results.npz` gets what each job earned,
[N] under its number.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.episode import Learner, play, sample


class MabWiser:
    """mabwiser's LinUCB or LinTS, fitted incrementally."""

    def __init__(self, num_actions: int, seed: int, policy: str, alpha: float, l2_lambda: float) -> None:
        from mabwiser.mab import MAB, LearningPolicy

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
    """VowpalWabbit's --cb_explore_adf: user features crossed with the identity of the movie.

    Parses and learns as `vowpalwabbit.Workspace` does, but without its Python object for each line, which takes three
    quarters of the time.
    """

    def __init__(self, num_actions: int, seed: int, explorer: str, learning_rate: float) -> None:
        import pylibvw
        from vowpalwabbit import Workspace

        self._native = pylibvw.vw
        self._vw = Workspace(
            f"--cb_explore_adf {explorer} -q UA --ignore_linear U --noconstant -l {learning_rate} --power_t 0 -b 18 --quiet"
        )
        self._arms = [f"|A a{k}" for k in range(num_actions)]
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
        """One example after the other; a cost is a negative reward."""
        for observation, action, reward, propensity in zip(observations, actions, rewards, propensities, strict=True):
            arms = list(self._arms)
            arms[action] = f"0:{-reward:.6f}:{propensity:.6f} {arms[action]}"
            examples = self._vw._parse("\n".join([self._shared(observation), *arms]))
            self._native.learn_multi(self._vw, examples)
            self._native._finish_example_multi_ex(self._vw, examples)

    @staticmethod
    def _shared(observation: np.ndarray) -> str:
        return "shared |U " + " ".join(f"{index}:{value:.6f}" for index, value in enumerate(observation))


def main(viewers_path: str, jobs_path: str, results_path: str) -> None:
    """Runs the jobs."""
    jobs: list[dict[str, Any]] = json.loads(Path(jobs_path).read_text())
    results = {}
    with np.load(viewers_path) as arrays:
        for number, job in enumerate(jobs):
            observations, expected = (arrays[f"{job['num_actions']}/{name}"] for name in ("observations", "expected"))
            world = sample(observations, expected, job["reward_noise"], job["decisions"], job["seed"])
            make = {"mabwiser": MabWiser, "vowpalwabbit": VowpalWabbit}[job["peer"]]
            learner: Learner = make(job["num_actions"], job["seed"], **job["settings"])
            begin = time.perf_counter()
            results[str(number)] = play(world, learner, job["batch"], job["uniform_first"], job["seed"])
            print(
                f"  {number + 1}/{len(jobs)} K={job['num_actions']} {job['peer']} {job['settings']} every {job['batch']}, seed {job['seed']}:"
                f" {results[str(number)].mean():.3f} in {time.perf_counter() - begin:.1f} s",
                flush=True,
            )
    np.savez(results_path, **results)


if __name__ == "__main__":
    if len(sys.argv) != 4:  # contracts.command_line needs packages that this environment has not
        sys.exit(
            "bench.peers: error: wanted viewers.npz jobs.json results.npz, got " + (" ".join(sys.argv[1:]) or "nothing")
        )
    main(*sys.argv[1:])
