"""Measures what a half-life that is chosen at each window costs, beside half-lives that are typed in; `make forgetting` runs it.

    python -m bench.forgetting [--ratings FOLDER|sample] [--seeds 5]

The world is `latent` with 100 movies. Its tastes turn by 0, 0.05 or 0.2 radians per window of 2,000 decisions, of which
there are ten; the first is uniform and not counted. LinUCB with the loop's default settings learns after every window. The
choice is the product's (`trainer.forgetting`). Writes `forgetting.json` and the section in `bench/README.md`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from bench.episode import World, play, sample
from bench.learning import Linear
from contracts.command_line import FlagParser, run_main
from contracts.errors import InputError
from trainer import forgetting, linear
from trainer.linear import SufficientStatistics

HERE = Path(__file__).parent
BEGIN, END = "<!-- forgetting -->\n", "<!-- end of forgetting -->\n"
NUM_ACTIONS, RANK, NOISE, WINDOW, WINDOWS = 100, 20, 0.5, 2000, 10
DRIFTS = (0.0, 0.05, 0.2)
HALF_LIVES: tuple[float | str, ...] = (0.0, 16.0, 8.0, 4.0, 2.0, 1.0, "auto")
ALPHA, TIKHONOV, EPSILON = 0.2, 0.3, 0.02  # the loop's


class Forgetful(Linear):
    """LinUCB that forgets by a half-life, or by the product's choice."""

    def __init__(self, world: World, seed: int, half_life: float | str) -> None:
        super().__init__(world, seed, "lin_ucb", alpha=ALPHA, epsilon=EPSILON, tikhonov=TIKHONOV)
        self._half_life = half_life

    def learn(
        self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, propensities: np.ndarray
    ) -> None:
        """As `Learner`."""
        if self._half_life == "auto" and self._statistics.n.any():
            self._statistics.scale(
                forgetting.share_kept(self._statistics, _halves(observations, actions, rewards), _solve)
            )
        elif self._half_life and self._half_life != "auto":
            self._statistics.scale(0.5 ** (1 / float(self._half_life)))
        super().learn(observations, actions, rewards, propensities)


def _solve(statistics: SufficientStatistics) -> np.ndarray:
    return linear.disjoint(statistics, TIKHONOV).theta


def _halves(
    observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray
) -> tuple[SufficientStatistics, SufficientStatistics]:
    halves = []
    for first in range(2):
        rows = slice(first, None, 2)
        half = SufficientStatistics.zeros(NUM_ACTIONS, observations.shape[1])
        half.add(observations[rows], actions[rows], rewards[rows])
        halves.append(half)
    return halves[0], halves[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison and writes its report; returns the exit code."""
    return run_main("bench.forgetting", _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    parser = FlagParser(prog="python -m bench.forgetting", documentation=__doc__)
    parser.add_argument("--ratings", default="sample", help="as the loop's --ratings (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, at least 1 (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        raise InputError(f"--seeds: at least 1, got {args.seeds}")
    viewers = MovieLens.build(
        load_ratings(args.ratings), num_actions=NUM_ACTIONS, rank=RANK, reward_noise=NOISE, seed=0
    )
    regrets: dict[str, dict[str, list[int]]] = {}
    for drift in DRIFTS:
        of_drift = regrets[f"{drift:g}"] = {f"{half_life}": [] for half_life in HALF_LIVES}
        for seed in range(args.seeds):
            world = sample(viewers, WINDOW * WINDOWS, seed, drift * WINDOWS)
            for half_life in HALF_LIVES:
                earned = play(world, Forgetful(world, seed, half_life), WINDOW, uniform_first=True, seed=seed)
                lost = (world.expected.max(axis=1) - earned)[WINDOW:].sum()
                of_drift[f"{half_life}"].append(round(float(lost)))
        print(f"drift {drift:g}: { ({name: round(np.mean(lost)) for name, lost in of_drift.items()}) }", flush=True)
    report = {"settings": {"ratings": Path(args.ratings).name, "seeds": args.seeds}, "regret": regrets}
    (HERE / "forgetting.json").write_text(json.dumps(report, indent=1) + "\n")
    text = (HERE / "README.md").read_text()
    head, rest = text.split(BEGIN)
    (HERE / "README.md").write_text(head + BEGIN + section(report) + END + rest.split(END)[1])


def section(report: dict[str, Any]) -> str:
    """The table: for each drift the mean regret of every half-life, and what the chosen ones cost beside the best."""
    settings = report["settings"]
    names = [f"{half_life}" for half_life in HALF_LIVES]
    titles = ["never" if name == "0.0" else name for name in names]
    lines = [
        f"Mean regret over nine windows of 2,000 decisions, {NUM_ACTIONS} movies of `{settings['ratings']}`,"
        f" {settings['seeds']} seeds, by half-life in windows. The last column compares auto with the best half-life for"
        " that drift, which is known only in hindsight.\n",
        "| drift | " + " | ".join(titles) + " | auto / best |",
        "| --- " * (len(names) + 2) + "|",
    ]
    for drift, by_name in report["regret"].items():
        means = {name: float(np.mean(by_name[name])) for name in names}
        best = min(mean for name, mean in means.items() if name != "auto")
        cells = " | ".join(f"{means[name]:,.0f}" for name in names)
        lines.append(f"| {drift} | {cells} | {means['auto'] / best:.3f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
