"""Measures the regret of each algorithm on MovieLens, beside mabwiser and VowpalWabbit; `make bench-learning` runs it.

    python -m bench.learning --peers-python .peers/bin/python [--ratings FOLDER|sample] [--seeds 5]

Rank 20, reward noise 0.5, 20,000 interactions. Online, policies learn after every 50 decisions. Window by window, the
first 2,000 decisions are uniform and policies learn after every 2,000. Each policy is tuned on seeds that are not
reported, with the same number of decisions. By default one run measures everything. With `--only` or `--num-actions`,
the new figures replace those of the same policies in the last report, and the others stay. Writes `bench/learning.json`, `bench/learning.svg` and the section in `bench/README.md`.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import trainer  # noqa: F401  Sets TF_USE_LEGACY_KERAS, before TensorFlow is imported.
from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from bench.episode import Learner, World, play, sample
from contracts.command_line import FlagParser, run_main
from contracts.errors import InputError
from contracts.policies import Exploration
from contracts.policy_arrays import PolicyArrays, Scorer
from contracts.trajectories import TrajectoryBatch
from trainer import agents, linear, networks, neural
from trainer.linear import SufficientStatistics

HERE = Path(__file__).parent
BEGIN, END = "<!-- learning -->\n", "<!-- end of learning -->\n"
RANK, NOISE, DECISIONS, EPSILON = 20, 0.5, 20_000, 0.02
BATCHES = {"online": 50, "windows": 2000}
TUNING_SEEDS = (100, 101)
STEPS_ONLINE = 10
PROCESSES = 2
# Each process computes in one thread: two of them share nothing, and a job has one result.
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


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
        **hyperparameters: Any,
    ) -> None:
        self._statistics = SufficientStatistics.zeros(world.expected.shape[1], world.observations.shape[1])
        self._rng = np.random.default_rng([seed, 2])
        self._algorithm, self._alpha, self._epsilon, self._features = algorithm, alpha, epsilon, features
        self._hyperparameters = agents.complete(algorithm, hyperparameters)
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
        hyperparameters = self._hyperparameters
        posterior = linear.posterior(
            self._statistics,
            str(hyperparameters["arm_features"]),
            float(hyperparameters["tikhonov"]),
            float(hyperparameters["arm_tikhonov"]),
            self._features,
        )
        self._model = Scorer(PolicyArrays.linear(posterior.theta, posterior.covariance, self._statistics.n))


class Neural:
    """Ours: a TF-Agents network; online, a few steps on what was seen so far after every batch; a fit with early
    stopping for every window, which replays earlier ones.

    neural_linucb learns its network on the first 2,000 decisions, in both modes. Then the network is the fixed encoder
    of a linear policy, which takes in each interaction once, those first ones included.
    """

    def __init__(
        self, world: World, seed: int, features: np.ndarray, algorithm: str, online: bool, alpha: float = 0.5,
        temperature: float = 0.1, **hyperparameters: Any,
    ) -> None:  # fmt: skip
        import tensorflow as tf

        tf.random.set_seed(seed)
        num_actions, dim = world.expected.shape[1], world.observations.shape[1]
        self._hyperparameters = agents.complete(algorithm, hyperparameters)
        over_arms = features.astype(np.float32) if self._hyperparameters.get("arm_features") == "shared" else None
        self._network = networks.build(algorithm, dim, num_actions, self._hyperparameters, Exploration(), over_arms)
        self._statistics = SufficientStatistics.zeros(num_actions, agents.layer_sizes(self._hyperparameters)[-1])
        self._rng = np.random.default_rng([seed, 2])
        self._algorithm, self._alpha, self._temperature = algorithm, alpha, temperature
        self._seen = [
            np.zeros((DECISIONS, dim), np.float32),
            np.zeros(DECISIONS, np.int32),
            np.zeros(DECISIONS, np.float32),
        ]
        self._batches: list[TrajectoryBatch] = []
        self._count, self._online = 0, online
        self._model = Scorer(self._network.arrays(self._statistics.n))

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
        self._batches.append(batch)
        for seen, new in zip(self._seen, (batch.observation, batch.action, batch.reward), strict=True):
            seen[self._count : self._count + len(actions)] = new
        self._count += len(actions)
        linear_next = self._algorithm == "neural_linucb"
        trains = not linear_next or self._count <= BATCHES["windows"]
        if self._count == len(actions):
            self._network.standardise([observations])
        if trains and self._online:
            for _ in range(STEPS_ONLINE):
                rows = self._rng.integers(0, self._count, int(self._hyperparameters["batch_size"]))
                self._network.step(*(seen[rows] for seen in self._seen))
        elif trains:
            replayed = 1 + int(self._hyperparameters.get("replay", 0)) // len(actions)
            parts = [partial(iter, [batch]) for batch in self._batches[-replayed:]]
            neural.fit(self._network, parts, self._hyperparameters)
        arrays = self._network.arrays(self._statistics.n)
        if linear_next and self._count >= BATCHES["windows"]:
            new = slice(0 if trains else self._count - len(actions), self._count)
            observation, action, reward = (seen[new] for seen in self._seen)
            self._statistics.add(Scorer(arrays).encode(observation), action, reward)
            arrays = arrays.with_posterior(*linear.disjoint(self._statistics, float(self._hyperparameters["tikhonov"])))
        self._model = Scorer(arrays)


def _epsilon_greedy(preference: np.ndarray, epsilon: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    count, num_actions = preference.shape
    best = preference.argmax(axis=1)
    actions = np.where(rng.random(count) < epsilon, rng.integers(0, num_actions, count), best)
    return actions, epsilon / num_actions + (1 - epsilon) * (actions == best)


class Contestant(NamedTuple):
    """A policy, and the settings it may be tuned over."""

    name: str
    peer: str  # "" for ours
    num_actions: tuple[int, ...]
    grid: list[dict[str, Any]]
    tuning_seeds: int = 2  # one for those that take long, ours and peers alike


def _grid(**axes: list[Any]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


ALPHAS = [0.1, 0.25, 0.5, 1.0]
EPSILONS = [0.0, EPSILON]
MODES = {20: ("online", "windows"), 100: ("online", "windows"), 500: ("windows",)}
ALL, SMALL = tuple(MODES), (20, 100)  # peers take too long at 500
PLAIN = _grid(algorithm=["lin_ucb"], alpha=ALPHAS, tikhonov=[0.1, 1.0], epsilon=EPSILONS)
SHARED = _grid(algorithm=["lin_ucb"], alpha=[0.05, 0.1, 0.25], tikhonov=[0.3], arm_features=["shared"], epsilon=[0.0])
HYBRID = _grid(
    algorithm=["lin_ucb"],
    alpha=[0.05, 0.1, 0.25],
    tikhonov=[0.3],
    arm_features=["hybrid"],
    arm_tikhonov=[1.0, 2.0],
    epsilon=[0.0],
)
TS_HYBRID = _grid(
    algorithm=["lin_ts"], alpha=[0.05, 0.1, 0.25], tikhonov=[0.3], arm_features=["hybrid"], arm_tikhonov=[1.0]
)
NEURAL_EPSILON = _grid(algorithm=["neural_epsilon_greedy"], learning_rate=[0.01, 0.03])
BOLTZMANN = _grid(algorithm=["neural_boltzmann"], learning_rate=[0.01], temperature=[0.05, 0.2])
NEURAL_LINUCB = _grid(algorithm=["neural_linucb"], alpha=[0.1, 0.25], tikhonov=[1.0, 10.0])
NEURAL_ARMS = _grid(algorithm=["neural_epsilon_greedy"], arm_features=["shared"], learning_rate=[0.003, 0.01])
BOLTZMANN_ARMS = _grid(
    algorithm=["neural_boltzmann"], arm_features=["shared"], learning_rate=[0.01], temperature=[0.05, 0.2]
)
MABWISER = {"alpha": ALPHAS, "l2_lambda": [0.1, 1.0]}
VOWPALWABBIT = {
    "squarecb": (["--squarecb --gamma_scale 100", "--squarecb --gamma_scale 1000"], [2.0, 5.0, 10.0]),
    "cover": (["--cover 2"], [0.5, 2.0]),
    "epsilon": (["--epsilon 0.02", "--epsilon 0.1"], [2.0, 5.0, 10.0]),
}
CONTESTANTS = [
    Contestant("lin_ucb", "", ALL, PLAIN),
    Contestant("lin_ts", "", ALL, _grid(algorithm=["lin_ts"], alpha=ALPHAS, tikhonov=[0.1, 1.0])),
    Contestant("greedy", "", ALL, _grid(algorithm=["greedy"], epsilon=[EPSILON, 0.05, 0.1])),
    Contestant("lin_ucb, arm features", "", ALL, SHARED, tuning_seeds=1),
    Contestant("lin_ucb, hybrid", "", ALL, HYBRID, tuning_seeds=1),
    Contestant("lin_ts, hybrid", "", ALL, TS_HYBRID, tuning_seeds=1),
    Contestant("neural_epsilon_greedy", "", ALL, NEURAL_EPSILON, tuning_seeds=1),
    Contestant("neural_boltzmann", "", ALL, BOLTZMANN, tuning_seeds=1),
    Contestant("neural_linucb", "", ALL, NEURAL_LINUCB, tuning_seeds=1),
    Contestant("neural_epsilon_greedy, arm features", "", ALL, NEURAL_ARMS, tuning_seeds=1),
    Contestant("neural_boltzmann, arm features", "", ALL, BOLTZMANN_ARMS, tuning_seeds=1),
    Contestant("mabwiser LinUCB", "mabwiser", SMALL, _grid(policy=["LinUCB"], **MABWISER)),
    Contestant("mabwiser LinTS", "mabwiser", SMALL, _grid(policy=["LinTS"], **MABWISER)),
    *(
        Contestant(
            f"VowpalWabbit {name}",
            "vowpalwabbit",
            SMALL,
            _grid(explorer=explorers, learning_rate=rates),
            tuning_seeds=1,
        )
        for name, (explorers, rates) in VOWPALWABBIT.items()
    ),
]


class Outcome(NamedTuple):
    """One run."""

    regret: float  # over all decisions; window by window, those after the uniform window
    shares: list[float]  # of the oracle's reward, in each of ten parts (online) or in each window
    reward: float  # mean expected reward


class Job(NamedTuple):
    """One policy with one setting, playing one world. What it earns depends on nothing else."""

    contestant: Contestant
    num_actions: int
    mode: str
    settings: dict[str, Any]
    seed: int


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the comparison and writes its report; returns the exit code."""
    return run_main("bench.learning", _run, argv)


