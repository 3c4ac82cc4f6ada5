"""Measures the regret of each algorithm in worlds made of MovieLens, beside mabwiser and VowpalWabbit; `make bench-learning`
runs it.

    python -m bench.learning --peers-python .peers/bin/python [--world latent like] [--ratings FOLDER|sample] [--seeds 5]

The worlds are those of `beam_jobs.worlds`, with the settings in CONDITIONS. There are 20,000 interactions. Online,
policies learn after every 50 decisions. Window by window, the first 2,000 decisions are uniform and policies learn after
every 2,000. Each policy is tuned on seeds that are not
reported, with the same number of decisions; where the best of a policy's settings is the first or last value of an axis, the
axis is continued and more settings are tried. By default one run measures everything. With `--world`, `--mode`,
`--only` or `--num-actions`, the new figures replace those of the same policies in the last report, and the others stay. Writes
`learning.json`, a figure per world, and the section in `README.md`, in the folder `--out`.
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
from beam_jobs import worlds
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
DECISIONS, EPSILON = 20_000, 0.02
BATCHES = {"online": 50, "windows": 2000}
TUNING_SEEDS = (100, 101)
CONTINUATIONS = 3  # how often an axis of settings is continued at most
STEPS_ONLINE = 10
PROCESSES = 2


class Conditions(NamedTuple):
    """What a world is played with."""

    rank: int = 20
    reward_noise: float = 0.5
    angle: float = 0.0  # by which it turns over all decisions, in radians


CONDITIONS: dict[worlds.World, Conditions] = {
    "latent": Conditions(),
    "second_half": Conditions(rank=5, reward_noise=0.7),
    "ideal": Conditions(),
    "like": Conditions(),
    "trends": Conditions(angle=np.pi),  # through half of the later ratings
}
# Each process computes in one thread: two of them share nothing, and a job has one result.
ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


class Linear:
    """Ours: sufficient statistics, any model over them, and an explorer."""

    def __init__(
        self,
        world: World,
        seed: int,
        algorithm: str,
        alpha: float = 0.0,
        epsilon: float = 0.0,
        **hyperparameters: Any,
    ) -> None:
        self._statistics = SufficientStatistics.zeros(world.expected.shape[1], world.observations.shape[1])
        self._rng = np.random.default_rng([seed, 2])
        self._algorithm, self._alpha, self._epsilon, self._features = algorithm, alpha, epsilon, world.features
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
        self, world: World, seed: int, algorithm: str, online: bool, alpha: float = 0.5,
        temperature: float = 0.1, **hyperparameters: Any,
    ) -> None:  # fmt: skip
        import tensorflow as tf

        tf.random.set_seed(seed)
        num_actions, dim = world.expected.shape[1], world.observations.shape[1]
        self._hyperparameters = agents.complete(algorithm, hyperparameters)
        over_arms = world.features.astype(np.float32) if self._hyperparameters.get("arm_features") == "shared" else None
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
VOWPALWABBIT: dict[str, tuple[str, list[Any]]] = {  # explorer, and the values of its own setting
    "squarecb": ("--squarecb --gamma_scale {}", [10.0, 100.0, 1000.0]),
    "regcb": ("--regcb --mellowness {}", [0.001, 0.01, 0.1]),
    "cover": ("--cover {}", [2, 4]),
    "epsilon": ("--epsilon {}", [0.02, 0.1]),
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
            _grid(explorer=[explorer], setting=values, learning_rate=[0.5, 2.0], arm_features=[False, True]),
            tuning_seeds=1,
        )
        for name, (explorer, values) in VOWPALWABBIT.items()
    ),
]


class Outcome(NamedTuple):
    """One run."""

    regret: float  # over all decisions; window by window, those after the uniform window
    shares: list[float]  # of the oracle's reward, in each of ten parts (online) or in each window
    reward: float  # mean expected reward


class Job(NamedTuple):
    """One policy with one setting, playing one world. What it earns depends on nothing else."""

    world: worlds.World
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
        "--world", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS), help="run only these worlds"
    )
    parser.add_argument(
        "--num-actions", type=int, nargs="+", choices=ALL, default=ALL, help="run only these sizes of the catalogue"
    )
    parser.add_argument("--mode", nargs="+", choices=list(BATCHES), default=list(BATCHES), help="run only these modes")
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder of the report; its README.md gets the section (default: bench)"
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
    path = args.out / "learning.json"
    complete = (
        bool(args.peers_python)
        and not args.only
        and (set(args.num_actions), set(args.mode), set(args.world)) == (set(ALL), set(BATCHES), set(CONDITIONS))
    )
    before: list[dict[str, Any]] = []
    if not complete and path.is_file():
        before = json.loads(path.read_text())["runs"]
    asked = Asked(args.ratings, args.world, args.num_actions, args.mode, contestants, args.seeds, args.peers_python)
    runs = _compare(asked)
    replaced = {_which(run) for run in runs}
    report = {
        "settings": {
            "ratings": Path(args.ratings).name,
            "conditions": {world: conditions._asdict() for world, conditions in CONDITIONS.items()},
            "decisions": DECISIONS,
            "seeds": args.seeds,
        },
        "one_run": complete,
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "runs": [run for run in before if "world" in run and _which(run) not in replaced] + runs,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    _write_section(report, args.out)


def _which(run: dict[str, Any]) -> tuple[str, int, str, str]:
    return run["world"], run["num_actions"], run["mode"], run["policy"]


class Asked(NamedTuple):
    """What a run measures."""

    ratings: str
    worlds: list[worlds.World]
    sizes: Sequence[int]
    modes: list[str]
    contestants: list[Contestant]
    seeds: int
    peers_python: str | None


Entry = tuple[worlds.World, Contestant, int, str]


def _compare(asked: Asked) -> list[dict[str, Any]]:
    """Tunes each contestant in each world, at each number of actions and in each mode, then plays the reported seeds."""
    runs = []
    for world in asked.worlds:
        begin = time.monotonic()
        entries: list[Entry] = [
            (world, contestant, num_actions, mode)
            for num_actions in asked.sizes
            for contestant in asked.contestants
            for mode in MODES[num_actions]
            if num_actions in contestant.num_actions and mode in asked.modes
        ]
        best = _tune(asked, entries)
        finals = [
            Job(*entry, settings, seed)
            for entry, settings in zip(entries, best, strict=True)
            for seed in range(asked.seeds)
        ]
        print(f"{world}: {len(finals)} jobs to report", flush=True)
        outcomes = _play(asked, finals)
        for place, (_, contestant, num_actions, mode) in enumerate(entries):
            own = outcomes[place * asked.seeds : (place + 1) * asked.seeds]
            run = {
                "world": world,
                "num_actions": num_actions,
                "mode": mode,
                "policy": contestant.name,
                "settings": best[place],
                "regret": [round(outcome.regret) for outcome in own],
                "mean_reward": round(float(np.mean([outcome.reward for outcome in own])), 4),
                "share_of_oracle": np.mean([outcome.shares for outcome in own], axis=0).round(4).tolist(),
            }
            print(f"{world} K={num_actions} {mode} {contestant.name}: regret {np.mean(run['regret']):.0f}", flush=True)
            runs.append(run)
        print(f"{world}: {(time.monotonic() - begin) / 60:.1f} minutes", flush=True)
    return runs


def _tune(asked: Asked, entries: list[Entry]) -> list[dict[str, Any]]:
    """The best settings of each entry by the regret on its tuning seeds. No best value is at the end of a numeric axis,
    unless the axis was continued CONTINUATIONS times, or ends there (0, which cannot be continued by a factor)."""
    tried: list[dict[str, float]] = [{} for _ in entries]  # settings as JSON -> regret, a dictionary per entry
    waiting = [(place, settings) for place, entry in enumerate(entries) for settings in entry[1].grid]
    for _ in range(1 + CONTINUATIONS):
        trials = [
            (place, Job(*entries[place], settings, seed))
            for place, settings in waiting
            for seed in TUNING_SEEDS[: entries[place][1].tuning_seeds]
        ]
        if not trials:
            break
        print(f"{entries[0][0]}: {len(trials)} jobs to tune", flush=True)
        for (place, job), outcome in zip(trials, _play(asked, [job for _, job in trials]), strict=True):
            key = json.dumps(job.settings)
            tried[place][key] = tried[place].get(key, 0.0) + outcome.regret
        waiting = [(place, settings) for place, found in enumerate(tried) for settings in continued(found)]
    return [json.loads(min(found, key=found.__getitem__)) for found in tried]


def continued(tried: dict[str, float]) -> list[dict[str, Any]]:
    """Settings beyond the ends of those numeric axes at whose end the best settings lie.

    An axis is a setting with two or more positive numbers among those tried; it is continued by the factor between its
    last two. `tried` has the regret of settings, as JSON.
    """
    best = json.loads(min(tried, key=tried.__getitem__))
    beyond = []
    for name, value in best.items():
        if not isinstance(value, float) or value <= 0:
            continue
        axis = sorted({settings[name] for settings in map(json.loads, tried) if settings[name] > 0})
        if len(axis) > 1 and value in (axis[0], axis[-1]):
            inner = axis[1] if value == axis[0] else axis[-2]
            beyond.append(best | {name: float(f"{value * value / inner:.4g}")})
    return [settings for settings in beyond if json.dumps(settings) not in tried]


def _play(asked: Asked, jobs: list[Job]) -> list[Outcome]:
    """What comes of the jobs, in two processes, ours before the peers'."""
    mine = [number for number, job in enumerate(jobs) if not job.contestant.peer]
    theirs = [number for number, job in enumerate(jobs) if job.contestant.peer]
    earned: dict[int, np.ndarray] = {}
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        waiting = {pool.submit(_play_ours, asked.ratings, jobs[number]): number for number in mine}
        for done, future in enumerate(as_completed(waiting), 1):
            job, (earned[waiting[future]], seconds) = jobs[waiting[future]], future.result()
            print(
                f"  {done}/{len(mine)} {job.world} K={job.num_actions} {job.mode} {job.settings} seed {job.seed}:"
                f" {earned[waiting[future]].mean():.3f} in {seconds:.1f} s",
                flush=True,
            )
    if theirs:
        assert asked.peers_python is not None
        theirs.sort(key=lambda number: (jobs[number].num_actions, jobs[number].seed))  # a world is read once
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(PROCESSES) as threads:
            for job in (jobs[number] for number in theirs):
                path = Path(folder) / _file(job)
                if not path.exists():
                    np.savez(path, **_world(asked.ratings, job.world, job.num_actions, job.seed)._asdict())
            shares = [theirs[process::PROCESSES] for process in range(PROCESSES)]
            played = threads.map(
                lambda process: _play_peers(
                    Path(folder), process, str(asked.peers_python), [jobs[number] for number in shares[process]]
                ),
                range(PROCESSES),
            )
            for share, arrays in zip(shares, played, strict=True):
                earned |= dict(zip(share, arrays, strict=True))
    return [
        _outcome(_world(asked.ratings, job.world, job.num_actions, job.seed), earned[number], job.mode)
        for number, job in enumerate(jobs)
    ]


