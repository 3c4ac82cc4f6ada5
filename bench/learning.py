"""`make bench-learning`: regret on MovieLens of each algorithm, online and window by window, beside mabwiser and VowpalWabbit.

    python -m bench.learning --peers-python .venv-bench/bin/python [--ratings FOLDER|sample] [--seeds 5]

Rank 20, reward noise 0.5, 20,000 interactions. Online, policies learn after every 50 decisions; window by window, the
first 2,000 decisions are uniform and policies learn after every 2,000. Each policy is tuned on seeds that are not
reported. Writes `bench/learning.json`, `bench/learning.svg` and the section in `bench/README.md`.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import trainer  # noqa: F401  Sets TF_USE_LEGACY_KERAS, before TensorFlow is imported.
from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import Ratings, load_ratings
from bench.episode import Learner, World, play, sample
from contracts.policies import Exploration
from contracts.trajectories import TrajectoryBatch
from trainer import agents, arms, linear, neural
from trainer.export import Model
from trainer.linear import SufficientStatistics

HERE = Path(__file__).parent
BEGIN, END = "<!-- learning -->\n", "<!-- end of learning -->\n"
RANK, NOISE, DECISIONS, EPSILON = 20, 0.5, 20_000, 0.02
BATCHES = {"online": 50, "windows": 2000}
TUNING_SEEDS, TUNING_DECISIONS = (100, 101), 4_000
MOVIE_FACTORS = 20


class Linear:
    """Ours: sufficient statistics, any model over them, and an explorer."""

    def __init__(
        self,
        world: World,
        seed: int,
        features: np.ndarray,
        algorithm: str,
        alpha: float = 0.0,
        epsilon: float = 0.0,
        **told: Any,
    ) -> None:
        self._statistics = SufficientStatistics.zeros(world.expected.shape[1], world.observations.shape[1])
        self._rng = np.random.default_rng([seed, 2])
        self._algorithm, self._alpha, self._epsilon, self._features = algorithm, alpha, epsilon, features
        self._told = agents.complete(algorithm, told)
        self._refit()

    def choose(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Learner`."""
        if not self._statistics.n.any():  # nothing to go by: uniform, as for mabwiser
            num_actions = self._statistics.num_actions
            return self._rng.integers(0, num_actions, len(observations)), np.full(len(observations), 1 / num_actions)
        mean, std = self._model.scores(observations)
        if self._algorithm == "lin_ts":
            preference = mean + self._alpha * std * self._rng.normal(size=mean.shape)
            return preference.argmax(axis=1), np.ones(len(mean))  # linear models learn without propensities
        preference = mean + (self._alpha if self._algorithm == "lin_ucb" else 0.0) * std
        return _epsilon_greedy(preference, self._epsilon, self._rng)

    def learn(
        self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, propensities: np.ndarray
    ) -> None:
        """As `Learner`."""
        self._statistics.add(observations, actions, rewards)
        self._refit()

    def _refit(self) -> None:
        told = self._told
        posterior = linear.posterior(
            self._statistics,
            str(told["arm_features"]),
            float(told["tikhonov"]),
            float(told["arm_tikhonov"]),
            self._features,
        )
        self._model = Model.linear(posterior, self._statistics.n)


