"""Live learning beside learning by windows: how fresh what serves is, and what that is worth in reward.

    python -m bench freshness_live loop_live          the default run of the loop, 100 movies, one model per movie
    python -m bench.live                              both figures for each number of movies and kind of model
    python -m bench.live --only freshness --num-actions 100 --windows 120    whether it stays fresh for ten minutes
    python -m bench.live --only freshness --backend emulators                through Pub/Sub and BigQuery, emulated

A run of the loop has 2,000 decisions in each of ten windows of five seconds, and takes about 75 seconds. Both figures come
from the loop's report, which counts them from the log and from what the viewers recorded. Freshness by windows and live
are of the same runs. Regret is that of two runs with the same viewers, one after the other.

`python -m bench.live` writes `bench/live.json` after each run, and the tables in `docs/live.md`. What is measured again
replaces what the file has of it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.loop import MOVIELENS_100K
from bench.measure import Result
from bench.pages import write_table
from contracts.command_line import FlagParser, run_main

FRESHNESS_RUNS = 3
SEEDS = 5
WINDOWS = 10
ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("live.json")
PAGE = ROOT / "docs" / "live.md"


def default_ratings() -> str:
    """MovieLens 100K where there is a local copy, otherwise the built-in ratings."""
    return str(MOVIELENS_100K) if (MOVIELENS_100K / "u.data").is_file() else "sample"


def freshness() -> dict[str, Any]:
    """Seconds from a reward's being sent to a decision by what learned it: by a policy of the store, and live.

    Both are of the same runs. The median over runs of the runs' medians, and of their 99% quantiles.
    """
    reports = [_run("live", seed, default_ratings()) for seed in range(FRESHNESS_RUNS)]
    theirs = [report["freshness_seconds"]["p50"] for report in reports]
    ours = [report["live_freshness_seconds"]["p50"] for report in reports]
    found = _result(theirs, ours, "seconds, median")
    tail = sorted(report["live_freshness_seconds"]["p99"] for report in reports)[FRESHNESS_RUNS // 2]
    return {**found, "ours_p99": tail}


def regret() -> Result:
    """Regret over all decisions of a run, by windows and live, with the same viewers; the median over seeds."""
    theirs, ours = [], []
    for seed in range(SEEDS):
        by_windows, live = _regrets(seed, default_ratings())
        theirs.append(by_windows)
        ours.append(live)
    return _result(theirs, ours, "regret of a run")


def _regrets(seed: int, ratings: str, *flags: str) -> tuple[float, float]:
    """Of a run by windows, and of one live."""
    by_windows, live = (
        float(sum(window["regret"] for window in _run(learning, seed, ratings, *flags)["windows"]))
        for learning in ("windows", "live")
    )
    print(f"  seed {seed}: regret {by_windows:,.0f} by windows, {live:,.0f} live", flush=True)
    return by_windows, live


def _run(learning: str, seed: int, ratings: str, *flags: str) -> dict[str, Any]:
    """The report of a run."""
    chosen = ["--learning", learning, "--seed", str(seed), "--ratings", ratings, "--page", "off", *flags]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, "-m", "orchestration.cli", "loop", *chosen, "--out", str(out)]
        ended = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        if ended.returncode not in (0, 7):  # 7: a version on probation was rolled back, which is part of both ways
            raise subprocess.CalledProcessError(ended.returncode, command)
        report: dict[str, Any] = json.loads((out / "report.json").read_text())
    assert report["totals"]["lost"] == report["totals"]["duplicated"] == 0
    return report


def _result(theirs: list[float], ours: list[float], unit: str) -> Result:
    """The medians of two lists of runs, of which less is better, and of the ratios of each pair."""
    ratios = sorted(reference / mine for reference, mine in zip(theirs, ours, strict=True))
    return Result(
        reference=sorted(theirs)[len(theirs) // 2],
        ours=sorted(ours)[len(ours) // 2],
        unit=unit,
        ratio=ratios[len(ratios) // 2],
        ratio_min=ratios[0],
        ratio_max=ratios[-1],
        runs=len(ratios),
    )


def freshness_row(seed: int, ratings: str, *flags: str) -> dict[str, Any]:
    """Of one run: both freshnesses, and the medians of the first and of the last third of its windows."""
    report = _run("live", seed, ratings, *flags)
    by_window = [window["live_freshness_seconds"]["p50"] for window in report["windows"]]
    third = max(len(by_window) // 3, 1)
    early, late = (
        float(np.median([one for one in part if one is not None])) for part in (by_window[:third], by_window[-third:])
    )
    return {
        "windows p50": report["freshness_seconds"]["p50"],
        "windows p99": report["freshness_seconds"]["p99"],
        "live p50": report["live_freshness_seconds"]["p50"],
        "live p99": report["live_freshness_seconds"]["p99"],
        "live p50, first third": round(early, 3),
        "live p50, last third": round(late, 3),
        "times held": report["live_holds"],
    }


def regret_row(seed: int, ratings: str, *flags: str) -> dict[str, Any]:
    """Of one pair of runs."""
    by_windows, live = _regrets(seed, ratings, *flags)
    return {"windows": round(by_windows, 1), "live": round(live, 1), "less": round(1 - live / by_windows, 4)}


_KEYS = ("measured", "ratings", "num_actions", "arm_features", "windows", "backend", "drift")
ROWS = {"freshness": freshness_row, "regret": regret_row}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the grid and writes the results."""
    return run_main("bench.live", _main, argv)


