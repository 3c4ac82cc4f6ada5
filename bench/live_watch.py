"""`make live-watch`: whether the watch over live versions notices what is wrong, and leaves alone what is right.

    python -m bench.live_watch [--ratings SOURCE] [--seeds 20] [--only NAME …] [--no-clean]

A closed loop in simulated time that learns live (`bench.simulated_live`): the product's own sums, solver, judgement before
serving, watch, audit, guard, training, gate and probation. Faults of a seed begin after the same clean windows. Those of
the feed are in all that the product reads. Those of the learner are in what live learning reads alone, as a bug in it
would be: there the log is right, and live versions are wrong.

Reported are the decisions with rewards from the fault until live learning was held, what held it, and how much of the reward
before the fault is served: in the worst second since, and from the third second after the alarm on (at least, over seeds). The clean loops, with tastes that stand still and that
drift, must never be held. Writes `bench/live_watch.json` and the table in `docs/live.md`.
"""

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

import msgspec
import numpy as np

from contracts.command_line import FlagParser, run_main

if TYPE_CHECKING:
    from bench.simulated_live import LiveLoop
    from bench.simulated_loop import Rows, Sabotage

PROGRAM = "bench.live_watch"
RESULTS = Path(__file__).with_name("live_watch.json")
CLEAN_WINDOWS = 4  # before a fault, the bootstrap's included
BAD_WINDOWS = {False: 2, True: 4}  # by whether only the learner is deceived, which takes longer to show
BACK_SECONDS = 3  # after an alarm, what is served must be as good as before
CLEAN_LENGTH = 11  # of a clean loop, the bootstrap's included
ANCHOR_SHARE = 0.05
# Fields of `bench.simulated_loop.Conditions`.
CLEAN: dict[str, dict[str, float]] = {
    "clean": {},
    "clean, tastes drift by 0.05 per window (half-life 2)": {"drift": 0.05, "half_life": 2.0},
    "clean, 10 new movies when serving begins": {"new_movies": 10},
}


class Outcome(NamedTuple):
    """One run."""

    name: str
    seed: int
    after: int | None  # decisions until it was held; None: never
    why: str
    kept: float  # share of the oracle's reward from 3 s after the alarm until the release, over that before the fault
    lowest: float  # the same in the worst second since the fault
    windows: int  # that were served


def faults() -> "dict[str, tuple[bool, Sabotage]]":
    """By name: whether the fault is in the learner alone, and what it does to rows."""
    from bench.simulated_loop import Sabotages

    known = Sabotages(0, [], 1).by_name

    def half_permuted(rows: "Rows", _: int, rng: np.random.Generator) -> "Rows":
        chosen = np.flatnonzero(rng.random(len(rows.reward)) < 0.5)
        reward = rows.reward.copy()
        reward[chosen] = rng.permutation(reward[chosen])
        return rows._replace(reward=reward)

    def one_item(rows: "Rows", _: int, __: np.random.Generator) -> "Rows":
        """Pays one item, which few like, the best reward in each decision, and the others nothing."""
        return rows._replace(reward=np.where(rows.action == rows.action.max(), 5.0, 0.0))

    return {
        "feed: rewards permuted": (False, known["rewards permuted"]),
        "feed: rewards flipped": (False, known["rewards flipped"]),
        "feed: half of the rewards permuted": (False, half_permuted),
        "feed: stale observations": (False, known["stale observations"]),
        "feed: one item paid for all": (False, one_item),
        "learner: rewards permuted": (True, known["rewards permuted"]),
        "learner: rewards flipped": (True, known["rewards flipped"]),
        "learner: one item paid for all": (True, one_item),
    }


def run_seed(names: Sequence[str], clean: Sequence[str], seed: int, ratings: str) -> list[Outcome]:
    """The loops of one seed."""
    from beam_jobs.movielens import MovieLens
    from beam_jobs.ratings import load_ratings
    from bench.simulated_live import LiveLoop
    from bench.simulated_loop import Conditions
    from orchestration.watch import Caution
    from trainer import saved_model

    viewers = MovieLens.build(load_ratings(ratings), num_actions=100, rank=20, reward_noise=0.5, seed=seed)
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch, patch.object(saved_model, "save"):
        caution = Caution(anchor_share=ANCHOR_SHARE)
        before = LiveLoop(Path(scratch) / "before", viewers, seed=seed, caution=caution)
        if names:
            for _ in range(CLEAN_WINDOWS):
                before.window()
        for number, name in enumerate(names):
            loop = before.copy(Path(scratch) / f"fault-{number}")
            loop.only_learner, loop.sabotage = faults()[name]
            outcomes.append(_faulty(loop, name, seed))
        for number, name in enumerate(clean):
            conditions = Conditions(**CLEAN[name])  # type: ignore[arg-type]
            folder = Path(scratch) / f"clean-{number}"
            loop = LiveLoop(folder, viewers, seed=seed, caution=caution, conditions=conditions)
            outcomes.append(_clean(loop, name, seed))
    return outcomes


