"""The sabotages through the real processes: a loop of its own for each, with `bench.segment_proxy` between its processes."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from contracts.errors import OperationError
from orchestration.loop.run_folder import RunFolder
from orchestration.loop.truth import ServedDecision, TruthReader, decided_milliseconds

FIRST_BAD = 5
WINDOWS = 8
FLAGS = {
    "--num-actions": "20",
    "--windows": str(WINDOWS),
    "--window-seconds": "4",
    "--decisions-per-window": "1000",
    "--reward-window-seconds": "2.5",
    "--settle-seconds": "0.5",
}
TIMEOUT_SECONDS = 600
PROXY_RESULT = "run.proxy.json"
BAD_WINDOWS_ALLOWED = 2


class ProcessOutcome(NamedTuple):
    """One loop."""

    name: str
    seed: int
    held_after: int | None  # bad windows until it was held, 1 for the first; None: never
    false_alarm: bool  # held before anything was wrong
    kept: float  # share of the oracle served in the last two windows, over that in the three before the sabotage
    exit_code: int
    segments: int  # that were rewritten
    too_late: int  # after they had been ingested


def run_one(name: str, seed: int) -> ProcessOutcome:
    """One loop with its processes, sabotaged from its fifth window on. Raises OperationError when it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        flags = [part for flag in {**FLAGS, "--seed": str(seed), "--out": str(out)}.items() for part in flag]
        own = ["--out", str(out), "--sabotage", name, "--first-bad", str(FIRST_BAD), "--seed", str(seed)]
        log = Path(scratch) / "loop.log"
        with log.open("wb") as output:
            proxy = subprocess.Popen([sys.executable, "-m", "bench.segment_proxy", *own], stdout=output, stderr=output)
            try:
                command = [sys.executable, "-m", "orchestration.cli", "loop", *flags]
                code = subprocess.run(
                    command, stdout=output, stderr=output, timeout=TIMEOUT_SECONDS, check=False
                ).returncode
                if (out / "report.json").is_file():
                    proxy.wait(TIMEOUT_SECONDS)
            finally:
                proxy.kill()
                proxy.wait()
        if not out.with_name(PROXY_RESULT).is_file():
            raise OperationError(f"{name}, seed {seed}: {log.read_text(errors='replace')[-2000:]}")
        rewritten = msgspec.json.decode(out.with_name(PROXY_RESULT).read_bytes())
        return _outcome(name, seed, RunFolder(out), code)._replace(**rewritten)


def _outcome(name: str, seed: int, folder: RunFolder, code: int) -> ProcessOutcome:
    report: dict[str, Any] = msgspec.json.decode(folder.report_json.read_bytes())
    windows = report["windows"]
    shares = _shares(folder, [datetime.fromisoformat(one["start"]).timestamp() * 1e3 for one in windows])
    starts = [one["start"] for one in windows]
    history = folder.guard_history.read_bytes().splitlines() if folder.guard_history.is_file() else []
    holds = [change for change in map(msgspec.json.decode, history) if change["verb"] == "hold"]
    noticed = starts.index(holds[0]["window"]["start"]) + 1 if holds else None
    return ProcessOutcome(
        name=name,
        seed=seed,
        held_after=None if noticed is None or noticed < FIRST_BAD else noticed - FIRST_BAD + 1,
        false_alarm=noticed is not None and noticed < FIRST_BAD,
        kept=float(np.mean(shares[-2:]) / np.mean(shares[FIRST_BAD - 4 : FIRST_BAD - 1])),
        exit_code=code,
        segments=0,
        too_late=0,
    )


def _shares(folder: RunFolder, starts: Sequence[float]) -> list[float]:
    """What was served in each window, as a share of the oracle: from what viewers saw, as the log may name other actions."""
    served = [entry for entry in TruthReader(folder.truth).read() if isinstance(entry, ServedDecision)]
    window = np.searchsorted(starts, [decided_milliseconds(one.decision_id) for one in served], side="right") - 1
    expected, oracle = np.array([(one.expected_reward, one.oracle_reward) for one in served]).T
    return [float(expected[window == row].sum() / oracle[window == row].sum()) for row in range(len(starts))]


def process_rows(outcomes: Sequence[ProcessOutcome]) -> list[dict[str, Any]]:
    """A row per sabotage."""
    rows = []
    for name in dict.fromkeys(one.name for one in outcomes):
        own = [one for one in outcomes if one.name == name]
        rows.append(
            {
                "sabotage": name,
                "seeds": len(own),
                "held in time": sum((one.held_after or WINDOWS) <= BAD_WINDOWS_ALLOWED for one in own),
                "bad windows until held": [one.held_after for one in own],
                "served in the end": [round(one.kept, 4) for one in own],
                "exit codes": [one.exit_code for one in own],
                "false alarms": sum(one.false_alarm for one in own),
                "segments rewritten": sum(one.segments for one in own),
                "segments rewritten too late": sum(one.too_late for one in own),
            }
        )
    return rows


def process_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| what is wrong | held in time | bad windows until held | served in the end, at least | exit codes |"
        " false alarms | segments rewritten (too late) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        until = ", ".join("never" if one is None else str(one) for one in row["bad windows until held"])
        codes = ", ".join(map(str, row["exit codes"]))
        lines.append(
            f"| {row['sabotage']} | {row['held in time']} of {row['seeds']} | {until} |"
            f" {min(row['served in the end']):.1%} | {codes} | {row['false alarms']} |"
            f" {row['segments rewritten']} ({row['segments rewritten too late']}) |"
        )
    return "\n".join(lines)
