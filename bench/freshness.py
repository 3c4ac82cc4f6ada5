"""How long it takes from a reward's being sent to a policy trained on it serving.

Both ways wait for the window to close; they differ in what happens then. The reference starts a process for each step, as a
scheduler does (ingest, export, train); the loop keeps them in one. The reference works on a copy of a run's event log, so
both deal with the same window.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from bench.measure import Result, seconds

WINDOWS = 4
RUNS = 3


def run() -> Result:
    """Medians of freshness over the windows of a short loop, by either way."""
    theirs, ours = [], []
    for seed in range(RUNS):
        with tempfile.TemporaryDirectory() as scratch:
            reference, loop = _freshness(Path(scratch) / "run", seed)
        theirs.append(reference)
        ours.append(loop)
    ratios = sorted(reference / loop for reference, loop in zip(theirs, ours, strict=True))
    return Result(
        reference=sorted(theirs)[RUNS // 2],
        ours=sorted(ours)[RUNS // 2],
        unit="seconds, median",
        ratio=ratios[RUNS // 2],
        ratio_min=ratios[0],
        ratio_max=ratios[-1],
        runs=RUNS,
    )


def _freshness(out: Path, seed: int) -> tuple[float, float]:
    loop = ["orchestration.cli", "loop", "--out", str(out), "--windows", str(WINDOWS), "--seed", str(seed)]
    subprocess.run([sys.executable, "-m", *loop], check=True, stdout=subprocess.DEVNULL)
    report = json.loads((out / "report.json").read_text())
    last = report["windows"][-1]
    own_steps = sum(last[f"{step}_seconds"] for step in ("ingest", "export", "train"))
    ours: float = report["freshness_seconds"]["p50"]
    commands = _steps_as_processes(out, out.with_name("copy"), report, last)

    def run_them() -> None:
        for command in commands:
            subprocess.run([sys.executable, "-m", *map(str, command)], check=True, stdout=subprocess.DEVNULL)

    return ours - own_steps + seconds(run_them), ours


def _steps_as_processes(out: Path, copy: Path, report: dict[str, Any], last: dict[str, Any]) -> list[list[Any]]:
    """The commands of the last window's steps, on a copy of the run in which they have not been done yet."""
    shutil.copytree(out, copy)
    start, end = (datetime.fromisoformat(last[edge]) for edge in ("start", "end"))
    for marker in (copy / "warehouse" / "ingested").iterdir():
        if marker.name >= (start - timedelta(seconds=1)).strftime("%Y%m%dT%H%M%S"):
            marker.unlink()
    for window in (copy / "windows").glob("window=*"):
        if window.name == max(path.name for path in (copy / "windows").glob("window=*")):
            shutil.rmtree(window)
    settings = report["settings"]
    parent = report["windows"][-2]["candidate"]
    shutil.rmtree(copy / "policies" / last["candidate"])
    return [
        ["beam_jobs.ingest_events", "--events", copy / "events", "--warehouse", copy / "warehouse"],
        [
            *("beam_jobs.export_trajectories", "--warehouse", copy / "warehouse", "--windows", copy / "windows"),
            *("--start", start.isoformat(), "--end", end.isoformat(), "--missing-reward", settings["missing_reward"]),
            *("--reward-window-seconds", settings["reward_window_seconds"]),
            *("--settle-seconds", settings["settle_seconds"]),
        ],
        [
            *("trainer.task", "--windows", copy / "windows", "--policies", copy / "policies", "--parent", parent),
            *("--num-actions", settings["num_actions"], "--catalogue", copy / "catalogue.json"),
            *("--tikhonov", settings["tikhonov"]),
        ],
    ]
