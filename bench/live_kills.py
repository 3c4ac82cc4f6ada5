"""`make live-kills`: the processes of live learning killed at random, and what is learned compared with the record.

    python -m bench.live_kills [--kills 20] [--only job …] [--seed 0]

A predictor serves viewers, `beam_jobs.learn_live` and `trainer.live` learn live, and this process exports each window once
it has closed. One of the three is killed (SIGKILL) at a random moment and started again at once, as a supervisor does; the
next kill comes once it is fresh again. Reported are the seconds from the kill until a decision is made by a live version
that holds every event up to the kill, and how many windows were learned otherwise than they were exported: live sums are
compared with the record bit for bit, when the record takes their place.

`loop` kills `cli loop --learning live` itself, with all its processes, and resumes it; its report must find nothing lost,
counted twice or paid to another decision. Writes `bench/live_kills.json` and the table in `docs/live.md`.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from beam_jobs import export_trajectories, generate_movielens, warehouse
from beam_jobs.generate_movielens import GeneratorSettings
from beam_jobs.ingest_events import ingest
from beam_jobs.movielens import MovieLens
from beam_jobs.payloads import DecisionShape
from beam_jobs.ratings import load_ratings
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts import live_emissions, live_versions
from contracts.command_line import FlagParser, flag_name, run_main
from contracts.errors import OperationError
from contracts.live_emissions import SUMS_FOLDER
from contracts.live_versions import VERSIONS_NAME
from contracts.policies import Exploration, split_version
from contracts.windows import TrainingWindow, WindowSettings
from orchestration import endpoint, ingestion, policy_store
from orchestration.places import Places
from orchestration.processes import free_port, wait_until
from predictor.client import Client, UnavailableError
from predictor.messages import Instance, SentReward
from trainer import training

RESULTS = Path(__file__).with_name("live_kills.json")
LENGTH = timedelta(seconds=5)
WINDOW = WindowSettings(reward_window_seconds=2.0, settle_seconds=1.0, missing_reward="drop", late_horizon_seconds=30.0)
PER_SECOND = 100
STARTED_SECONDS = 120.0
TARGETS = ("job", "trainer", "predictor")
LOOP_WINDOWS = 6


Fault = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]  # rewards [N], actions [N] -> rewards


class Running:
    """The processes over one root, and the viewers that come meanwhile."""

    def __init__(self, root: Path, seed: int) -> None:
        self.places = Places(root)
        self._viewers = MovieLens.build(load_ratings("sample"), num_actions=20, rank=10, reward_noise=0.5, seed=seed)
        self._source = EmbeddedWarehouse(self.places.warehouse)
        self._shape = DecisionShape(self._viewers.observation_dim, self._viewers.num_actions)
        self._rng = np.random.default_rng(seed)
        self._stopped = threading.Event()
        self.fault: Fault | None = None  # what is done to the rewards of the viewers who come at one time
        self.served: list[tuple[float, float, float, int]] = []  # by time: what was expected of it, oracle's, live ones
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs = root / "logs"
        for folder in (self.places.events, self.places.windows, self.places.policies, self._logs):
            folder.mkdir(parents=True)
        warehouse.create(self.places.warehouse)
        self._bootstrap()
        self.origin = datetime.now(UTC).replace(microsecond=0)
        self._next_window = self.origin
        self.url = f"http://127.0.0.1:{free_port()}"
        settings = [part for name in WINDOW.__struct_fields__ for part in (flag_name(name), str(getattr(WINDOW, name)))]
        places = {name: str(getattr(self.places, name)) for name in ("events", "live", "policies", "windows")}
        job = ["beam_jobs.learn_live", "--events", places["events"], "--windows", places["windows"]]
        job += ["--live", places["live"], "--start", self.origin.isoformat(), *self._shape.flags(), *settings]
        predictor = ["predictor.app", "--policy", places["policies"], "--events", places["events"]]
        predictor += ["--live", places["live"], "--port", self.url.rpartition(":")[2]]
        watch = ["orchestration.live_watch", "--events", places["events"], "--live", places["live"]]
        self._commands = {
            "predictor": predictor,
            "job": [*job, "--window-seconds", f"{LENGTH.total_seconds():g}"],
            "trainer": ["trainer.live", "--live", places["live"], "--policies", places["policies"]],
            "watch": [*watch, "--policies", places["policies"], *settings],
        }

    def _bootstrap(self) -> None:
        start = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=60)
        window = TrainingWindow(start, start + LENGTH)
        settings = GeneratorSettings(num_decisions=2000, start=start, window_seconds=LENGTH.total_seconds())
        generate_movielens.generate(self._viewers, settings, self.places.events)
        ingest(self.places.events, self._source, self._shape)
        export_trajectories.export(self._source, self.places.windows, window, WINDOW)
        card = training.train(
            training.Settings(
                windows=self.places.windows,
                policies=self.places.policies,
                num_actions=self._shape.num_actions,
                catalogue=self._viewers.catalogue,
                exploration=Exploration(strategy="ucb", alpha=0.2),
            )
        )
        policy_store.roll_out(self.places.policies, card.version, "the first", datetime.now(UTC))

    @contextlib.contextmanager
    def all(self) -> Iterator[None]:
        """Runs everything until the block ends."""
        threads = [threading.Thread(target=work, daemon=True) for work in (self._come, self._export)]
        try:
            for name in self._commands:
                self.start(name)
            for thread in threads:
                thread.start()
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join(30)
            for process in self._processes.values():
                process.kill()
                process.wait()

    def start(self, name: str) -> None:
        """Starts one process."""
        with (self._logs / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", *self._commands[name]]
            self._processes[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        """Kills one process, and waits until it is gone."""
        self._processes[name].kill()
        self._processes[name].wait()

    def check(self) -> None:
        """Raises OperationError if a process has ended."""
        for name, process in self._processes.items():
            if (code := process.poll()) is not None:
                lines = (self._logs / f"{name}.log").read_text().strip().splitlines()
                raise OperationError(f"{name} ended with {code}: {lines[-1] if lines else ''}")

    def fresh_from(self, moment: datetime) -> bool:
        """Whether a live version decides that holds every event up to then."""
        try:
            status = endpoint.live_status(self.url)
        except OperationError:
            return False
        if status is None or status.version is None:
            return False
        for kind in ("delta", "snapshot"):
            path = self.places.live / VERSIONS_NAME / live_versions.file_name(status.sequence, kind)
            if path.is_file():
                complete = live_versions.read(path).complete_until
                return complete is not None and complete >= moment
        return False

    def _come(self) -> None:
        """Viewers, 20 times per second, until the end; they wait where no predictor answers."""
        client = Client(self.url, attempts=1)
        waiting: list[tuple[float, list[SentReward]]] = []
        while not self._stopped.wait(0.05):
            users = self._rng.integers(0, self._viewers.num_users, PER_SECOND // 20)
            with contextlib.suppress(UnavailableError):
                observations = self._viewers.observations[users].tolist()
                made = client.predict([Instance(observation=row) for row in observations])
                actions = np.array([one.action for one in made])
                paid = self._viewers.observed_rewards(users, actions, self._rng).tolist()
                self._count(users, actions, [one.policy_version for one in made])
                if self.fault is not None:
                    paid = self.fault(np.array(paid), actions, self._rng).tolist()
                rewards = [SentReward(one.decision_id, value) for one, value in zip(made, paid, strict=True)]
                waiting.append((time.monotonic() + 0.3, rewards))
                while waiting and waiting[0][0] <= time.monotonic():
                    client.rewards(waiting[0][1])
                    waiting.pop(0)
        client.close()

    def _count(self, users: np.ndarray, actions: np.ndarray, versions: list[str]) -> None:
        expected = self._viewers.expected_of_all_actions(users)
        taken, best = expected[np.arange(len(users)), actions].sum(), expected.max(axis=1).sum()
        by_live = sum(split_version(version)[1] is not None for version in versions)
        self.served.append((time.time(), float(taken), float(best), by_live))

    def _export(self) -> None:
        """Exports each window that has closed, until the end."""
        while not self._stopped.wait(0.5):
            self.export_closed()

    def export_closed(self) -> None:
        """Exports the windows that have closed by now."""
        while (closes := self._next_window + LENGTH + timedelta(seconds=WINDOW.closing_seconds)) < datetime.now(UTC):
            mark = ingestion.advance(
                self.places.events, self._source, closes, lambda: ingest(self.places.events, self._source, self._shape)
            )
            if mark.complete_until < closes:
                return
            window = TrainingWindow(self._next_window, self._next_window + LENGTH)
            export_trajectories.export(self._source, self.places.windows, window, WINDOW)
            self._next_window = window.end

    def compared(self) -> tuple[int, int]:
        """How many windows the record has replaced, and how many of them had been learned otherwise."""
        recorded: set[datetime] = set()
        differed = last = events = 0
        sums = self.places.live / SUMS_FOLDER
        for number in live_emissions.sequences(sums):
            path = sums / live_emissions.file_name(number)
            emission = live_emissions.decode(path.read_bytes(), str(path))
            if emission.events < events:  # the job began again
                differed, last = differed + last, 0
            last, events = emission.healed, emission.events
            recorded |= {part.window.start for part in emission.windows if part.state == "recorded"}
        return len(recorded), differed + last


def run(target: str, kills: int, seed: int) -> dict[str, Any]:
    """Kills one process so often."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        running = Running(Path(scratch), seed)
        with running.all():
            _wait(lambda: running.fresh_from(running.origin), running)
            seconds = []
            for _ in range(kills):
                time.sleep(chance.uniform(0.5, 4.0))
                running.check()
                moment, begin = datetime.now(UTC), time.monotonic()
                running.kill(target)
                running.start(target)
                _wait(lambda: running.fresh_from(moment), running)  # noqa: B023
                seconds.append(time.monotonic() - begin)
                print(f"  {target}: fresh again after {seconds[-1]:.1f} s", flush=True)
            time.sleep(LENGTH.total_seconds() + WINDOW.closing_seconds + 3)
        windows, differed = running.compared()
    return {
        "killed": target,
        "times": kills,
        "fresh again after, s: median": round(float(np.median(seconds)), 1),
        "at most": round(max(seconds), 1),
        "windows compared": windows,
        "learned otherwise": differed,
    }


