"""How much processor time live learning takes per event, and how soon an event is in an emission.

    python -m bench live_sums
    python -m bench.live_sums RATE SECONDS     one run of ours, at that many events per second

A process writes an event log at a constant rate, and the job follows it on the local streaming runner. The reference keeps
its open decisions as Python objects, which the runner's state pickles; everything else is the same job.
"""

import json
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.coders import BytesCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from beam_jobs import learn_live, live_stages, live_windows
from beam_jobs.live_join import Arrived, JoinPlan, WindowChange
from beam_jobs.live_record import Record
from beam_jobs.live_stages import JoinLiveFn, LiveJob
from beam_jobs.live_windows import LiveSettings
from beam_jobs.options import LOCAL_STREAMING_RUNNER
from beam_jobs.payloads import DecisionShape
from bench.measure import compare
from contracts import live_sums
from contracts.command_line import FlagParser, run_main
from contracts.live_emissions import SUMS_FOLDER, Reader
from contracts.records import Decision, RewardEvent, encoder
from contracts.windows import WindowSettings
from predictor.event_log import EventLog

NUM_ACTIONS, OBSERVATION_DIM = 100, 20
RATE, SECONDS, WARM_UP_SECONDS = 10_000, 15.0, 5.0
TICK_SECONDS = 0.05
SETTINGS = WindowSettings(
    reward_window_seconds=2.0, settle_seconds=1.0, missing_reward="drop", late_horizon_seconds=60.0
)


class ObjectsFn(JoinLiveFn):
    """The reference: state is one pickled dict of rows as objects; without duplicates or corrections."""

    OPEN = ReadModifyWriteStateSpec("open", BytesCoder())

    def process(  # type: ignore[override]
        self, element: tuple[int, Any], state: Any = beam.DoFn.StateParam(OPEN)
    ) -> Iterator[tuple[int, live_windows.Joined]]:
        """Joins the rewards of a batch with the open decisions."""
        if not isinstance(arrived := element[1], Arrived):
            return
        found: dict[str, dict[str, Any]] = pickle.loads(data) if (data := state.read()) else {}
        for row in arrived.decisions.to_pylist():
            found[row["decision_id"]] = row
        newest = max((row["decided_at"] for row in found.values()), default=None)
        learned: dict[int, list[tuple[dict[str, Any], float]]] = {}
        for reward in arrived.rewards.to_pylist():
            if (row := found.get(reward["decision_id"])) and not row.get("rewarded"):
                row["rewarded"] = True
                moment = np.array(round(row["decided_at"].timestamp() * 1e6))
                learned.setdefault(int(self._plan.starts(moment)), []).append((row, reward["reward"]))
        changes = []
        for start, pairs in learned.items():
            sums = live_sums.of_interactions(
                np.array([row["observation"] for row, _ in pairs], np.float32),
                np.array([row["action"] for row, _ in pairs]),
                np.array([value for _, value in pairs], np.float32),
            )
            counts = dict.fromkeys(live_windows.WindowCounts.__struct_fields__, 0) | {"rewards": len(pairs)}
            changes.append(WindowChange(start, counts, sums))
        # As long as this job's windows are open.
        kept = {key: row for key, row in found.items() if newest - row["decided_at"] < timedelta(seconds=8)}
        state.write(pickle.dumps(kept))
        yield 0, live_windows.joined(arrived.decisions.num_rows + arrived.rewards.num_rows, changes)