def _file(job: Job) -> str:
    return f"{job.world}-{job.num_actions}-{job.seed}.npz"


@lru_cache
def _viewers(ratings: str, world: worlds.World, num_actions: int) -> MovieLens:
    conditions = CONDITIONS[world]
    return worlds.WORLDS[world].build(
        load_ratings(ratings),
        num_actions=num_actions,
        rank=conditions.rank,
        reward_noise=conditions.reward_noise,
        seed=0,
    )


@lru_cache(maxsize=4)
def _world(ratings: str, world: worlds.World, num_actions: int, seed: int) -> World:
    return sample(_viewers(ratings, world, num_actions), DECISIONS, seed, CONDITIONS[world].angle)


def _play_ours(ratings: str, job: Job) -> tuple[np.ndarray, float]:
    """What it earned [N], and how many seconds that took."""
    world = _world(ratings, job.world, job.num_actions, job.seed)
    begin = time.perf_counter()
    make: Callable[..., Learner] = Linear
    settings = job.settings
    if settings["algorithm"] not in agents.LINEAR_ALGORITHMS:
        make, settings = Neural, settings | {"online": job.mode == "online"}
    earned = play(world, make(world, job.seed, **settings), BATCHES[job.mode], job.mode == "windows", job.seed)
    return earned, time.perf_counter() - begin


