"""Viewers who watch over HTTP: observe, ask for a movie, and send the reward of that user and that movie later.

    python -m orchestration.loop.simulator --endpoint http://127.0.0.1:8080 --ratings sample --events runs/latest/events \\
        --truth runs/latest/truth/viewers.jsonl --windows 10

Decisions are asked for in concurrent batches, spread evenly over each window; a slow answer does not slow the next
request. Some viewers never answer. Some events are faulty, at `--fault-rate`, and what was done to them is written down:

    twice       a reward is sent again
    late        a reward is sent after the reward window
    orphan      a reward for a decision that was never made
    malformed   a request that the predictor must refuse; and, as a bad transport would, broken copies of events put
                straight into the event log, beside whole copies (redelivered ones)

The truth is written by the viewers themselves, apart from the event log (`orchestration.loop.truth`).
"""

import argparse
import asyncio
import heapq
import itertools
import math
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx
import msgspec
import numpy as np

from beam_jobs.movielens import MovieLens
from contracts.command_line import FlagParser, add_flags, parse_time, run_main, time_flag
from contracts.errors import InputError, OperationError
from contracts.event_segments import SEALED_SUFFIX, sealed_segments, segment_name
from contracts.records import utc_microseconds
from orchestration.loop.audience import ANSWER_SECONDS, LATE_SECONDS, SHARE_LATE, load_movielens
from orchestration.loop.settings import LoopSettings, loop_settings
from orchestration.loop.truth import (
    Entry,
    Fault,
    InjectedFaults,
    OfferedReward,
    RequestFailure,
    SentReward,
    ServedDecision,
    SessionStart,
    TruthLog,
    decided_milliseconds,
    windows_passed,
)

PROGRAM = "orchestration.loop.simulator"
BATCH_DECISIONS = 20
TICK_SECONDS = 0.05
FAULTY_WRITER = "bad-transport"
REQUEST_TIMEOUT_SECONDS = 30.0


class PlannedReward(NamedTuple):
    """A reward that a viewer will send. Sorts by the moment it is due."""

    due: float  # seconds since the epoch
    sequence: int
    decision_id: str
    reward: float
    fault: Fault | Literal["orphan"]

    @property
    def occurred_at(self) -> datetime:
        """The moment that the event carries."""
        return datetime.fromtimestamp(self.due, UTC)

    @property
    def body(self) -> dict[str, Any]:
        """The reward in the form that `/rewards` accepts."""
        return {"decision_id": self.decision_id, "reward": self.reward, "occurred_at": self.occurred_at}


