"""Live learning beside learning by windows: how fresh what serves is, and what that is worth in reward.

    python -m bench freshness_live loop_live

The default run of the loop: 2,000 decisions in each of ten windows of five seconds, 100 movies. Ratings are MovieLens 100K
where there is a local copy. Both figures come from the loop's report, which counts them from the log and from what the
viewers recorded.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.loop import MOVIELENS_100K
from bench.measure import Result

FRESHNESS_RUNS = 3
SEEDS = 3


def freshness() -> dict[str, Any]:
    """Seconds from a reward's being sent to a decision by what learned it: by a policy of the store, and live.

    Both are of the same runs. The median over runs of the runs' medians, and of their 99% quantiles.
    """
    reports = [_run("live", seed) for seed in range(FRESHNESS_RUNS)]
    theirs = [report["freshness_seconds"]["p50"] for report in reports]
    ours = [report["live_freshness_seconds"]["p50"] for report in reports]
    found = _result(theirs, ours, "seconds, median")
    tail = sorted(report["live_freshness_seconds"]["p99"] for report in reports)[FRESHNESS_RUNS // 2]
    return {**found, "ours_p99": tail}


def regret() -> Result:
    """Regret over all decisions of a run, by windows and live, with the same viewers; the median over seeds."""
    theirs, ours = [], []
    for seed in range(SEEDS):
        by_windows, live = (_regret(_run(learning, seed)) for learning in ("windows", "live"))
        print(f"  seed {seed}: regret {by_windows:,.0f} by windows, {live:,.0f} live", flush=True)
        theirs.append(by_windows)
        ours.append(live)
    return _result(theirs, ours, "regret of a run")


def _regret(report: dict[str, Any]) -> float:
    return float(sum(window["regret"] for window in report["windows"]))


def _run(learning: str, seed: int) -> dict[str, Any]:
    """The report of a run."""
    ratings = str(MOVIELENS_100K) if (MOVIELENS_100K / "u.data").is_file() else "sample"
    flags = ["--learning", learning, "--seed", str(seed), "--ratings", ratings]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        command = [sys.executable, "-m", "orchestration.cli", "loop", *flags, "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
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
