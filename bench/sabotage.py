"""`make sabotage`: whether the guard notices a log that is wrong, and leaves one alone that is right.

    python -m bench.sabotage [--ratings SOURCE] [--seeds 20] [--num-actions 100] [--only NAME …]
    python -m bench.sabotage --processes [--seeds 3] [--only NAME …]

Each sabotage changes what the product reads, from one window on, in a closed loop in simulated time (`bench.simulated_loop`).
The sabotages of a seed begin after the same clean windows. Reported are the bad windows until the loop is held, and what is served in the end, as a share of what was served before.
The clean loops must never be held. Writes `bench/sabotage.json` and the table in `docs/guard.md`.

With `--only` or `--first-seed`, what the results have of these sabotages and seeds is replaced, and the rest is kept.

With `--processes` the loop is `cli loop` with its processes, and the sabotage is another process between the event log and
the ingestion (`bench.segment_proxy`). Writes `bench/sabotage_processes.json` and the second table.
"""

import argparse
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

from bench.pages import write_table
from contracts.command_line import FlagParser, run_main

if TYPE_CHECKING:
    from bench.simulated_loop import Served, SimulatedLoop

PROGRAM = "bench.sabotage"
ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("sabotage.json")
PROCESS_RESULTS = Path(__file__).with_name("sabotage_processes.json")
PAGE = ROOT / "docs" / "guard.md"
SLOW = "minus 5% per window"  # takes more windows than a loop of processes has
CLEAN_WINDOWS = 7  # before the sabotage
BAD_WINDOWS = 6
WINDOWS_AFTER = 2  # of bad rows, once it is held: what is served then is measured
ALLOWED = {SLOW: 5}  # bad windows until it must be held; 2 for all others
# Loops with nothing wrong, and the fields of `bench.simulated_loop.Conditions` that they have to live with.
CLEAN: dict[str, dict[str, Any]] = {
    "clean": {},
    "clean, tastes drift by 0.05 per window (half-life 2)": {"drift": 0.05, "half_life": 2.0},
    "clean, 10 new movies when serving begins": {"new_movies": 10},
    "clean, 30% of the rewards missing": {"silent_share": 0.3},
    "clean, 5% of the events twice, late or orphans": {"fault_rate": 0.05},
    "clean, all four": {"drift": 0.05, "half_life": 2.0, "new_movies": 10, "silent_share": 0.3, "fault_rate": 0.05},
}
CLEAN_LENGTH = 10


class Outcome(NamedTuple):
    """One run."""

    name: str
    seed: int
    held_after: int | None  # bad windows until it was held, 1 for the first; None: never
    false_alarm: bool  # held before anything was wrong
    kept: float  # share of the oracle served at the end, over that before the sabotage


def run_seed(names: Sequence[str], seed: int, num_actions: int, ratings: str) -> list[Outcome]:
    """The loops of one seed. The sabotaged ones have their clean windows in common."""
    from beam_jobs.movielens import MovieLens
    from beam_jobs.ratings import load_ratings
    from bench.simulated_loop import Conditions, SimulatedLoop
    from trainer import saved_model

    viewers = MovieLens.build(load_ratings(ratings), num_actions=num_actions, rank=20, reward_noise=0.5, seed=seed)
    outcomes = []
    # Writing SavedModels takes half of the time, and nothing serves from them here.
    with tempfile.TemporaryDirectory() as scratch, patch.object(saved_model, "save"):
        if sabotaged := [name for name in names if name not in CLEAN]:
            clean = SimulatedLoop(Path(scratch) / "clean", viewers, seed=seed)
            served = [clean.window() for _ in range(CLEAN_WINDOWS)]
            for number, name in enumerate(sabotaged):
                loop = clean.copy(Path(scratch) / f"sabotaged-{number}")
                outcomes.append(_outcome(name, seed, served + _sabotaged(loop, name, served, num_actions)))
        for number, name in enumerate(name for name in names if name in CLEAN):
            loop = SimulatedLoop(
                Path(scratch) / f"clean-{number}", viewers, seed=seed, conditions=Conditions(**CLEAN[name])
            )
            outcomes.append(_outcome(name, seed, [loop.window() for _ in range(CLEAN_LENGTH)]))
    return outcomes


def _sabotaged(loop: "SimulatedLoop", name: str, before: Sequence["Served"], num_actions: int) -> list["Served"]:
    """The windows from the sabotage on: until it has been held for a while, or has not been in time."""
    from bench.simulated_loop import Sabotages
    from orchestration import policy_store

    served: list[Served] = []
    while len(served) < BAD_WINDOWS and sum(one.held for one in (*before, *served)) <= WINDOWS_AFTER:
        versions = policy_store.versions(loop.places.policies)
        served.append(loop.window(Sabotages(CLEAN_WINDOWS, versions, num_actions).by_name[name]))
    return served


