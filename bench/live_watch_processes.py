"""The watch over live versions through the real processes: a predictor, its viewers, live learning, and the watch.

    python -m bench.live_watch_processes [--seeds 3] [--only NAME …]

After some seconds of sound rewards the viewers pay wrong ones, so all that reads the log is deceived. Reported are the
decisions and the seconds from the first wrong reward until live learning is held, the seconds from the hold until the last
decision by a live version, and the reward that is served in the ten seconds from 3 s after the alarm on, as a share of that
of the seconds before the fault. Writes `bench/live_watch_processes.json` and the table in `docs/live.md`.
"""

import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.live_kills import STARTED_SECONDS, Fault, Running
from contracts.command_line import FlagParser, run_main
from contracts.errors import OperationError
from orchestration import live_control
from orchestration.processes import wait_until

PROGRAM = "bench.live_watch_processes"
RESULTS = Path(__file__).with_name("live_watch_processes.json")
SOUND_SECONDS, FAULT_SECONDS, AFTER_SECONDS, BACK_SECONDS = 12.0, 30.0, 13.0, 3.0


class _OfAnother:
    """Pays a share of the viewers what one of the last 200 would have been paid."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._last: deque[float] = deque(maxlen=200)

    def __call__(self, rewards: np.ndarray, _: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self._last.extend(rewards.tolist())
        other = np.array(self._last)[rng.integers(0, len(self._last), len(rewards))]
        return np.where(rng.random(len(rewards)) < self._share, other, rewards)


def _one_item(rewards: np.ndarray, actions: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.where(actions == 19, 5.0, 0.0 * rewards)


class _Stale:
    """Pays each viewer what the one before would have been paid."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, rewards: np.ndarray, _: np.ndarray, __: np.random.Generator) -> np.ndarray:
        shifted = np.concatenate([[self._last], rewards[:-1]])
        self._last = float(rewards[-1])
        return shifted


def faults() -> dict[str, Fault]:
    """What viewers pay instead, by name."""
    return {
        "rewards of other viewers": _OfAnother(1.0),
        "rewards flipped": lambda rewards, _, __: -rewards,
        "half of the rewards of other viewers": _OfAnother(0.5),
        "rewards of the viewer before": _Stale(),
        "one item paid for all": _one_item,
    }


def run(name: str, seed: int) -> dict[str, Any]:
    """One run."""
    with tempfile.TemporaryDirectory() as scratch:
        running = Running(Path(scratch), seed)
        live = running.places.live
        with running.all():
            if not wait_until(lambda: running.fresh_from(running.origin), STARTED_SECONDS, running.check):
                raise OperationError(f"no live version within {STARTED_SECONDS:.0f} s")
            time.sleep(SOUND_SECONDS)
            early = live_control.read(live).held
            running.fault, began = faults()[name], time.time()
            held = wait_until(lambda: live_control.read(live).held, FAULT_SECONDS, running.check)
            control = live_control.read(live)
            time.sleep(AFTER_SECONDS)
        served = list(running.served)
    at = control.changed_at.timestamp() if held else time.time()
    last_live = max((moment for moment, *_, by_live in served if by_live), default=at)
    return {
        "fault": name,
        "seed": seed,
        "held before the fault": early,
        "held": held,
        "seconds": round(at - began, 2) if held else None,
        "decisions": sum(5 for moment, *_ in served if began <= moment <= at) if held else None,
        "live after the hold, s": round(max(last_live - at, 0.0), 2) if held else None,
        "kept": round(_share(served, at + BACK_SECONDS, np.inf) / _share(served, began - 5, began), 4),
        "reason": control.reason,
    }


def _share(served: Sequence[tuple[float, float, float, int]], begin: float, end: float) -> float:
    inside = np.array([(taken, best) for moment, taken, best, _ in served if begin <= moment < end])
    taken, best = inside.sum(axis=0)
    return float(taken / best)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row per fault."""
    lines = [
        "| what viewers pay | held (before the fault) | decisions until held | seconds until held |"
        " live versions decided after it, s | served after it |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["fault"] for row in rows):
        own = [row for row in rows if row["fault"] == name]
        seen = [row for row in own if row["held"]]
        cells = [", ".join(str(row[key]) for row in seen) for key in ("decisions", "seconds", "live after the hold, s")]
        early = sum(row["held before the fault"] for row in own)
        kept = min(row["kept"] for row in own)
        lines.append(f"| {name} | {len(seen)} of {len(own)} ({early}) | {' | '.join(cells)} | {kept:.1%} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs them one after the other, and writes the results."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> int:
    from bench.live import PAGE
    from bench.pages import write_table

    parser = FlagParser(prog=f"python -m {PROGRAM}", documentation=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(faults()), metavar="NAME", help="only these")
    given = parser.parse_args(argv)
    rows: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    for seed in range(given.seeds):
        for name in given.only or faults():
            row = run(name, seed)
            print(row, flush=True)
            rows = [one for one in rows if (one["fault"], one["seed"]) != (name, seed)] + [row]
            rows.sort(key=lambda one: (list(faults()).index(one["fault"]), one["seed"]))
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            write_table(PAGE, "live watch processes", table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
