"""`make probation`: how long new versions are watched, how often the verdict is wrong, and what caution costs.

    python -m bench.probation [--ratings SOURCE] [--seeds 20] [--first-seed 0] [--only trials | cost]

Trials: candidates whose true gain over the anchor is known (`bench.trials`) pass the product's gate, and are watched by the
product's `orchestration.watch` in looks of 250 decisions, up to 20,000. Cost: the closed loop in simulated time
(`bench.simulated_loop`) with an anchor, beside the same loop in which what the gate lets pass serves at once.

Writes `bench/probation.json` and the tables in `docs/evidence/gate.md`.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from bench.pages import write_table
from contracts.command_line import FlagParser, run_main

if TYPE_CHECKING:
    from beam_jobs.movielens import MovieLens

PROGRAM = "bench.probation"
ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("probation.json")
PAGE = ROOT / "docs" / "evidence" / "gate.md"
OWN, OTHER = "own update", "another algorithm, as canary"
GAINS = {OWN: (0.1, 0.01, 0.0, -0.01, -0.05, -0.15, -0.5), OTHER: (0.1, 0.0, -0.05)}
ARMS = (20, 100, 500)
SHARE = 0.1  # of the anchor, or of the candidate of a canary
MARGIN = 0.02
BEFORE = 2000  # decisions of the anchor before the trial; one in ten is held back for the gate
STEP, STEPS = 250, 80
WINDOWS = 12  # of the loops that are compared
COST_SEEDS = 5


class Outcome(NamedTuple):
    """One trial. `ended`: refused by the gate, confirmed, rolled back, or on probation after all decisions."""

    num_actions: int
    entry: str
    gain: float
    seed: int
    ended: str
    decisions: int
    cost: float  # reward lost because the anchor made its share, as a share of what the candidate would have earned


class Cost(NamedTuple):
    """Mean expected reward per decision of two loops with the same viewers, after their first window."""

    num_actions: int
    seed: int
    with_anchor: float
    without: float
    confirmed: int
    rolled_back: int


@lru_cache(maxsize=2)
def viewers(ratings: str, num_actions: int, seed: int) -> "MovieLens":
    """Viewers of these ratings."""
    from beam_jobs.movielens import MovieLens
    from beam_jobs.ratings import load_ratings

    return MovieLens.build(load_ratings(ratings), num_actions=num_actions, rank=20, reward_noise=0.5, seed=seed)


def run_trial(num_actions: int, entry: str, gain: float, seed: int, ratings: str) -> Outcome:
    """One candidate: before the gate, then on probation, or as a canary."""
    from bench import trials
    from contracts.policies import Exploration
    from contracts.trajectories import TrajectoryBatch
    from orchestration import gate, watch
    from orchestration.held_back import HeldBack

    explorer = Exploration(strategy="ucb", alpha=0.2, epsilon=0.02)
    explorers = {OWN: explorer, OTHER: Exploration(strategy="softmax", temperature=0.05)}
    world = trials.World(viewers(ratings, num_actions, seed), explorer, seed)
    candidate = world.candidate(gain, explorers[entry])
    before, propensity = world.decisions(candidate, 1.0, BEFORE)
    held_back = slice(0, BEFORE // 10)
    judged = gate.compare(
        candidate,
        world.anchor,
        HeldBack(
            TrajectoryBatch(
                before.observation[held_back],
                before.action[held_back].astype(np.int32),
                before.reward[held_back].astype(np.float32),
                propensity[held_back].astype(np.float32),
                np.zeros(BEFORE // 10, bool),
            ),
            [world.anchor.card],
        ),
        gate.OWN_UPDATE if entry == OWN else gate.TRIED,
    )
    if not judged.promoted:
        return Outcome(num_actions, entry, gain, seed, "refused", 0, 0.0)
    share = SHARE if entry == OWN else 1 - SHARE
    scale = watch.scale_of(before, propensity, candidate, world.anchor)
    evidence = watch.nothing_yet(scale, share, MARGIN)
    for rows in world.trial(candidate, share, STEP, STEPS):
        evidence = evidence.add(rows, candidate, world.anchor)
        look = evidence.look("candidate", "anchor")
        if look.outcome != "on probation":
            break
    lost = share * (world.value(candidate) - world.value(world.anchor)) / world.value(candidate)
    return Outcome(num_actions, entry, gain, seed, look.outcome, look.decisions, lost)


def run_cost(num_actions: int, seed: int, ratings: str) -> Cost:
    """Two loops whose viewers come in the same order."""
    from bench.simulated_loop import SimulatedLoop
    from orchestration import probation
    from orchestration.watch import Caution

    earned, outcomes = [], []
    for share in (SHARE, 0.0):
        with tempfile.TemporaryDirectory() as scratch:
            loop = SimulatedLoop(
                Path(scratch),
                viewers(ratings, num_actions, seed),
                seed=seed,
                caution=Caution(anchor_share=share, margin=MARGIN),
            )
            served = [loop.window() for _ in range(WINDOWS)]
            earned.append(float(np.mean([one.share_of_oracle for one in served[1:]])))
            if share:
                outcomes = [look.outcome for look in probation.history(loop.places.root)]
    return Cost(num_actions, seed, *earned, outcomes.count("confirmed"), outcomes.count("rolled back"))


def is_wrong(outcome: Outcome) -> bool:
    """A version that is not worse must not be rolled back or refused, nor one be confirmed that is worse than the margin."""
    if outcome.ended in ("rolled back", "refused"):
        return outcome.gain >= 0
    return outcome.ended == "confirmed" and outcome.gain < -MARGIN


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row per number of actions, entry and gain."""
    rows = []
    for key in dict.fromkeys((one.num_actions, one.entry, one.gain) for one in outcomes):
        own = [one for one in outcomes if (one.num_actions, one.entry, one.gain) == key]
        served = [one.decisions for one in own]
        ended = [one.ended for one in own]
        rows.append(
            {
                "actions": key[0],
                "entry": key[1],
                "true gain": key[2],
                "trials": len(own),
                "median decisions": int(np.median(served)),
                "95% decisions": int(np.quantile(served, 0.95, method="higher")),
                **{how: ended.count(how) for how in ("refused", "confirmed", "rolled back", "on probation")},
                "wrong": sum(map(is_wrong, own)),
            }
        )
    return rows


