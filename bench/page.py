"""What the live page costs while a loop runs: processor time with and without open pages, and memory over an hour of events.

`python -m bench.page MINUTES` prints what the page holds after each tenth of so many minutes of simulated events.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from bench.measure import Result, megabytes
from contracts.event_segments import SEALED_SUFFIX, segment_name
from contracts.items import Item
from contracts.records import Decision, RewardEvent, encoder
from orchestration.loop.run_folder import RunFolder
from orchestration.loop.settings import LoopSettings
from orchestration.loop.truth import ServedDecision, SessionStart, TruthLog
from orchestration.page.monitor import Monitor
from predictor.deciding import new_decision_ids

DECISIONS_PER_SECOND = 400
ANSWERED = 0.95
NUM_ACTIONS = 100
OPEN_PAGES = 50
MEASURED_SECONDS = 25.0
MINUTES = 60.0


def cost() -> Result:
    """Share of a core that the page takes at 400 decisions per second: without open pages, and with 50."""
    with tempfile.TemporaryDirectory() as name:
        writer = Writer(Path(name) / "run")
        with _page(writer.folder) as process:
            alone = _share_of_a_core(process, writer)
            page = writer.folder.read_page()
            assert page is not None
            for _ in range(OPEN_PAGES):
                threading.Thread(target=_look_on, args=(f"{page.url}api/events",), daemon=True).start()
            looked_at = _share_of_a_core(process, writer)
    ratio = alone / looked_at
    return Result(
        reference=alone, ours=looked_at, unit="% of a core", ratio=ratio, ratio_min=ratio, ratio_max=ratio, runs=1
    )


def memory(minutes: float = MINUTES) -> dict[str, Any]:
    """What the page holds after a tenth of the time and at its end, at 400 decisions per second."""
    child = subprocess.run([sys.executable, "-m", "bench.page", str(minutes)], check=True, stdout=subprocess.PIPE)
    measured: dict[str, Any] = json.loads(child.stdout)
    return measured


class Writer:
    """Writes what the parts of a loop would write."""

    def __init__(self, root: Path) -> None:
        self.folder = RunFolder(root)
        catalogue = [
            Item(action=action, item_id=str(action), attributes={"title": f"Movie {action}"})
            for action in range(NUM_ACTIONS)
        ]
        with self.folder.locked():
            self.folder.create(LoopSettings(out=str(root)), catalogue)
        self._truth = TruthLog(self.folder.truth / "viewers-0000.jsonl")
        self._rng = np.random.default_rng(0)
        self._segments = 0
        self.events = 0

    def begin(self, at: datetime) -> None:
        """The first window begins."""
        self._truth.append([SessionStart(at.timestamp(), 1)])

    def write(self, at: datetime, decisions: int) -> Path:
        """A segment of decisions at that moment, and their rewards half a second later."""
        actions = (NUM_ACTIONS * self._rng.random(decisions) ** 3).astype(int).tolist()
        observation = self._rng.normal(size=20).round(6).tolist()
        made = [
            Decision(
                decision_id=identity,
                decided_at=at,
                policy_version="v",
                user_id="1",
                observation=observation,
                action=action,
                propensity=0.9802,
            )
            for identity, action in zip(new_decision_ids(int(at.timestamp() * 1000), decisions), actions, strict=True)
        ]
        answered = made[: int(ANSWERED * decisions)]
        rewards = [
            RewardEvent(decision_id=one.decision_id, occurred_at=at + timedelta(seconds=0.5), reward=3.0)
            for one in answered
        ]
        self._segments += 1
        path = self.folder.events / f"{segment_name(at, f'predictor-{self._segments:06d}')}{SEALED_SUFFIX}"
        path.write_bytes(encoder.encode_lines([*made, *rewards]))
        self._truth.append(
            ServedDecision(one.decision_id, "v", 0, one.action, one.propensity, 2.0, 3.0, at.timestamp())
            for one in made
        )
        self.events += len(made) + len(rewards)
        return path


@contextlib.contextmanager
def _page(folder: RunFolder) -> Iterator[psutil.Process]:
    command = [sys.executable, "-m", "orchestration.page", "--root", str(folder.root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"PAGE_KEY": "bench"}) as child:
        try:
            while folder.read_page() is None:
                time.sleep(0.1)
            time.sleep(5)  # its imports and first document are not what is measured
            yield psutil.Process(child.pid)
        finally:
            child.terminate()


def _look_on(url: str) -> None:
    with contextlib.suppress(OSError), urllib.request.urlopen(url) as stream:
        while stream.readline():
            pass


def _share_of_a_core(process: psutil.Process, writer: Writer) -> float:
    """In percent, over MEASURED_SECONDS of events."""
    began, before = time.monotonic(), sum(process.cpu_times()[:2])
    writer.begin(datetime.now(UTC))
    half_seconds = 0
    while (passed := time.monotonic() - began) < MEASURED_SECONDS:
        if passed >= half_seconds / 2:
            writer.write(datetime.now(UTC), DECISIONS_PER_SECOND // 2)
            half_seconds += 1
        time.sleep(0.02)
    return round(100 * (sum(process.cpu_times()[:2]) - before) / passed, 2)


def _held(minutes: float) -> dict[str, Any]:
    """Runs in a process of its own. Time is simulated; a segment is removed once it is read, as a publisher does."""
    held: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        writer = Writer(Path(name) / "run")
        monitor = Monitor(writer.folder.root)
        at = datetime(2026, 1, 1, tzinfo=UTC)
        writer.begin(at)
        seconds = int(60 * minutes)
        for second in range(1, seconds + 1):
            at += timedelta(seconds=1)
            segment = writer.write(at, DECISIONS_PER_SECOND)
            monitor.follow()
            segment.unlink()
            if second % 10 == 0:
                state = monitor.state([], at)
            if second * 10 % seconds == 0:
                held.append(round(megabytes("VmRSS"), 1))
        read = state.wrong.counts.events
    ratio = round(held[0] / held[-1], 4)
    return {
        "reference": held[0],
        "ours": held[-1],
        "unit": "MB",
        "ratio": ratio,
        "ratio_min": ratio,
        "ratio_max": ratio,
        "runs": 1,
        "megabytes": held,
        "events": read,
        "minutes": minutes,
    }


if __name__ == "__main__":
    print(json.dumps(_held(float(sys.argv[1]))))