def _play_peers(folder: Path, process: int, python: str, jobs: list[Job]) -> list[np.ndarray]:
    asked, results = folder / f"jobs-{process}.json", folder / f"results-{process}.npz"
    listed = [
        {
            "peer": job.contestant.peer,
            "settings": job.settings,
            "world": _file(job),
            "batch": BATCHES[job.mode],
            "uniform_first": job.mode == "windows",
            "seed": job.seed,
        }
        for job in jobs
    ]
    asked.write_text(json.dumps(listed))
    subprocess.run([python, "-m", "bench.peers", str(folder), str(asked), str(results)], check=True, cwd=HERE.parent)
    with np.load(results) as arrays:
        return [arrays[str(number)] for number in range(len(jobs))]


def _outcome(world: World, earned: np.ndarray, mode: str) -> Outcome:
    oracle = world.expected.max(axis=1)
    parts = np.array_split(np.arange(len(earned)), len(earned) // BATCHES["windows"])
    counted = slice(BATCHES["windows"], None) if mode == "windows" else slice(None)
    return Outcome(
        float((oracle - earned)[counted].sum()),
        [float(earned[part].sum() / oracle[part].sum()) for part in parts],
        float(earned[counted].mean()),
    )


def _write_section(report: dict[str, Any], out: Path) -> None:
    ran_with = report["settings"]
    ran = f"all in one run of {report['minutes']:.0f} minutes" if report["one_run"] else "merged from several runs"
    section = (
        f"{ran_with['decisions']:,} interactions on `{ran_with['ratings']}`, mean and standard deviation over {ran_with['seeds']} seeds, each policy"
        f" tuned on as many decisions of other seeds; {ran}. Online, policies learn after every 50 decisions; in windows,"
        " after every 2,000, the first uniform and not counted in regret and reward. \"first\" and \"last\" are shares of the oracle's reward in the"
        " first 2,000 decisions (in windows: the first that were served) and in the last.\n"
    )  # fmt: skip
    for world in CONDITIONS:
        if runs := [run for run in report["runs"] if run["world"] == world]:
            section += _of_world(world, runs, ran_with["conditions"][world], out)
    page = out / "README.md"
    text = page.read_text() if page.is_file() else ""
    if BEGIN not in text:
        text += f"\n## Learning\n\n`make bench-learning` runs it.\n\n{BEGIN}{END}"
    head, rest = text.split(BEGIN)
    page.write_text(head + BEGIN + section + END + rest.split(END)[1])


def _of_world(world: worlds.World, runs: list[dict[str, Any]], conditions: dict[str, Any], out: Path) -> str:
    """Draws the figure of a world, and returns its part of the section."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    panels = [(mode, num_actions) for mode in BATCHES for num_actions in ALL]
    figure, axes = plt.subplots(len(BATCHES), len(ALL), figsize=(15, 8), sharey=True)
    lines = []
    for axis, (mode, num_actions) in zip(axes.flat, panels, strict=True):
        here = [run for run in runs if (run["mode"], run["num_actions"]) == (mode, num_actions)]
        for run in sorted(here, key=lambda run: float(np.mean(run["regret"]))):
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
        if here:
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out / f"learning-{world}.svg", metadata={"Date": None})
    plt.close(figure)
    noise = "clicks" if worlds.WORLDS[world].clicks else f"reward noise {conditions['reward_noise']}"
    moves = f", popularity turns by {conditions['angle']:.2f} radians" if conditions["angle"] else ""
    return (
        f"\n### World `{world}`\n\nRank {conditions['rank']}, {noise}{moves}.\n\n![Share of the oracle's reward](learning-{world}.svg)\n\n"
        "| actions | mode | policy | regret | mean reward | first | last | settings |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        + "\n".join(lines)
        + "\n"
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