def _outcome(name: str, seed: int, served: Sequence["Served"]) -> Outcome:
    clean = CLEAN_LENGTH if name in CLEAN else CLEAN_WINDOWS
    held = next((one.number for one in served if one.held), None)
    before = np.mean([one.share_of_oracle for one in served[clean - 3 : clean]])
    return Outcome(
        name=name,
        seed=seed,
        held_after=None if held is None or held < clean else held - clean + 1,
        false_alarm=held is not None and held < clean,
        kept=float(served[-1].share_of_oracle / before),
    )


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row per sabotage."""
    rows = []
    for name in dict.fromkeys(one.name for one in outcomes):
        own = [one for one in outcomes if one.name == name]
        allowed = ALLOWED.get(name, 2)
        in_time = [one for one in own if one.held_after is not None and one.held_after <= allowed]
        windows = CLEAN_LENGTH if name in CLEAN else CLEAN_WINDOWS
        rows.append(
            {
                "sabotage": name,
                "seeds": len(own),
                "held in time": None if name in CLEAN else len(in_time),
                "bad windows allowed": None if name in CLEAN else allowed,
                "bad windows at most": None
                if name in CLEAN
                else max((one.held_after or BAD_WINDOWS + 1) for one in own),
                "served in the end, at least": round(min(one.kept for one in own), 4),
                "false alarms": sum(one.false_alarm for one in own),
                "clean windows": windows * len(own),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| what is wrong | held in time | bad windows until held, at most (allowed) | served in the end, at least |"
        " false alarms in clean windows |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        clean = row["held in time"] is None
        lines.append(
            f"| {row['sabotage']} | {'' if clean else str(row['held in time']) + ' of ' + str(row['seeds'])} |"
            f" {'' if clean else str(row['bad windows at most']) + ' (' + str(row['bad windows allowed']) + ')'} |"
            f" {row['served in the end, at least']:.1%} | {row['false alarms']} of {row['clean windows']} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs every loop and writes the results."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> int:
    from bench.simulated_loop import Sabotages

    names = [*Sabotages(0, [], 1).by_name, *CLEAN]
    parser = FlagParser(prog=f"python -m {PROGRAM}", documentation=__doc__)
    parser.add_argument("--ratings", default="sample", help="as the loop takes them (default: %(default)s)")
    parser.add_argument("--seeds", type=int, help="runs of each (default: 20, or 3 with --processes)")
    parser.add_argument("--first-seed", type=int, default=0, help="of the runs; the results of others are kept")
    parser.add_argument("--num-actions", type=int, default=100, help="number of arms (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="NAME", help="only these; the results of the others are kept"
    )
    parser.add_argument("--processes", action="store_true", help="through the real processes, one loop after the other")
    given = parser.parse_args(argv)
    if given.processes:
        slow = (*CLEAN, SLOW)
        seeds = range(given.first_seed, given.first_seed + (given.seeds or 3))
        return _run_processes(given.only or [name for name in names if name not in slow], seeds)
    first, count = given.first_seed, given.seeds or 20
    chosen, seeds = given.only or names, range(first, first + count)
    outcomes: list[Outcome] = []
    kept: list[dict[str, Any]] = []  # rows of runs that are not made now
    if (given.only or first) and RESULTS.is_file():
        found = msgspec.json.decode(RESULTS.read_bytes())
        kept = found["rows"]
        outcomes = [Outcome(**one) for one in found.get("outcomes", [])]
        outcomes = [one for one in outcomes if one.name not in chosen or one.seed not in seeds]
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(run_seed, chosen, seed, given.num_actions, given.ratings) for seed in seeds]
        for run in as_completed(runs):
            outcomes += run.result()
            print("\n".join(map(str, run.result())), flush=True)
            outcomes.sort(key=lambda one: (names.index(one.name), one.seed))
            made = {row["sabotage"]: row for row in (*kept, *summary(outcomes))}
            rows = sorted(made.values(), key=lambda row: names.index(row["sabotage"]))
            _write(rows, outcomes, given)
    print(table(rows))
    return 0


def _run_processes(names: Sequence[str], seeds: Sequence[int]) -> int:
    from bench.sabotaged_processes import ProcessOutcome, process_rows, process_table, run_one
    from bench.simulated_loop import Sabotages

    known: list[ProcessOutcome] = []
    if PROCESS_RESULTS.is_file():
        known = [ProcessOutcome(**one) for one in msgspec.json.decode(PROCESS_RESULTS.read_bytes())["outcomes"]]
    order = list(Sabotages(0, [], 1).by_name)
    for seed in seeds:
        for name in names:
            outcome = run_one(name, seed)
            print(outcome, flush=True)
            known = [one for one in known if (one.name, one.seed) != (name, seed)] + [outcome]
            known.sort(key=lambda one: (order.index(one.name), one.seed))
            rows = process_rows(known)
            data = msgspec.json.encode({"rows": rows, "outcomes": [one._asdict() for one in known]})
            PROCESS_RESULTS.write_bytes(msgspec.json.format(data, indent=2) + b"\n")
            write_table(PAGE, "sabotage of processes", process_table(rows))
    print(process_table(rows))
    return 0


def _write(rows: Sequence[dict[str, Any]], outcomes: Sequence[Outcome], given: argparse.Namespace) -> None:
    settings = {"ratings": given.ratings, "num_actions": given.num_actions}
    data = {"settings": settings, "rows": rows, "outcomes": [one._asdict() for one in outcomes]}
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n")
    write_table(PAGE, "sabotage", table(rows))


if __name__ == "__main__":
    sys.exit(main())