class Simulator:
    """Serves the viewers of `settings` against one predictor. `session` numbers the runs of a resumed loop."""

    def __init__(
        self, settings: LoopSettings, movielens: MovieLens, endpoint: str, events: Path, truth: TruthLog, session: int
    ) -> None:
        self._settings = settings
        self._movielens = movielens
        self._endpoint = endpoint.rstrip("/")
        self._events = events
        self._truth = truth
        self._session = session
        self.served = 0  # decisions
        self.last_failure = ""
        self._started: list[SessionStart] = []
        self._planned: list[PlannedReward] = []  # a heap
        self._sequence = itertools.count()
        self._bad_transport = BadTransport(
            events, settings.fault_rate, np.random.default_rng([settings.seed, session, 1])
        )

    async def run(self, start: float, windows: int, first_window: int = 1) -> None:
        """Serves `windows` windows from `start` (seconds since the epoch), then sends the rewards still to come.

        `first_window` is the number of the first: tastes have turned by as much as the windows before it say.
        """
        self._started.append(SessionStart(start, first_window))
        self._truth.append(self._started)
        limits = httpx.Limits(max_connections=32)
        all_served = asyncio.Event()
        async with (
            httpx.AsyncClient(limits=limits, timeout=REQUEST_TIMEOUT_SECONDS) as client,
            asyncio.TaskGroup() as sending,
        ):
            sending.create_task(self._send_rewards(client, all_served))
            async with asyncio.TaskGroup() as serving:
                await self._ask(client, start, windows, serving)
            all_served.set()

    async def _ask(self, client: httpx.AsyncClient, start: float, windows: int, serving: asyncio.TaskGroup) -> None:
        per_window, window_seconds = self._settings.decisions_per_window, self._settings.window_seconds
        batches = itertools.count()
        for window in range(windows):
            for first in range(0, per_window, BATCH_DECISIONS):
                # In the middle of its share of the window, so that none falls on the border.
                size = min(BATCH_DECISIONS, per_window - first)
                moment = start + (window + (first + size / 2) / per_window) * window_seconds
                await asyncio.sleep(max(0.0, moment - time.time()))
                rng = np.random.default_rng([self._settings.seed, self._session, 0, next(batches)])
                serving.create_task(self._serve(client, size, rng))
            if self._settings.fault_rate:
                serving.create_task(self._misbehave(client))

    async def _serve(self, client: httpx.AsyncClient, size: int, rng: np.random.Generator) -> None:
        users = rng.integers(0, self._movielens.num_users, size)
        instances = [
            {"observation": observation, "user_id": str(self._movielens.user_ids[user])}
            for user, observation in zip(users, self._movielens.observations[users].tolist(), strict=True)
        ]
        asked_at = time.time()
        try:
            response = await client.post(
                f"{self._endpoint}/predict", content=msgspec.json.encode({"instances": instances})
            )
            response.raise_for_status()
        except httpx.HTTPError as error:
            self.last_failure = f"{type(error).__name__}: {error}"
            self._truth.append([RequestFailure(self.last_failure, size)])
            return
        self.served += size
        predictions: list[dict[str, Any]] = msgspec.json.decode(response.content)["predictions"]
        actions = np.array([prediction["action"] for prediction in predictions])
        moments = np.array([decided_milliseconds(prediction["decision_id"]) / 1e3 for prediction in predictions])
        angles = self._settings.drift * windows_passed(self._started, moments, self._settings.window_seconds)
        of_all = self._movielens.expected_of_all_actions(users, angles)
        expected, best = of_all[np.arange(size), actions], of_all[:, self._movielens.on_offer].max(axis=1)
        self._truth.append(
            ServedDecision(
                prediction["decision_id"],
                prediction["policy_version"],
                int(user),
                prediction["action"],
                prediction["propensity"],
                float(value),
                float(oracle),
                asked_at,
            )
            for prediction, user, value, oracle in zip(predictions, users, expected, best, strict=True)
        )
        rewards = self._movielens.observed_rewards(users, actions, rng, angles).tolist()
        self._plan([prediction["decision_id"] for prediction in predictions], rewards, rng)

    def _plan(self, decision_ids: list[str], rewards: list[float], rng: np.random.Generator) -> None:
        now, rate, count = time.time(), self._settings.fault_rate, len(decision_ids)
        answered = rng.random(count) >= self._settings.no_reward_probability
        delays = rng.uniform(*ANSWER_SECONDS, count)
        late = self._settings.reward_window_seconds + rng.uniform(*LATE_SECONDS, count)
        kinds: list[Fault | Literal["orphan"]] = ["", "twice", "late", "orphan"]
        chosen = rng.choice(len(kinds), count, p=[1 - rate, rate / 3, rate * SHARE_LATE, rate / 3]).tolist()
        strangers = rng.bytes(8 * count).hex()
        for row, decision_id in enumerate(decision_ids):
            fault = kinds[chosen[row]]
            if fault == "orphan":
                # The id of a decision that was never made, as young as a real one. It comes beside the real reward.
                stranger = f"{decision_id[:24]}{strangers[16 * row : 16 * row + 12]}"
                self._push(now + delays[row], stranger, rewards[row], "orphan")
                fault = ""
            if answered[row]:
                self._push(now + (late if fault == "late" else delays)[row], decision_id, rewards[row], fault)

    def _push(self, due: float, decision_id: str, reward: float, fault: Fault | Literal["orphan"]) -> None:
        heapq.heappush(self._planned, PlannedReward(float(due), next(self._sequence), decision_id, reward, fault))

    async def _send_rewards(self, client: httpx.AsyncClient, all_served: asyncio.Event) -> None:
        while self._planned or not all_served.is_set():
            await asyncio.sleep(TICK_SECONDS)
            if self._settings.fault_rate:
                self._bad_transport.look()
            due = []
            while self._planned and self._planned[0].due <= time.time():
                due.append(heapq.heappop(self._planned))
            if due:
                await self._send(client, due)

    async def _send(self, client: httpx.AsyncClient, due: list[PlannedReward]) -> None:
        sent_at = time.time()
        self._truth.append(
            OfferedReward(planned.decision_id, planned.reward, utc_microseconds(planned.occurred_at))
            for planned in due
            if planned.fault != "orphan"
        )
        bodies = [planned.body for planned in due for _ in range(2 if planned.fault == "twice" else 1)]
        try:
            response = await client.post(f"{self._endpoint}/rewards", content=msgspec.json.encode({"rewards": bodies}))
            response.raise_for_status()
        except httpx.HTTPError as error:
            self._truth.append([RequestFailure(f"{type(error).__name__}: {error}", 0)])
            if isinstance(error, httpx.HTTPStatusError) and error.response.is_client_error:
                return  # it would be refused again
            # Perhaps it arrived, perhaps not: sent again as it was, it counts once either way.
            for planned in due:
                heapq.heappush(self._planned, planned)
            await asyncio.sleep(1)
            return
        entries: list[Entry] = [
            SentReward(
                planned.decision_id, planned.reward, utc_microseconds(planned.occurred_at), sent_at, planned.fault
            )
            for planned in due
            if planned.fault != "orphan"
        ]
        entries.append(InjectedFaults(orphan_rewards=sum(planned.fault == "orphan" for planned in due)))
        self._truth.append(entries)

    async def _misbehave(self, client: httpx.AsyncClient) -> None:
        """Once per window: sends a request that the predictor must refuse, and adds bad events to the event log."""
        body = {"rewards": [{"decision_id": "not-an-id", "reward": "five stars"}]}
        try:
            response = await client.post(f"{self._endpoint}/rewards", content=msgspec.json.encode(body))
        except httpx.HTTPError as error:
            self._truth.append([RequestFailure(f"{type(error).__name__}: {error}", 0)])
        else:
            self._truth.append([InjectedFaults(refused_requests=int(response.is_client_error))])
        self._truth.append([self._bad_transport.strike()])


