"""Logs with every fault, and live learning run on them, for the tests of `beam_jobs.learn_live`."""

import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import learn_live
from beam_jobs.live_join import JoinPlan
from beam_jobs.live_record import Record
from beam_jobs.live_stages import LiveJob
from beam_jobs.live_windows import LiveSettings
from beam_jobs.options import LOCAL_STREAMING_RUNNER
from beam_jobs.payloads import DecisionShape
from contracts.event_segments import SEALED_SUFFIX, segment_name
from contracts.live_emissions import SUMS_FOLDER, Reader
from contracts.records import Decision, Event, RewardEvent, Status, StatusEvent, encoder
from contracts.windows import WindowSettings

NUM_ACTIONS = 4
OBSERVATION_DIM = 3
WINDOW_SECONDS = 5.0


def faulty_log(start: datetime, seed: int, size: int = 300) -> list[Event]:
    """Events of about 15 s in the order of their arrival.

    Among them are duplicates, one id for different decisions, and rewards that are late, early, orphaned, repeated, or
    come before their decision or after a later one; and decisions that are deferred, activated, too late or not at all, or
    cancelled.
    """
    rng = random.Random(seed)
    events: list[tuple[float, Event]] = []
    ids: list[str] = []

    def add(arrives: float, event: Event) -> None:
        events.append((arrives, event))
        if rng.random() < 0.1:
            events.append((arrives + rng.uniform(0, 3), event))

    def reward(identity: str, seconds: float, delay: float) -> None:
        moment = start + timedelta(seconds=round(seconds, 3))
        value = rng.choice([0.0, 1.0, round(rng.gauss(2, 3), 3)])
        add(seconds + delay, RewardEvent(decision_id=identity, occurred_at=moment, reward=value))

    for number in range(size):
        seconds = rng.uniform(-1, 15)
        conflict = ids and rng.random() < 0.05
        identity = rng.choice(ids) if conflict else f"019b76da-a800-7000-8000-{seed:04x}{number:08x}"
        ids.append(identity)
        decision = Decision(
            decision_id=identity,
            decided_at=start + timedelta(seconds=round(seconds, 3)),
            policy_version="v1",
            observation=[rng.gauss(0, 2) for _ in range(OBSERVATION_DIM)],
            action=rng.randrange(NUM_ACTIONS),
            propensity=0.25,
            deferred=rng.random() < 0.15 or None,
        )
        add(seconds + rng.uniform(0, 1.5), decision)
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            reward(identity, seconds + rng.choice([-0.2, 0.0, rng.uniform(0, 2), 2.5]), rng.uniform(0, 1))
        if decision.deferred or rng.random() < 0.05:
            moment = decision.decided_at + timedelta(seconds=round(rng.uniform(0, 2.5), 3))
            what: Status = "cancelled" if rng.random() < 0.2 else "activated"
            add(seconds + rng.uniform(0, 2), StatusEvent(decision_id=identity, occurred_at=moment, status=what))
    for number in range(10):
        reward(f"019b76da-a8ff-7000-8000-{seed:04x}{number:08x}", rng.uniform(0, 15), 0)
    return [event for _, event in sorted(events, key=lambda pair: pair[0])]


def payload(event: Event) -> bytes:
    return encoder.encode(event)


def write_segment(folder: Path, lines: Sequence[bytes], number: int) -> Path:
    """A sealed segment, written as a writer does: complete under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{segment_name(datetime.now(UTC), f'test-{number:06d}')}{SEALED_SUFFIX}"
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(b"".join(line + b"\n" for line in lines))
    return draft.rename(path)


def plan(start: datetime, **settings: object) -> JoinPlan:
    given = {
        "reward_window_seconds": 2.0,
        "settle_seconds": 1.0,
        "missing_reward": "drop",
        "default_reward": -0.5,
        "holdback_share": 0.2,
        "late_horizon_seconds": 60.0,
    }
    return JoinPlan(start, WINDOW_SECONDS, WindowSettings(**given | settings), OBSERVATION_DIM)  # type: ignore[arg-type]


def live_job(root: Path, how: JoinPlan, buckets: int = 1, emit_seconds: float = 0.2) -> LiveJob:
    """The job over `root`, which holds events/, windows/ and live/."""
    record = Record(str(root / "windows"), how, NUM_ACTIONS)
    settings = LiveSettings(emit_seconds=emit_seconds)
    return LiveJob(
        plan=how,
        shape=DecisionShape(OBSERVATION_DIM, NUM_ACTIONS),
        settings=settings,
        record=record,
        at_start=record.at_start(datetime.now(UTC), settings.recorded_seconds),
        live=str(root / "live"),
        buckets=buckets,
    )


def learn_until(root: Path, job: LiveJob, done: Callable[[Reader], bool], seconds: float = 120) -> Reader:
    """Runs the job on the local streaming runner until `done`, which is asked after each emission."""
    pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={LOCAL_STREAMING_RUNNER}", "--streaming"]))
    learn_live.build_pipeline(learn_live.read_folder(pipeline, str(root / "events"), job), job)
    result = pipeline.run()
    try:
        return follow_until(Reader(root / "live" / SUMS_FOLDER), done, seconds)
    finally:
        result.cancel()


def follow_until(reader: Reader, done: Callable[[Reader], bool], seconds: float = 120) -> Reader:
    deadline = time.monotonic() + seconds
    while True:
        for _ in reader.read():
            if done(reader):
                return reader
        assert time.monotonic() < deadline, f"not done in time: {reader.latest}"
        time.sleep(0.05)