def _wait(done: Callable[[], bool], running: Running) -> None:
    if not wait_until(done, STARTED_SECONDS, running.check):
        raise OperationError(f"live versions did not become fresh within {STARTED_SECONDS:.0f} s")


def run_loop(kills: int, seed: int) -> dict[str, Any]:
    """Kills the loop so often, in runs of a few windows, and resumes it each time."""
    chance, done, wrong = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        while done < kills:
            out = Path(scratch) / f"run-{done}"
            loop = ["orchestration.cli", "loop", "--learning", "live", "--out", str(out), "--page", "off"]
            loop += ["--num-actions", "20", "--decisions-per-window", "500", "--windows", str(LOOP_WINDOWS)]
            resume: list[str] = []
            while True:
                process = subprocess.Popen(
                    [sys.executable, "-m", *loop, *resume], stdout=subprocess.DEVNULL, start_new_session=True
                )
                _wait_for_journal(out, process)
                resume = ["--resume"]
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(chance.uniform(2, 25) if done < kills else None)
                if process.poll() is not None:
                    break
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                done += 1
                print(f"  loop: killed {done} times", flush=True)
                time.sleep(2)  # its children end by themselves
            totals = json.loads((out / "report.json").read_text())["totals"]
            wrong += totals["lost"] + totals["duplicated"] + totals["misattributed_rewards"]
    return {
        "killed": "loop",
        "times": done,
        "fresh again after, s: median": None,
        "at most": None,
        "windows compared": None,
        "learned otherwise": wrong,
    }


