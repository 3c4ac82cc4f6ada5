"""The process that ingests is stopped (SIGSTOP) for 30 seconds while viewers go on: windows wait, and nothing is trained as
silence.

With the emulators that is the streaming job `ingest_events`. In the embedded loop the loop's own process ingests.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from contracts.errors import InputError
from contracts.windows import MANIFEST_NAME
from orchestration.emulators import servers
from orchestration.loop import report
from orchestration.loop.report import Report, WindowReport
from orchestration.loop.run_folder import RunFolder

pytestmark = [pytest.mark.loop, pytest.mark.timeout(900)]

STOPPED_SECONDS = 30.0
WINDOWS, WINDOW_SECONDS, DECISIONS = 9, 5, 200
SETTINGS = {
    "num-actions": 10,
    "rank": 5,
    "windows": WINDOWS,
    "window-seconds": WINDOW_SECONDS,
    "reward-window-seconds": 1.5,
    "settle-seconds": 3,  # a busy machine delays the viewers, which no watermark can see
    "decisions-per-window": DECISIONS,
    "bootstrap-decisions": 600,
    "fault-rate": 0,
    "no-reward-probability": 0,
    "watermark-limit-seconds": 120,
}


def run_and_stop(out: Path, backend: str, ingests: Callable[[int], int]) -> tuple[Report, str, float, float]:
    """A run whose ingesting process is stopped after its first window.

    Returns the report, what the loop printed, and when the process was stopped and went on. `ingests` takes the process
    id of the loop, and returns that of the process to stop.
    """
    flags = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "orchestration.cli", "loop", *flags, "--backend", backend, "--out", str(out)]
    with (out.parent / "output").open("w") as output:
        loop = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "\nwindow  1/" in (out.parent / "output").read_text() or loop.poll() is not None)
        assert loop.poll() is None, (out.parent / "output").read_text()
        victim = ingests(loop.pid)
        os.kill(victim, signal.SIGSTOP)
        try:
            stopped_at = time.time()
            time.sleep(STOPPED_SECONDS)
            went_on_at = time.time()
        finally:
            os.kill(victim, signal.SIGCONT)
        code = loop.wait(300)
    finally:
        loop.terminate()
        loop.wait(60)
    printed = (out.parent / "output").read_text()
    assert code == 0, printed
    return report.read(RunFolder(out)), printed, stopped_at, went_on_at


def wait_until(done: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 240
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def check(out: Path, found: Report, stopped_at: float, went_on_at: float) -> list[WindowReport]:
    """What holds for both loops; returns the windows that closed, by the clock, while the process was stopped."""
    closing = SETTINGS["reward-window-seconds"] + SETTINGS["settle-seconds"]
    waiting = [one for one in found.windows if stopped_at <= one.end.timestamp() + closing <= went_on_at - 1]
    assert len(waiting) >= 4
    for window in waiting:
        manifest = next(out.glob(f"windows/window={window.start:%Y%m%dT%H%M%S}*/{MANIFEST_NAME}"))
        assert manifest.stat().st_mtime >= went_on_at, "it was exported while its events were on their way"
    assert found.totals.lost == found.totals.duplicated == found.totals.misattributed_rewards == 0
    assert found.totals.decisions_served == 600 + WINDOWS * DECISIONS
    silent = sum(window.dropped + window.defaulted for window in found.windows)
    assert silent == 0, "every viewer answers, so nothing may be taken for silence"
    assert not any(window.overdue for window in found.windows)
    return waiting


def test_windows_wait_for_a_stopped_streaming_job(tmp_path: Path, emulators_environment: Path) -> None:
    try:
        servers.pubsub_program()
    except InputError as error:
        pytest.skip(str(error))

    def streaming_job(loop: int) -> int:
        found = [
            child.pid
            for child in psutil.Process(loop).children(recursive=True)
            if "orchestration.emulators.ingest" in child.cmdline() and "orchestration.processes" not in child.cmdline()
        ]
        [job] = found
        return job

    out = tmp_path / "run"
    found, printed, stopped_at, went_on_at = run_and_stop(out, "emulators", streaming_job)
    waiting = check(out, found, stopped_at, went_on_at)
    assert "Waiting: events before " in printed
    assert "held by messages that the job has not read since " in printed or "has not stored yet" in printed
    assert any(window.held_by for window in waiting)
    journal = msgspec.json.format((out / "journal.jsonl").read_bytes().splitlines()[-1])
    assert b"held_by" in journal


def test_windows_wait_for_a_stopped_loop(tmp_path: Path) -> None:
    out = tmp_path / "run"
    found, _, stopped_at, went_on_at = run_and_stop(out, "local", lambda loop: loop)
    check(out, found, stopped_at, went_on_at)