class BadTransport:
    """Writes copies of some events and broken copies of others into the event log, in separate segments."""

    def __init__(self, events: Path, rate: float, rng: np.random.Generator) -> None:
        self._events = events
        self._rate = rate
        self._rng = rng
        self._seen: set[str] = set()
        self._whole: list[bytes] = []  # events to deliver again at the next strike
        self._to_break: list[bytes] = []

    def look(self) -> None:
        """Chooses events from new segments. Call it often: a publisher removes a segment soon after it is sealed."""
        fresh = [path for path in sealed_segments(self._events) if path.name not in self._seen]
        self._seen.update(path.name for path in fresh)
        lines = [line for path in fresh if FAULTY_WRITER not in path.name for line in _lines(path)]
        for line, lot in zip(lines, self._rng.random(len(lines)).tolist(), strict=True):
            if lot < self._rate:
                (self._whole if lot < self._rate / 2 else self._to_break).append(line)

    def strike(self) -> InjectedFaults:
        """Writes the copies of the events chosen since the last call, and returns how many of each kind."""
        self.look()
        whole, broken = self._whole, [self._break(line, way) for way, line in enumerate(self._to_break)]
        self._whole, self._to_break = [], []
        if whole or broken:
            name = segment_name(datetime.now(UTC), FAULTY_WRITER)
            hidden = self._events / f".{name}"
            hidden.write_bytes(b"".join(line + b"\n" for line in whole + broken))
            hidden.rename(self._events / f"{name}{SEALED_SUFFIX}")
        decisions = sum(b'"kind":"decision"' in line for line in whole)
        return InjectedFaults(
            redelivered_decisions=decisions, redelivered_rewards=len(whole) - decisions, malformed=len(broken)
        )

    def _break(self, line: bytes, way: int) -> bytes:
        match way % 3:
            case 0:
                return line[: int(self._rng.integers(1, len(line)))]
            case 1:
                return line.replace(b'"decision_id":"', b'"decision_id":"\xff\xfe')
            case _:
                return line.replace(b'"propensity":', b'"propensity":-').replace(b'"reward":', b'"reward":"?","was":')


def _lines(segment: Path) -> list[bytes]:
    try:
        return segment.read_bytes().splitlines()
    except FileNotFoundError:
        return []  # published, and removed, in this moment


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = FlagParser(
        prog="python -m orchestration.loop.simulator",
        description=(__doc__ or "").split("\n", 1)[0],
        epilog="Every setting of the loop is taken, so that both see the same viewers; those it has no use for are ignored.",
    )
    parser.add_argument("--endpoint", required=True, help="the predictor, as http://host:port")
    parser.add_argument("--events", required=True, type=Path, help="folder of the event log, for the bad transport")
    parser.add_argument("--truth", required=True, type=Path, help="file to which the truth is appended")
    parser.add_argument(
        "--start", help="start of the first window, ISO 8601 with time zone (default: the next second when ready)"
    )
    parser.add_argument(
        "--grid",
        type=time_flag,
        metavar="TIME",
        help="the first window starts a whole number of windows after this time, as soon as the viewers are ready",
    )
    parser.add_argument("--first-window", type=int, default=1, help="its number (default: %(default)s)")
    parser.add_argument("--session", type=int, default=0, help="which run of a resumed loop this is (default: 0)")
    add_flags(parser, LoopSettings)
    return parser


def next_on_grid(origin: float, length: float, now: float) -> float:
    """The next start of a window of that length, not before `now`, on the grid from `origin`; to the microsecond."""
    return round(origin + max(math.ceil((now - origin) / length), 0) * length, 6)


def main(argv: Sequence[str] | None = None) -> int:
    """Command-line entry point; 0 when all windows are served."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    arguments = build_parser().parse_args(argv)
    if not arguments.endpoint.startswith(("http://", "https://")):
        raise InputError(f"--endpoint: http://host:port expected, got {arguments.endpoint!r}")
    settings = loop_settings(arguments)
    start = parse_time(arguments.start, "--start").timestamp() if arguments.start else None
    movielens = load_movielens(settings)
    truth = TruthLog(arguments.truth)
    simulator = Simulator(settings, movielens, arguments.endpoint, arguments.events, truth, arguments.session)
    if start is None and arguments.grid is not None:
        start = next_on_grid(arguments.grid.timestamp(), settings.window_seconds, time.time())
    start = start or math.ceil(time.time())
    asyncio.run(simulator.run(start, settings.windows, arguments.first_window))
    truth.close()
    if not simulator.served:
        raise OperationError(f"{arguments.endpoint} answered no request: {simulator.last_failure}")


if __name__ == "__main__":
    sys.exit(main())