def _wait_for_journal(out: Path, process: "subprocess.Popen[bytes]") -> None:
    """Until the run can be resumed, or has ended."""
    if not wait_until(lambda: process.poll() is not None or (out / "journal.jsonl").is_file(), STARTED_SECONDS):
        raise OperationError(f"{out}: the loop did not begin within {STARTED_SECONDS:.0f} s")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join(["---"] * len(columns)) + " |"]
    lines += ["| " + " | ".join("" if row[name] is None else str(row[name]) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Kills, and writes the results."""
    return run_main("bench.live_kills", _run, argv)


def _run(argv: Sequence[str] | None) -> int:
    from bench.live import PAGE
    from bench.pages import write_table

    parser = FlagParser(prog="python -m bench.live_kills", documentation=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[*TARGETS, "loop"], help="only these; results of others are kept")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    given = parser.parse_args(argv)
    rows = {row["killed"]: row for row in (json.loads(RESULTS.read_text()) if RESULTS.is_file() else [])}
    for target in given.only or [*TARGETS, "loop"]:
        rows[target] = run_loop(given.kills, given.seed) if target == "loop" else run(target, given.kills, given.seed)
        print(rows[target], flush=True)
        RESULTS.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
        write_table(PAGE, "live kills", table(list(rows.values())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
