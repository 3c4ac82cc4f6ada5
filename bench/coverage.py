"""Do the intervals of off-policy estimates cover, and are they no wider than they must be? Writes coverage.json and docs.

    python -m bench.coverage [--logs 1000] [--only WORDS]      (make coverage)

Each world has known expected rewards, a logging policy and a target policy. From each of 1,000 logs per world the product's
own `off_policy.estimate` gives its intervals; what counts is how often those that are not marked unreliable hold the truth,
how many are marked, and how wide they are beside the narrowest method that covers there (93% or more): the plain bootstrap of
ips, snips and dr, Cressie-Read with and without the model, and for dr betting bounds (Waudby-Smith and Ramdas 2023).
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from contracts.command_line import FlagParser, run_main
from contracts.errors import InputError
from trainer import off_policy, support
from trainer.estimators import estimator
from trainer.intervals import Intervals, Question

HERE = Path(__file__).parent
RESULTS = HERE / "coverage.json"
PAGE = HERE.parent / "docs" / "evidence" / "estimates.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"
COVERS = 0.93
MAX_RATIO = 1.5
MAX_MARKED = 0.05
DIM = 3

Policy = Callable[[np.ndarray], np.ndarray]  # expected scores [N, K] -> probabilities [N, K]


def uniform(scores: np.ndarray) -> np.ndarray:
    """Each arm alike."""
    return np.full_like(scores, 1 / scores.shape[1])


def greedy(epsilon: float) -> Policy:
    """The best arm, but for a share that is spread over all."""

    def policy(scores: np.ndarray) -> np.ndarray:
        probabilities = np.full_like(scores, epsilon / scores.shape[1])
        probabilities[np.arange(len(scores)), scores.argmax(axis=1)] += 1 - epsilon
        return probabilities

    return policy


def softmax(sharpness: float, floor: float = 0.0) -> Policy:
    """Better arms more often, none less often than the floor."""

    def policy(scores: np.ndarray) -> np.ndarray:
        odds = np.exp(sharpness * (scores - scores.max(axis=1, keepdims=True)))
        probabilities = odds / odds.sum(axis=1, keepdims=True)
        return floor + (1 - scores.shape[1] * floor) * probabilities

    return policy


@dataclass(frozen=True)
class World:
    """Linear tastes of DIM numbers; each policy sees them with errors of its own (`blur`)."""

    name: str
    kind: str
    arms: int
    decisions: int
    logging: Policy
    target: Policy
    reward: str = "normal"
    logging_blur: float = 0.0
    target_blur: float = 0.5
    model: float = 0.7  # the reward model's values are the true ones times this
    model_blur: float = 0.0  # and with tastes that are wrong by this
    viewers: int = 0
    seed: int = 0
    base: float = 1.0
    tastes: dict[str, np.ndarray] = field(default_factory=dict, compare=False)

    def taste(self, name: str, blur: float) -> np.ndarray:
        """[K, DIM]: the true tastes, blurred."""
        if name not in self.tastes:
            truth = np.random.default_rng([7, self.seed, self.arms]).normal(size=(self.arms, DIM))
            code = ["truth", "logging", "target", "model"].index(name)
            noise = np.random.default_rng([code, self.seed, self.arms]).normal(size=(self.arms, DIM))
            self.tastes[name] = truth + blur * noise
        return self.tastes[name]

    def policies(self, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[N, K] each: the logging policy's probabilities and the target's."""
        return (
            self.logging(contexts @ self.taste("logging", self.logging_blur).T),
            self.target(contexts @ self.taste("target", self.target_blur).T),
        )

    def expected(self, contexts: np.ndarray, name: str = "truth", blur: float = 0.0) -> np.ndarray:
        """[N, K]: the expected reward of each arm."""
        scores = contexts @ self.taste(name, blur).T
        if self.reward == "click":
            return self.base * np.clip(1 + 0.5 * scores, 0.05, 4)
        return 1 / (1 + np.exp(-scores)) if self.reward == "bernoulli" else scores + self.base

    def truth(self) -> float:
        """The target policy's value."""
        total, parts = 0.0, 20
        for part in range(parts):
            contexts = np.random.default_rng([8, part]).normal(size=(4_000_000 // (parts * max(self.arms, 20)), DIM))
            total += float((self.policies(contexts)[1] * self.expected(contexts)).sum(axis=1).mean())
        return total / parts

    def rewards(self, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[N]: rewards with these expected values."""
        match self.reward:
            case "click" | "bernoulli":
                return (rng.random(len(mean)) < mean).astype(np.float64)
            case "t3":
                return mean + rng.standard_t(3, len(mean))
            case "lognormal":
                return mean + rng.lognormal(0, 1.5, len(mean)) - np.exp(1.125)
            case "normal":
                return mean + rng.normal(size=len(mean))
            case _:
                raise ValueError(self.reward)

    def log(self, seed: int) -> dict:
        """The arguments of `off_policy.estimate`."""
        rng = np.random.default_rng([9, self.seed, seed])
        clusters = None
        contexts = rng.normal(size=(self.viewers or self.decisions, DIM))
        if self.viewers:
            clusters = np.repeat(np.arange(self.viewers), self.decisions // self.viewers)
            contexts = contexts[clusters]
        logging, target = self.policies(contexts)
        rows = np.arange(self.decisions)
        action = np.minimum((logging.cumsum(axis=1) < rng.random((self.decisions, 1))).sum(axis=1), self.arms - 1)
        rewards = self.rewards(self.expected(contexts)[rows, action], rng)
        if self.viewers and self.reward == "normal":  # a viewer's mood
            rewards += 0.7 * rng.normal(size=self.viewers)[clusters]
        model = self.model * self.expected(contexts, "model", self.model_blur)
        return {
            "rewards": rewards,
            "propensities": logging[rows, action],
            "target_probabilities": target[rows, action],
            "q_logged": model[rows, action],
            "q_target": (target * model).sum(axis=1),
            "support": support.support(target, logging),
            "clusters": clusters,
        }


def betting(values: np.ndarray, low: float, high: float, confidence: float = 0.95) -> tuple[float, float]:
    """The hedged betting interval of the mean of values in [low, high] (Waudby-Smith and Ramdas 2023, section 4)."""
    scaled, count, alpha = (values - low) / (high - low), len(values), 1 - confidence
    mean = (0.5 + scaled.cumsum()) / (np.arange(1, count + 1) + 1)
    variance = (0.25 + ((scaled - mean) ** 2).cumsum()) / (np.arange(1, count + 1) + 1)
    bets = np.sqrt(2 * np.log(2 / alpha) / (count * np.append(0.25, variance[:-1])))

    def rejected(candidate: float) -> bool:
        up = np.log1p(np.minimum(bets, 0.5 / max(candidate, 1e-12)) * (scaled - candidate)).cumsum().max()
        down = np.log1p(-np.minimum(bets, 0.5 / max(1 - candidate, 1e-12)) * (scaled - candidate)).cumsum().max()
        return max(up, down) > np.log(2 / alpha)

    bounds = []
    centre = float(np.clip(scaled.mean(), 0, 1))
    for end in (0.0, 1.0):
        inside, outside = centre, end
        for _ in range(10):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        bounds.append(low + (high - low) * outside)
    return bounds[0], bounds[1]


def compared(log: dict, world: World) -> dict[str, tuple[float, float]]:
    """The intervals of the methods that are compared; those with "model" use the reward model."""
    columns = [log[name] for name in ("rewards", "propensities", "target_probabilities", "q_logged", "q_target")]
    clusters = log["clusters"]
    decisions = len(columns[0])
    group = np.random.default_rng([0, 0]).permutation(decisions) % off_policy.GROUPS if clusters is None else clusters
    found = {}
    for with_model in (False, True):
        sums = off_policy.Sums.zeros(off_policy.GROUPS)
        sums.add(group, *columns)
        weight = columns[2] / columns[1]
        sums.support = support.Support(max(float(weight.max()), 1 / float(columns[1].min())))
        intervals = Intervals(sums.table, sums.unseen(with_model, Question(), sums.possible_weight()), Question())
        for name in ("dr",) if with_model else ("ips", "snips"):
            plain = intervals.plain(estimator(name, 0.0))
            found[f"{name} plain" + (", model" if with_model else "")] = (plain.low, plain.high)
        robust = intervals.cressie_read(estimator("dr" if with_model else "snips", 0.0))
        found["cressie-read" + (", model" if with_model else "")] = (robust.low, robust.high)
        if with_model and clusters is None:
            residual, expected = columns[0] - columns[3], columns[4]
            largest = sums.support.largest_weight
            low = float(expected.min() + largest * min(residual.min(), 0))
            high = float(expected.max() + largest * max(residual.max(), 0))
            found["betting, model"] = betting(expected + weight * residual, low, high)
    return found


def measure(world: World, logs: int) -> dict:
    """What came out of the world's logs."""
    truth = world.truth()
    names = ("ips", "snips", "dr", "switch_dr", "dros")
    shown: dict[str, list] = {
        name: [] for name in (*names, "snips, no model", "switch_dr, support of the log", "switch_dr, no support")
    }
    others: dict[str, list] = {}
    sizes = []
    for seed in range(logs):
        log = world.log(seed)
        found = off_policy.estimate(**log)
        alone = off_policy.estimate(**{name: value for name, value in log.items() if not name.startswith("q_")})
        weights = log["target_probabilities"] / log["propensities"]
        by_log = off_policy.estimate(**(log | {"support": support.observed_support(weights)}))
        by_default = off_policy.estimate(**(log | {"support": None}))
        sizes.append(found.effective_sample_size)
        for name in shown:
            match name:
                case "snips, no model":
                    interval = alone.recommended
                case "switch_dr, support of the log":
                    interval = by_log.recommended
                case "switch_dr, no support":
                    interval = by_default.recommended
                case _:
                    interval = getattr(found, name)
            shown[name].append(
                (interval.low <= truth <= interval.high, interval.high - interval.low, interval.reliable,
                 abs(interval.value - truth), interval.method == "cressie_read")
            )  # fmt: skip
        for name, (low, high) in compared(log, world).items():
            others.setdefault(name, []).append((low <= truth <= high, high - low))
    result = {
        "kind": world.kind,
        "arms": world.arms,
        "decisions": world.decisions,
        "logs": logs,
        "truth": round(truth, 5),
        "effective_sample_size": [round(float(size), 1) for size in np.quantile(sizes, [0.05, 0.5, 0.95])],
        "intervals": {name: _summary(np.array(rows, float)) for name, rows in shown.items()},
        "compared": {
            name: {
                "coverage": round(float(np.mean([row[0] for row in rows])), 4),
                "width": _round(float(np.nanmedian([row[1] for row in rows]))),
            }
            for name, rows in others.items()
        },
    }
    return result | {"recommended": {
        "with model": _verdict(result, "switch_dr", lambda name: True),
        "without": _verdict(result, "snips, no model", lambda name: "model" not in name),
    }}  # fmt: skip


def _summary(rows: np.ndarray) -> dict:
    """Of [L, 5]: covered, width, reliable, error, Cressie-Read."""
    reliable = rows[:, 2] > 0
    kept = rows[reliable] if reliable.any() else np.full((1, 5), np.nan)
    return {
        "coverage": _round(float(kept[:, 0].mean())),
        "marked": round(float(1 - reliable.mean()), 4),
        "width": _round(float(np.median(kept[:, 1]))),
        "root_mean_square_error": _round(float(np.sqrt(np.nanmean(rows[:, 3] ** 2)))),
        "cressie_read": round(float(rows[:, 4].mean()), 3),
    }


def _verdict(result: dict, name: str, allowed: Callable[[str], bool]) -> dict:
    """The recommended interval beside the narrowest of the allowed methods that covers."""
    ours = result["intervals"][name]
    covering = {
        method: of["width"] for method, of in result["compared"].items() if allowed(method) and of["coverage"] >= COVERS
    }
    narrowest = min(covering, key=lambda method: covering[method], default=None)
    plain_covers = any("plain" in method for method in covering)
    ratio = _round(ours["width"] / covering[narrowest]) if narrowest and ours["width"] else None
    return {
        "narrowest": narrowest,
        "ratio": ratio,
        "plain_covers": plain_covers,
        "covers": ours["coverage"] is None or ours["coverage"] >= COVERS,
        "narrow": ratio is None or ratio <= MAX_RATIO,
        "believed": not plain_covers or ours["marked"] < MAX_MARKED,
    }


def _round(value: float) -> float | None:
    return None if np.isnan(value) else float(f"{value:.4g}")


def worlds() -> list[World]:
    """The issue's worlds first ("stated"), then those on which nothing was chosen ("other")."""
    stated = [
        World("benign, K=5", "stated", 5, 1000, uniform, softmax(1.0)),
        World("benign, K=10, Bernoulli", "stated", 10, 2000, uniform, softmax(1.0), "bernoulli"),
        World("benign, own log, epsilon 0.3", "stated", 10, 2000, greedy(0.3), greedy(0.3), target_blur=0.0),
        World("benign, epsilon 0.3, other greedy", "stated", 10, 3000, greedy(0.3), greedy(0.0), target_blur=0.3),
        World("benign, softmax to softmax", "stated", 20, 2000, softmax(0.5), softmax(1.0), logging_blur=0.5),
        World("effective size 5, deterministic, K=100", "stated", 100, 500, uniform, greedy(0.0)),
        World("effective size 20, deterministic, K=100", "stated", 100, 2000, uniform, greedy(0.0)),
        World("effective size 50, deterministic, Bernoulli", "stated", 100, 5000, uniform, greedy(0.0), "bernoulli"),
        World("effective size 10, softmax, K=100", "stated", 100, 400, uniform, softmax(2.0)),
        World("heavy tails: t with 3 degrees", "stated", 10, 1000, uniform, softmax(1.0), "t3"),
        World("heavy tails: lognormal", "stated", 10, 1000, uniform, softmax(1.0), "lognormal"),
        World("heavy weights", "stated", 20, 1000, softmax(1.5), softmax(2.0), logging_blur=0.8),
        World("clicks of 0.4%, K=80, deterministic", "stated", 80, 10_000, uniform, greedy(0.0), "click", base=0.004),
        World("clicks of 0.4%, K=10", "stated", 10, 5000, uniform, softmax(1.0), "click", base=0.004),
        World("epsilon 0.02, untried targets", "stated", 20, 2000, greedy(0.02), greedy(0.0)),
        World("epsilon 0.02, untried targets, Bernoulli", "stated", 20, 2000, greedy(0.02), greedy(0.0), "bernoulli"),
        World("floor 0.001, K=20", "stated", 20, 2000, softmax(3.0, 0.001), softmax(1.0)),
        World("floor 0.001, K=100, deterministic", "stated", 100, 2000, softmax(3.0, 0.001), greedy(0.0), target_blur=1.0),
        World("100 viewers x 20", "stated", 10, 2000, uniform, softmax(1.0), viewers=100),
        World("100 viewers x 20, Bernoulli, epsilon 0.3", "stated", 10, 2000, greedy(0.3), greedy(0.0), "bernoulli", viewers=100),
    ]  # fmt: skip
    other = [
        World("K=20, other seed", "other", 20, 1000, uniform, softmax(1.5), seed=5),
        World("K=500, deterministic", "other", 500, 5000, uniform, greedy(0.0), seed=3),
        World("no reward model (all 0)", "other", 20, 2000, greedy(0.1), greedy(0.0), model=0.0, seed=4),
        World("reward model of other tastes", "other", 20, 2000, greedy(0.1), greedy(0.0), model=1.0, model_blur=1.5, seed=6),
        World("the same, epsilon 0.02", "other", 20, 2000, greedy(0.02), greedy(0.0), model=1.0, model_blur=1.5, seed=6),
        World("reward model of other tastes, floor 0.001", "other", 20, 2000, softmax(3.0, 0.001), softmax(1.0), model=1.0, model_blur=1.5, seed=8),
        World("K=500, epsilon 0.1, Bernoulli", "other", 500, 4000, greedy(0.1), greedy(0.0), "bernoulli", seed=9),
        World("clicks of 1%, K=20, softmax log", "other", 20, 4000, softmax(1.0), softmax(2.0), "click", base=0.01, seed=10),
        World("t with 3 degrees, epsilon 0.1", "other", 10, 1000, greedy(0.1), softmax(1.0), "t3", seed=11),
        World("40 viewers x 25", "other", 10, 1000, greedy(0.3), softmax(1.0), viewers=40, seed=12),
        World("200 decisions, K=5", "other", 5, 200, uniform, softmax(1.0), seed=13),
        World("50 decisions, K=5, Bernoulli", "other", 5, 50, uniform, softmax(1.0), "bernoulli", seed=14),
    ]  # fmt: skip
    return stated + other


def table(results: dict[str, dict]) -> str:
    """The table of the docs."""
    lines = [
        "| world | effective size | with a reward model: covers, marked, width / narrowest that covers |"
        " without: covers, marked, width / narrowest | dr plain covers | snips plain covers |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, result in results.items():
        cells = [f"{name}{' (other)' if result['kind'] == 'other' else ''}"]
        cells.append(f"{result['effective_sample_size'][1]:g}")
        for which, interval in (("with model", "switch_dr"), ("without", "snips, no model")):
            ours, verdict = result["intervals"][interval], result["recommended"][which]
            coverage = "all marked" if ours["coverage"] is None else f"{100 * ours['coverage']:.1f}%"
            ratio = "none covers" if verdict["narrowest"] is None else f"{verdict['ratio']} x {verdict['narrowest']}"
            if verdict["ratio"] is None and verdict["narrowest"] is not None:
                ratio = verdict["narrowest"]
            missed = [what for what in ("covers", "narrow", "believed") if not verdict[what]]
            cells.append(f"{coverage}, {100 * ours['marked']:.1f}%, {ratio}" + (" ✗" if missed else ""))
        cells += [
            f"{100 * result['compared'][method]['coverage']:.1f}%" for method in ("dr plain, model", "snips plain")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _measure(chosen: tuple[str, int]) -> dict:
    name, logs = chosen
    return measure(next(world for world in worlds() if world.name == name), logs)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the worlds and writes the results; returns the exit code."""
    return run_main("bench.coverage", _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    parser = FlagParser(prog="python -m bench.coverage", documentation=__doc__)
    parser.add_argument("--logs", type=int, default=1000, help="logs per world, at least 1 (default: %(default)s)")
    parser.add_argument("--only", default="", help="run the worlds whose names contain this, and write nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="worlds at a time, at least 1")
    args = parser.parse_args(argv)
    for name in ("logs", "processes"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}: at least 1, got {getattr(args, name)}")
    chosen = [(world.name, args.logs) for world in worlds() if args.only in world.name]
    if not chosen:
        raise InputError(f"--only: part of the name of a world, such as {worlds()[0].name!r}, got {args.only!r}")
    results = {}
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        for (name, _), result in zip(chosen, pool.map(_measure, chosen), strict=True):
            results[name] = result
            print(table({name: result}).splitlines()[-1], flush=True)
    if args.only:
        return
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    before, rest = PAGE.read_text("utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + table(results) + END + rest.split(END)[1], "utf-8")


if __name__ == "__main__":
    sys.exit(main())