def _parser() -> FlagParser:
    parser = FlagParser(prog="python -m bench.learning", documentation=__doc__)
    parser.add_argument("--ratings", default="sample", help="as the loop's --ratings (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=int, default=5, help="number of reported seeds, at least 1 (default: %(default)s)"
    )
    parser.add_argument("--peers-python", help="Python with requirements/bench.txt (default: run without the peers)")
    parser.add_argument(
        "--num-actions", type=int, nargs="+", choices=ALL, default=ALL, help="run only these sizes of the catalogue"
    )
    parser.add_argument("--only", nargs="+", default=[], help="run only policies whose names contain one of these")
    return parser


def _run(argv: Sequence[str] | None) -> None:
    args = _parser().parse_args(argv)
    if args.seeds < 1:
        raise InputError(f"--seeds: at least 1, got {args.seeds}")
    begin = time.monotonic()
    os.environ |= dict.fromkeys(ONE_THREAD, "1")  # for the processes that are started from here
    contestants = [
        contestant
        for contestant in CONTESTANTS
        if (args.peers_python or not contestant.peer)
        and (not args.only or any(part in contestant.name for part in args.only))
    ]
    if not contestants:
        names = ", ".join(contestant.name for contestant in CONTESTANTS)
        raise InputError(f"--only: a part of one of these names: {names}; got {', '.join(args.only)}")
    path = HERE / "learning.json"
    complete = bool(args.peers_python) and not args.only and set(args.num_actions) == set(ALL)
    report: dict[str, Any] = {"runs": []}
    if not complete and path.is_file():
        report = json.loads(path.read_text())
    runs = _compare(args.ratings, args.num_actions, contestants, args.seeds, args.peers_python)
    replaced = {_which(run) for run in runs}
    report = {
        "settings": {
            "ratings": Path(args.ratings).name,
            "rank": RANK,
            "reward_noise": NOISE,
            "decisions": DECISIONS,
            "seeds": args.seeds,
        },
        "one_run": complete,
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "runs": [run for run in report["runs"] if _which(run) not in replaced] + runs,
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    _write_section(report)


def _which(run: dict[str, Any]) -> tuple[int, str, str]:
    return run["num_actions"], run["mode"], run["policy"]


def _compare(
    ratings: str, sizes: Sequence[int], contestants: list[Contestant], seeds: int, peers_python: str | None
) -> list[dict[str, Any]]:
    """Tunes each contestant at each number of actions and in each mode, then plays the reported seeds."""
    entries = [
        (contestant, num_actions, mode)
        for num_actions in sizes
        for contestant in contestants
        for mode in MODES[num_actions]
        if num_actions in contestant.num_actions
    ]
    trials = [
        Job(*entry, settings, seed)
        for entry in entries
        for settings in entry[0].grid
        for seed in TUNING_SEEDS[: entry[0].tuning_seeds]
    ]
    print(f"Tuning: {len(trials)} jobs", flush=True)
    regrets: dict[str, dict[str, float]] = {}
    for job, outcome in zip(trials, _play(ratings, trials, peers_python), strict=True):
        by_settings = regrets.setdefault(repr(job[:3]), {})
        by_settings[json.dumps(job.settings)] = by_settings.get(json.dumps(job.settings), 0.0) + outcome.regret
    best = {entry: json.loads(min(found, key=found.__getitem__)) for entry, found in regrets.items()}
    finals = [Job(*entry, best[repr(entry)], seed) for entry in entries for seed in range(seeds)]
    print(f"Reported: {len(finals)} jobs", flush=True)
    outcomes = _play(ratings, finals, peers_python)
    runs = []
    for place, (contestant, num_actions, mode) in enumerate(entries):
        own = outcomes[place * seeds : (place + 1) * seeds]
        run = {
            "num_actions": num_actions,
            "mode": mode,
            "policy": contestant.name,
            "settings": finals[place * seeds].settings,
            "regret": [round(outcome.regret) for outcome in own],
            "mean_reward": round(float(np.mean([outcome.reward for outcome in own])), 4),
            "share_of_oracle": np.mean([outcome.shares for outcome in own], axis=0).round(4).tolist(),
        }
        print(f"K={num_actions} {mode} {contestant.name}: regret {np.mean(run['regret']):.0f}", flush=True)
        runs.append(run)
    return runs


def _play(ratings: str, jobs: list[Job], peers_python: str | None) -> list[Outcome]:
    """What comes of the jobs, in two processes, ours before the peers'."""
    mine = [number for number, job in enumerate(jobs) if not job.contestant.peer]
    theirs = [number for number, job in enumerate(jobs) if job.contestant.peer]
    earned: dict[int, np.ndarray] = {}
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        waiting = {pool.submit(_play_ours, ratings, jobs[number]): number for number in mine}
        for done, future in enumerate(as_completed(waiting), 1):
            job, (earned[waiting[future]], seconds) = jobs[waiting[future]], future.result()
            print(
                f"  {done}/{len(mine)} K={job.num_actions} {job.mode} {job.settings} seed {job.seed}:"
                f" {earned[waiting[future]].mean():.3f} in {seconds:.1f} s",
                flush=True,
            )
    if theirs:
        assert peers_python is not None
        sizes = {jobs[number].num_actions for number in theirs}
        shares = [theirs[process::PROCESSES] for process in range(PROCESSES)]
        with ThreadPoolExecutor(PROCESSES) as threads:
            played = threads.map(
                lambda share: _play_peers(ratings, sizes, peers_python, [jobs[number] for number in share]), shares
            )
            for share, arrays in zip(shares, played, strict=True):
                earned |= dict(zip(share, arrays, strict=True))
    return [
        _outcome(_world(ratings, job.num_actions, job.seed), earned[number], job.mode)
        for number, job in enumerate(jobs)
    ]


@lru_cache
def _viewers(ratings: str, num_actions: int) -> tuple[MovieLens, np.ndarray]:
    viewers = MovieLens.build(load_ratings(ratings), num_actions=num_actions, rank=RANK, reward_noise=NOISE, seed=0)
    return viewers, _arm_features(viewers)


@lru_cache(maxsize=8)
def _world(ratings: str, num_actions: int, seed: int) -> World:
    viewers, _ = _viewers(ratings, num_actions)
    return sample(viewers.observations, viewers.expected_reward_matrix, NOISE, DECISIONS, seed)


def _play_ours(ratings: str, job: Job) -> tuple[np.ndarray, float]:
    """What it earned [N], and how many seconds that took."""
    world = _world(ratings, job.num_actions, job.seed)
    begin = time.perf_counter()
    make: Callable[..., Learner] = Linear
    settings = job.settings
    if settings["algorithm"] not in agents.LINEAR_ALGORITHMS:
        make, settings = Neural, settings | {"online": job.mode == "online"}
    learner = make(world, job.seed, _viewers(ratings, job.num_actions)[1], **settings)
    earned = play(world, learner, BATCHES[job.mode], job.mode == "windows", job.seed)
    return earned, time.perf_counter() - begin


def _play_peers(ratings: str, sizes: set[int], python: str, jobs: list[Job]) -> list[np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / name) for name in ("viewers.npz", "jobs.json", "results.npz")]
        arrays = {}
        for size in sizes:
            viewers, _ = _viewers(ratings, size)
            arrays[f"{size}/observations"], arrays[f"{size}/expected"] = (
                viewers.observations,
                viewers.expected_reward_matrix,
            )
        np.savez(paths[0], **arrays)
        listed = [
            {
                "peer": job.contestant.peer,
                "settings": job.settings,
                "num_actions": job.num_actions,
                "batch": BATCHES[job.mode],
                "uniform_first": job.mode == "windows",
                "seed": job.seed,
                "reward_noise": NOISE,
                "decisions": DECISIONS,
            }
            for job in jobs
        ]
        Path(paths[1]).write_text(json.dumps(listed))
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


def _arm_features(viewers: MovieLens) -> np.ndarray:
    """[K, 1 + factors]: a constant, and what is known of each movie beforehand."""
    return np.concatenate([np.ones((viewers.num_actions, 1)), viewers.known_factors], axis=1)


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
    ran_with = report["settings"]
    ran = f"all in one run of {report['minutes']:.0f} minutes" if report["one_run"] else "merged from several runs"
    section = (
        f"{ran_with['decisions']:,} interactions on `{ran_with['ratings']}`, rank {ran_with['rank']}, reward noise {ran_with['reward_noise']}, mean and "
        f"standard deviation over {ran_with['seeds']} seeds, each policy tuned on as many decisions of other seeds; {ran}. Online, policies learn after every 50 decisions; in windows,"
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