def trials_table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| K | entry | true gain | decisions served: median, 95% | never served | confirmed | rolled back | undecided |"
        " decided wrongly |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['actions']} | {row['entry']} | {row['true gain']:+.0%} | {row['median decisions']:,},"
            f" {row['95% decisions']:,} | {row['refused']} | {row['confirmed']} | {row['rolled back']} |"
            f" {row['on probation']} | {row['wrong']} of {row['trials']} |"
        )
    return "\n".join(lines)


def cost_table(costs: Iterable[Cost]) -> str:
    """The comparison of loops as Markdown."""
    lines = [
        "| K | seed | share of the oracle with an anchor | without | lost to caution | confirmed | rolled back |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in costs:
        lost = 1 - one.with_anchor / one.without
        lines.append(
            f"| {one.num_actions} | {one.seed} | {one.with_anchor:.2%} | {one.without:.2%} | {lost:+.2%} |"
            f" {one.confirmed} | {one.rolled_back} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the trials and the loops, and writes the results."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> int:
    parser = FlagParser(prog=f"python -m {PROGRAM}", documentation=__doc__)
    parser.add_argument("--ratings", default="sample", help="as the loop takes them (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=20, help="trials of each kind (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="of the trials and loops (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--only", choices=("trials", "cost"), help="only these")
    given = parser.parse_args(argv)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        if given.only != "cost":
            tasks = [(k, entry, gain, seed) for seed in seeds for k in ARMS for entry in GAINS for gain in GAINS[entry]]
            outcomes = []
            for trial in [pool.submit(run_trial, *task, given.ratings) for task in tasks]:
                outcomes.append(trial.result())
                print(outcomes[-1], flush=True)
            rows = summary(outcomes)
            _write("trials", trials_table(rows), {"rows": rows}, given)
        if given.only != "trials":
            runs = [
                pool.submit(run_cost, 100, seed, given.ratings)
                for seed in range(given.first_seed, given.first_seed + COST_SEEDS)
            ]
            costs = [run.result() for run in runs]
            _write("cost", cost_table(costs), {"loops": [one._asdict() for one in costs]}, given)
    return 0


def _write(name: str, table: str, results: dict[str, Any], given: argparse.Namespace) -> None:
    print(table)
    settings = {"ratings": Path(given.ratings).name, "seeds": given.seeds, "first_seed": given.first_seed}
    found = msgspec.json.decode(RESULTS.read_bytes()) if RESULTS.is_file() else {}
    found[name] = {"settings": settings, **results}
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    write_table(PAGE, name, table)


if __name__ == "__main__":
    sys.exit(main())