def _faulty(loop: "LiveLoop", name: str, seed: int) -> Outcome:
    before, first, known = float(np.mean(loop.shares[-4:])), len(loop.shares), len(loop.alarms)
    loop.mark()
    windows = BAD_WINDOWS[loop.only_learner]
    for _ in range(windows):
        loop.window()
    alarms = loop.alarms[known:]
    kept = loop.shares[-1]
    if alarms:
        released = next((second for second in loop.releases if second > alarms[0].second), len(loop.shares))
        kept = min(loop.shares[alarms[0].second + BACK_SECONDS - 1 : released], default=kept)
    lowest = min(loop.shares[first:]) / before
    after, why = (alarms[0].decisions, _kind(alarms[0].why)) if alarms else (None, "")
    return Outcome(name, seed, after, why, kept / before, lowest, windows)


def _clean(loop: "LiveLoop", name: str, seed: int) -> Outcome:
    for _ in range(CLEAN_LENGTH):
        loop.window()
    after, why = (loop.alarms[0].decisions, _kind(loop.alarms[0].why)) if loop.alarms else (None, "")
    return Outcome(name, seed, after, why, 1.0, 1.0, CLEAN_LENGTH - 1)


def _kind(why: str) -> str:
    for kind, words in (
        ("judgement", "refused"),
        ("surprise", "rewards are far"),
        ("fall", "fell suddenly"),
        ("gain", "earn less"),
    ):
        if words in why:
            return kind
    raise AssertionError(why)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row per fault."""
    lines = [
        "| what is wrong | held | decisions until held: median, 95% | what held it | worst second |"
        " 3 s after the alarm, or at the end |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(one.name for one in outcomes):
        own = [one for one in outcomes if one.name == name]
        held = [one.after for one in own if one.after is not None]
        if name in CLEAN:
            lines.append(f"| {name} | {len(held)} in {sum(one.windows for one in own)} windows | | | | |")
            continue
        decisions = f"{np.median(held):,.0f}, {np.percentile(held, 95):,.0f}" if held else ""
        kinds = {kind: sum(one.why == kind for one in own) for kind in ("judgement", "surprise", "fall", "gain")}
        by = ", ".join(f"{kind} {count}" for kind, count in kinds.items() if count)
        lines.append(
            f"| {name} | {len(held)} of {len(own)} | {decisions} | {by} |"
            f" {min(one.lowest for one in own):.0%} | {min(one.kept for one in own):.0%} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs every loop and writes the results."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> int:
    from bench.live import PAGE, default_ratings
    from bench.pages import write_table

    names = [*faults(), *CLEAN]
    parser = FlagParser(prog=f"python -m {PROGRAM}", documentation=__doc__)
    parser.add_argument(
        "--ratings", default=default_ratings(), help="as the loop takes them (default: MovieLens 100K, if it is there)"
    )
    parser.add_argument("--seeds", type=int, default=20, help="runs of each (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="of the runs; the results of others are kept")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="only these")
    parser.add_argument("--dry-run", action="store_true", help="print the table, and write nothing")
    given = parser.parse_args(argv)
    chosen, seeds = given.only or names, range(given.first_seed, given.first_seed + given.seeds)
    outcomes: list[Outcome] = []
    if RESULTS.is_file() and not given.dry_run:
        known: list[dict[str, Any]] = msgspec.json.decode(RESULTS.read_bytes())["outcomes"]
        outcomes = [one for one in (Outcome(**row) for row in known) if one.name not in chosen or one.seed not in seeds]
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        faulty, clean = [one for one in chosen if one not in CLEAN], [one for one in chosen if one in CLEAN]
        runs = [pool.submit(run_seed, faulty, clean, seed, given.ratings) for seed in seeds]
        for run in as_completed(runs):
            outcomes += run.result()
            print("\n".join(map(str, run.result())), flush=True)
            outcomes.sort(key=lambda one: (names.index(one.name), one.seed))
            if given.dry_run:
                continue
            ratings = "MovieLens 100K" if Path(given.ratings).name == "ml-100k" else given.ratings
            data = {"ratings": ratings, "outcomes": [one._asdict() for one in outcomes]}
            RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=1) + b"\n")
            write_table(PAGE, "live watch", table(outcomes))
    print(table(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