def run() -> dict[str, Any]:
    """Events per second of processor time, by either way, and the latencies of ours."""
    latencies: list[dict[str, float]] = []

    def ours() -> float:
        measured = measure(JoinLiveFn, RATE, SECONDS)
        latencies.append(measured)
        return measured["per_cpu_second"]

    result = compare(lambda: measure(ObjectsFn, RATE, SECONDS)["per_cpu_second"], ours, "events/s of one core")
    median = sorted(latencies, key=lambda one: one["p99_seconds"])[len(latencies) // 2]
    return dict(result) | {name: median[name] for name in ("p50_seconds", "p99_seconds", "rate")}


def measure(join: type[JoinLiveFn], rate: int, seconds: float) -> dict[str, float]:
    """One run at `rate` events per second, after a warm-up; latencies from the log to a file that a reader has read."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for name in ("events", "windows"):
            (root / name).mkdir()
        job = _job(root)
        pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"]))
        kept, live_stages.JoinLiveFn = live_stages.JoinLiveFn, join  # type: ignore[misc]
        try:
            learn_live.build_pipeline(learn_live.read_folder(pipeline, str(root / "events"), job), job)
        finally:
            live_stages.JoinLiveFn = kept  # type: ignore[misc]
        result = pipeline.run()
        try:
            return _follow(root, rate, seconds)
        finally:
            result.cancel()


def _job(root: Path) -> LiveJob:
    plan = JoinPlan(datetime.now(UTC).replace(microsecond=0), 5.0, SETTINGS, OBSERVATION_DIM)
    record = Record(str(root / "windows"), plan, NUM_ACTIONS)
    return LiveJob(
        plan=plan,
        shape=DecisionShape(OBSERVATION_DIM, NUM_ACTIONS),
        # Windows are not exported here; they are dropped as if they were.
        settings=LiveSettings(record_wait_seconds=1.0),
        record=record,
        at_start=record.at_start(datetime.now(UTC), 60.0),
        live=str(root / "live"),
        buckets=1,
    )


def _follow(root: Path, rate: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.live_sums", "--write", str(root / "events"), str(rate)]
    writer = subprocess.Popen([*command, str(WARM_UP_SECONDS + seconds)], stdout=subprocess.PIPE, text=True)
    emitted: list[tuple[float, float, int]] = []  # wall clock, processor time, events in the emission
    written: list[tuple[float, int]] = []
    thread = threading.Thread(target=lambda: written.extend(json.loads(line) for line in writer.stdout or ()))
    thread.start()
    reader = Reader(root / "live" / SUMS_FOLDER)
    deadline = time.monotonic() + 4 * (WARM_UP_SECONDS + seconds)
    while time.monotonic() < deadline:
        emitted += [(time.time(), time.process_time(), one.events) for one in reader.read()]
        if writer.poll() is not None and not thread.is_alive() and emitted and emitted[-1][2] >= written[-1][1]:
            break
        time.sleep(0.01)
    begin = next(one for one in emitted if one[2] >= rate * WARM_UP_SECONDS)
    end = emitted[-1]
    counts = np.array([events for _, _, events in emitted])
    waits = [
        emitted[place][0] - moment
        for moment, total in written
        if total > begin[2] and (place := int(np.searchsorted(counts, total))) < len(emitted)
    ]
    return {
        "per_cpu_second": (end[2] - begin[2]) / (end[1] - begin[1]),
        "rate": (written[-1][1] - written[0][1]) / (written[-1][0] - written[0][0]),
        "p50_seconds": float(np.percentile(waits, 50)),
        "p99_seconds": float(np.percentile(waits, 99)),
    }


def write_log(folder: Path, rate: int, seconds: float) -> None:
    """Appends decisions, and a reward for each about half a second later; prints a line `[time, events]` per append."""
    random = np.random.default_rng(0)
    observations = [random.normal(size=OBSERVATION_DIM).round(4).tolist() for _ in range(1000)]
    log = EventLog(folder, "bench")
    waiting: list[tuple[float, str]] = []
    total, number, begin = 0, 0, time.monotonic()
    while (passed := time.monotonic() - begin) < seconds:
        now, lines = datetime.now(UTC), []
        while number < passed * rate / 2:
            number += 1
            identity = f"019b76da-a800-7000-8000-{number * 7919 % 2**48:012x}"
            decision = Decision(
                decision_id=identity,
                decided_at=now,
                policy_version="v1",
                observation=observations[number % 1000],
                action=number * 31 % NUM_ACTIONS,
                propensity=0.5,
            )
            lines.append(encoder.encode(decision))
            waiting.append((passed + 0.25 + number % 100 / 200, identity))
        due = [identity for moment, identity in waiting if moment <= passed]
        waiting = [one for one in waiting if one[0] > passed]
        lines += [encoder.encode(RewardEvent(decision_id=identity, occurred_at=now, reward=1.5)) for identity in due]
        if lines:
            log.append(b"".join(line + b"\n" for line in lines), len(lines))
            total += len(lines)
            print(json.dumps([time.time(), total]), flush=True)
        time.sleep(TICK_SECONDS)
    log.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one measurement, or writes the log of one."""
    return run_main("bench.live_sums", _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    parser = FlagParser(prog="python -m bench.live_sums", documentation=__doc__)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write the event log alone, into this folder")
    parser.add_argument("rate", type=int, help="events per second")
    parser.add_argument("seconds", type=float, help="how long")
    arguments = parser.parse_args(argv)
    if arguments.write:
        write_log(arguments.write, arguments.rate, arguments.seconds)
    else:
        print(json.dumps(measure(JoinLiveFn, arguments.rate, arguments.seconds)))


if __name__ == "__main__":
    sys.exit(main())