class Neural:
    """Ours: a TF-Agents network; a step for every batch online, a fit with early stopping for every window."""

    def __init__(
        self, world: World, seed: int, features: np.ndarray, algorithm: str, online: bool, alpha: float = 0.5,
        temperature: float = 0.1, **told: Any,
    ) -> None:  # fmt: skip
        import tensorflow as tf

        tf.random.set_seed(seed)
        num_actions, dim = world.expected.shape[1], world.observations.shape[1]
        self._told = agents.complete(algorithm, told)
        self._network = neural.build(algorithm, dim, num_actions, self._told, Exploration())
        self._statistics = SufficientStatistics.zeros(num_actions, agents.layer_sizes(self._told)[-1])
        self._rng = np.random.default_rng([seed, 2])
        self._algorithm, self._alpha, self._temperature = algorithm, alpha, temperature
        self._step = neural.train_step(self._network) if online else None
        self._model = self._network.model(self._statistics.n)

    def choose(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `Learner`."""
        mean, std = self._model.scores(observations)
        if self._algorithm == "neural_boltzmann":
            gumbel = self._rng.gumbel(size=mean.shape)
            return (mean / self._temperature + gumbel).argmax(axis=1), np.ones(len(mean))
        return _epsilon_greedy(mean + self._alpha * std, EPSILON, self._rng)

    def learn(
        self, observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray, propensities: np.ndarray
    ) -> None:
        """As `Learner`."""
        batch = TrajectoryBatch(
            observations,
            actions.astype(np.int32),
            rewards.astype(np.float32),
            propensities.astype(np.float32),
            np.zeros(len(actions), bool),
        )
        first = not self._statistics.n.any()
        if self._step is not None:
            self._step(batch.observation, batch.action, batch.reward)
        elif first or self._algorithm != "neural_linucb":
            neural.fit(self._network, lambda: iter([batch]), self._told)
        model = self._network.model(self._statistics.n)
        self._statistics.add(neural.encode(model, observations), actions, rewards)
        if self._algorithm == "neural_linucb":
            posterior = linear.disjoint(self._statistics, float(self._told["tikhonov"]))
            model = model._replace(
                theta=posterior.theta.astype(np.float32), covariance=posterior.covariance.astype(np.float32)
            )
        self._model = model


def _epsilon_greedy(preference: np.ndarray, epsilon: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    count, num_actions = preference.shape
    best = preference.argmax(axis=1)
    actions = np.where(rng.random(count) < epsilon, rng.integers(0, num_actions, count), best)
    return actions, epsilon / num_actions + (1 - epsilon) * (actions == best)


class Contestant(NamedTuple):
    """A policy in a mode, and the settings it may be tuned over."""

    name: str
    peer: str  # "" for ours
    modes: tuple[str, ...]
    num_actions: tuple[int, ...]
    grid: list[dict[str, Any]]


def _grid(**axes: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


ALPHAS = [0.1, 0.25, 0.5]
EPSILONS = [0.0, EPSILON]
BOTH, WINDOWS, SMALL, LARGE, ALL = ("online", "windows"), ("windows",), (20, 100), (500,), (20, 100, 500)
SHARED = _grid(algorithm=["lin_ucb"], alpha=[0.1, 0.25], tikhonov=[0.3], arm_features=["shared"], epsilon=EPSILONS)
HYBRID = _grid(
    algorithm=["lin_ucb"],
    alpha=[0.1, 0.25],
    tikhonov=[0.3],
    arm_features=["hybrid"],
    arm_tikhonov=[1.0, 2.0],
    epsilon=[0.0],
)
TS_HYBRID = _grid(algorithm=["lin_ts"], alpha=[0.1, 0.25], tikhonov=[0.3], arm_features=["hybrid"], arm_tikhonov=[1.0])
MABWISER = {"alpha": ALPHAS, "l2_lambda": [0.1, 1.0]}
CONTESTANTS = [
    Contestant("lin_ucb", "", BOTH, SMALL, _grid(algorithm=["lin_ucb"], alpha=ALPHAS, tikhonov=[0.1, 1.0], epsilon=EPSILONS)),
    Contestant("lin_ucb", "", WINDOWS, LARGE, _grid(algorithm=["lin_ucb"], alpha=ALPHAS, tikhonov=[0.1, 1.0], epsilon=EPSILONS)),
    Contestant("lin_ts", "", BOTH, SMALL, _grid(algorithm=["lin_ts"], alpha=ALPHAS, tikhonov=[0.1, 1.0])),
    Contestant("greedy", "", BOTH, SMALL, _grid(algorithm=["greedy"], epsilon=[EPSILON, 0.05])),
    Contestant("lin_ucb, arm features", "", BOTH, SMALL, SHARED),
    Contestant("lin_ucb, arm features", "", WINDOWS, LARGE, SHARED),
    Contestant("lin_ucb, hybrid", "", BOTH, SMALL, HYBRID),
    Contestant("lin_ucb, hybrid", "", WINDOWS, LARGE, HYBRID),
    Contestant("lin_ts, hybrid", "", BOTH, SMALL, TS_HYBRID),
    Contestant("neural_epsilon_greedy", "", BOTH, SMALL, _grid(algorithm=["neural_epsilon_greedy"], learning_rate=[0.003, 0.01])),
    Contestant("neural_boltzmann", "", BOTH, SMALL, _grid(algorithm=["neural_boltzmann"], learning_rate=[0.01], temperature=[0.05, 0.2])),
    Contestant("neural_linucb", "", WINDOWS, SMALL, _grid(algorithm=["neural_linucb"], alpha=[0.1, 0.25])),
    Contestant("mabwiser LinUCB", "mabwiser", BOTH, SMALL, _grid(policy=["LinUCB"], **MABWISER)),
    Contestant("mabwiser LinTS", "mabwiser", BOTH, SMALL, _grid(policy=["LinTS"], **MABWISER)),
    *(
        Contestant(f"VowpalWabbit {name}", "vowpalwabbit", BOTH, SMALL, _grid(explorer=explorers, learning_rate=[0.5, 2.0]))
        for name, explorers in {
            "squarecb": ["--squarecb --gamma_scale 100", "--squarecb --gamma_scale 1000"],
            "cover": ["--cover 2", "--cover 5"],
            "epsilon": ["--epsilon 0.02", "--epsilon 0.1"],
        }.items()
    ),
]  # fmt: skip


class Outcome(NamedTuple):
    """One run."""

    regret: float  # over all decisions; window by window, those after the uniform window
    shares: list[float]  # of the oracle's reward, in each of ten parts (online) or in each window
    reward: float  # mean expected reward


def main(argv: list[str] | None = None) -> int:
    """Runs it all."""
    parser = argparse.ArgumentParser(prog="python -m bench.learning", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--ratings", default="sample", help="as the loop's --ratings (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds are reported (default: %(default)s)")
    parser.add_argument("--peers-python", help="interpreter with requirements/bench.txt (default: ours alone)")
    parser.add_argument(
        "--num-actions", type=int, nargs="+", choices=ALL, default=ALL, help="replace the runs of these alone"
    )
    parser.add_argument("--only", nargs="+", default=[], help="contestants whose names contain one of these")
    args = parser.parse_args(argv)
    ratings = load_ratings(args.ratings)
    contestants = [
        contestant
        for contestant in CONTESTANTS
        if (args.peers_python or not contestant.peer)
        and (not args.only or any(part in contestant.name for part in args.only))
    ]
    path = HERE / "learning.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"runs": []}
    report["settings"] = {
        "ratings": Path(args.ratings).name,
        "rank": RANK,
        "reward_noise": NOISE,
        "decisions": DECISIONS,
        "seeds": args.seeds,
    }
    for num_actions in args.num_actions:
        for run in _compare(ratings, num_actions, contestants, args.seeds, args.peers_python):
            which = ("num_actions", "mode", "policy")
            report["runs"] = [other for other in report["runs"] if any(other[key] != run[key] for key in which)] + [run]
        path.write_text(json.dumps(report, indent=1) + "\n")
        _write_section(report)
    return 0


def _compare(
    ratings: Ratings, num_actions: int, contestants: list[Contestant], seeds: int, peers_python: str | None
) -> Iterator[dict[str, Any]]:
    viewers = MovieLens.build(ratings, num_actions=num_actions, rank=RANK, reward_noise=NOISE, seed=0)
    features = _arm_features(ratings, viewers)
    reported = range(seeds)
    worlds = {
        seed: sample(viewers.observations, viewers.expected_reward_matrix, NOISE, DECISIONS if seed in reported else TUNING_DECISIONS, seed)
        for seed in (*reported, *TUNING_SEEDS)
    }  # fmt: skip
    jobs = [
        (contestant, mode)
        for contestant in contestants
        for mode in contestant.modes
        if num_actions in contestant.num_actions
    ]

    def run(wanted: list[tuple[Contestant, str, dict[str, Any], int]]) -> list[Outcome]:
        mine = [(contestant, mode, told, seed) for contestant, mode, told, seed in wanted if not contestant.peer]
        theirs = [job for job in wanted if job[0].peer]
        earned = {_key(job): _play_ours(worlds[job[3]], features, *job[1:]) for job in mine}
        if theirs:
            assert peers_python is not None
            earned |= dict(zip(map(_key, theirs), _play_peers(peers_python, worlds, theirs), strict=True))
        return [_outcome(worlds[job[3]], earned[_key(job)], job[1]) for job in wanted]

    # Tuned at each number of actions, in each mode.
    trials = [
        (contestant, mode, told, seed) for contestant, mode in jobs for told in contestant.grid for seed in TUNING_SEEDS
    ]
    regrets: dict[tuple[str, str], dict[str, float]] = {}
    for (contestant, mode, told, _), outcome in zip(trials, run(trials), strict=True):
        by_settings = regrets.setdefault((contestant.name, mode), {})
        by_settings[json.dumps(told)] = by_settings.get(json.dumps(told), 0.0) + outcome.regret
    best = {which: json.loads(min(found, key=lambda told: found[told])) for which, found in regrets.items()}
    finals = [(contestant, mode, best[contestant.name, mode], seed) for contestant, mode in jobs for seed in reported]
    outcomes = run(finals)
    for contestant, mode in jobs:
        own = [outcome for job, outcome in zip(finals, outcomes, strict=True) if job[:2] == (contestant, mode)]
        result = {
            "num_actions": num_actions,
            "mode": mode,
            "policy": contestant.name,
            "settings": best[contestant.name, mode],
            "regret": [round(outcome.regret) for outcome in own],
            "mean_reward": round(float(np.mean([outcome.reward for outcome in own])), 4),
            "share_of_oracle": np.mean([outcome.shares for outcome in own], axis=0).round(4).tolist(),
        }
        print(f"K={num_actions} {mode} {contestant.name}: regret {np.mean(result['regret']):.0f}", flush=True)
        yield result


def _key(job: tuple[Contestant, str, dict[str, Any], int]) -> tuple[str, str, str, int]:
    return job[0].name, job[1], json.dumps(job[2]), job[3]


def _play_ours(world: World, features: np.ndarray, mode: str, told: dict[str, Any], seed: int) -> np.ndarray:
    make: Callable[..., Learner] = Linear
    if told["algorithm"] not in agents.LINEAR_ALGORITHMS:
        make, told = Neural, told | {"online": mode == "online"}
    return play(world, make(world, seed, features, **told), BATCHES[mode], mode == "windows", seed)


def _play_peers(
    python: str, worlds: dict[int, World], jobs: list[tuple[Contestant, str, dict[str, Any], int]]
) -> list[np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("world.npz", "jobs.json", "results.npz")]
        np.savez(paths[0], **{f"{seed}/{name}": array for seed, world in worlds.items() for name, array in world._asdict().items()})  # fmt: skip
        told = [
            {
                "peer": contestant.peer,
                "settings": settings,
                "batch": BATCHES[mode],
                "uniform_first": mode == "windows",
                "seed": seed,
                "world": str(seed),
            }
            for contestant, mode, settings, seed in jobs
        ]
        Path(paths[1]).write_text(json.dumps(told))
        subprocess.run([python, "-m", "bench.peers", *paths], check=True, cwd=HERE.parent)
        with np.load(paths[2]) as results:
            return [results[str(number)] for number in range(len(jobs))]


def _outcome(world: World, earned: np.ndarray, mode: str) -> Outcome:
    oracle = world.expected.max(axis=1)
    parts = np.array_split(np.arange(len(earned)), len(earned) // BATCHES["windows"])
    counted = slice(BATCHES["windows"], None) if mode == "windows" else slice(None)
    return Outcome(
        float((oracle - earned)[counted].sum()),
        [float(earned[part].sum() / oracle[part].sum()) for part in parts],
        float(earned[counted].mean()),
    )


def _arm_features(ratings: Ratings, viewers: MovieLens) -> np.ndarray:
    """[K, 1 + factors]: from the first half of the ratings by time, which the viewers' rewards are not made of alone."""
    factors = arms.movie_factors(
        ratings.user, ratings.movie, ratings.rating, ratings.timestamp, len(ratings.movies), MOVIE_FACTORS, seed=0
    )
    index = {str(movie.movie_id): row for row, movie in enumerate(ratings.movies)}
    chosen = [index[movie.movie_id] for movie in viewers.catalogue]
    return np.concatenate([np.ones((len(chosen), 1)), factors[chosen]], axis=1)


def _write_section(report: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    panels = [(mode, num_actions) for mode in BATCHES for num_actions in ALL]
    figure, axes = plt.subplots(len(BATCHES), len(ALL), figsize=(15, 8), sharey=True)
    lines = []
    for axis, (mode, num_actions) in zip(axes.flat, panels, strict=True):
        runs = [run for run in report["runs"] if (run["mode"], run["num_actions"]) == (mode, num_actions)]
        for run in sorted(runs, key=lambda run: float(np.mean(run["regret"]))):
            ours = " " not in run["policy"] or "," in run["policy"]
            axis.plot(run["share_of_oracle"], label=run["policy"], linestyle="-" if ours else ":", marker=".")
            regret, spread = np.mean(run["regret"]), np.std(run["regret"])
            settings = ", ".join(
                f"{name} {value}" for name, value in run["settings"].items() if name not in ("algorithm", "policy")
            )
            lines.append(
                f"| {num_actions} | {mode} | {run['policy']} | {regret:,.0f} ± {spread:,.0f} | {run['mean_reward']:.3f} "
                f"| {run['share_of_oracle'][1 if mode == 'windows' else 0]:.1%} | {run['share_of_oracle'][-1]:.1%} | {settings} |"
            )
        axis.set(
            title=f"{num_actions} actions, {mode}", xlabel="2,000 decisions each", ylabel="share of the oracle's reward"
        )
        axis.grid(alpha=0.3)
        if runs:
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(HERE / "learning.svg", metadata={"Date": None})
    told = report["settings"]
    section = (
        f"{told['decisions']:,} interactions on `{told['ratings']}`, rank {told['rank']}, reward noise {told['reward_noise']}, mean and "
        f"standard deviation over {told['seeds']} seeds, each policy tuned on other seeds. Online, policies learn after every 50 decisions; in windows,"
        " after every 2,000, the first uniform and not counted in regret and reward. \"first\" and \"last\" are shares of the oracle's reward in the"
        " first 2,000 decisions (in windows: the first that were served) and in the last.\n\n![Share of the oracle's reward](learning.svg)\n\n"
        "| actions | mode | policy | regret | mean reward | first | last | settings |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n"
    )  # fmt: skip
    text = (HERE / "README.md").read_text()
    if BEGIN not in text:
        text += f"\n## Learning\n\n`make bench-learning` runs it.\n\n{BEGIN}{END}"
    head, rest = text.split(BEGIN)
    (HERE / "README.md").write_text(head + BEGIN + section + "\n".join(lines) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    sys.exit(main())