def _main(argv: Sequence[str] | None) -> int:
    given = _parser().parse_args(argv)
    found: list[dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for num_actions in given.num_actions:
            for arm_features in given.arm_features:
                for measured in given.only or ROWS:
                    setting = _setting(given, measured, num_actions, arm_features)
                    print(f"{' '.join(f'{key}={value}' for key, value in setting.items())} seed={seed} …", flush=True)
                    row = ROWS[measured](seed, given.ratings, *_flags(setting))
                    found = [one for one in found if (one["setting"], one["seed"]) != (setting, seed)]
                    found.append({"setting": setting, "seed": seed, "row": row})
                    print(row, flush=True)
                    _write(found)
    return 0


def _setting(given: argparse.Namespace, measured: str, num_actions: int, arm_features: str) -> dict[str, Any]:
    ratings = "MovieLens 100K" if Path(given.ratings).name == "ml-100k" else given.ratings
    values = (measured, ratings, num_actions, arm_features, given.windows, given.backend, given.drift)
    return dict(zip(_KEYS, values, strict=True))


def _flags(setting: dict[str, Any]) -> list[str]:
    names = ("num_actions", "arm_features", "windows", "backend", "drift")
    return [part for name in names for part in (f"--{name.replace('_', '-')}", str(setting[name]))]


def _parser() -> FlagParser:
    parser = FlagParser(prog="python -m bench.live", documentation=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), help="what to measure (default: both)")
    parser.add_argument(
        "--ratings", default=default_ratings(), help="as the loop takes them (default: MovieLens 100K, if it is there)"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="of the runs (default: %(default)s)")
    parser.add_argument(
        "--num-actions", type=int, nargs="+", default=[100, 500], help="numbers of movies (default: 100 500)"
    )
    parser.add_argument(
        "--arm-features",
        nargs="+",
        default=["none", "hybrid"],
        choices=["none", "shared", "hybrid"],
        help="kinds of model (default: none hybrid)",
    )
    parser.add_argument("--windows", type=int, default=WINDOWS, help="training windows of 5 s (default: %(default)s)")
    parser.add_argument("--drift", type=float, default=0.0, help="as the loop takes it (default: %(default)s)")
    parser.add_argument("--backend", choices=["local", "emulators"], default="local", help="default: %(default)s")
    return parser


def _write(found: list[dict[str, Any]]) -> None:
    found.sort(key=lambda one: (*map(str, one["setting"].values()), one["seed"]))
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for measured in ROWS:
        write_table(PAGE, f"live {measured}", table([one for one in found if one["setting"]["measured"] == measured]))


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: a row per setting, with the median over its seeds and, where there are several, the range."""
    if not found:
        return ""
    columns = list(found[0]["row"])
    names = [name for name in _KEYS if name != "measured"]
    lines = [
        "| " + " | ".join([*(name.replace("_", " ") for name in names), "seeds", *columns]) + " |",
        "| " + " | ".join(["---"] * (len(names) + 1 + len(columns))) + " |",
    ]
    for setting in {json.dumps(one["setting"]): one["setting"] for one in found}.values():
        rows = [one["row"] for one in found if one["setting"] == setting]
        cells = [_cell(name, [row[name] for row in rows]) for name in columns]
        lines.append("| " + " | ".join([*(str(setting[name]) for name in names), str(len(rows)), *cells]) + " |")
    return "\n".join(lines)


def _cell(name: str, values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"

    def form(value: float) -> str:
        if name == "less":
            return f"{value:.0%}"
        return f"{value:,.0f}" if value >= 20 or isinstance(value, int) else f"{value:.2f}"

    ends = f" ({form(min(known))}-{form(max(known))})" if len(known) > 1 else ""
    return f"{form(float(np.median(known)) if name != 'times held' else max(known))}{ends}"


if __name__ == "__main__":
    sys.exit(main())
