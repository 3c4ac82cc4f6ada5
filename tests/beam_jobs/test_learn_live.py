"""Live learning as a Beam job on the local streaming runner, against the windows that the other jobs export."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import learn_live
from beam_jobs.export_trajectories import export
from beam_jobs.ingest_events import ingest
from beam_jobs.live_join import JoinPlan
from beam_jobs.live_record import Record
from beam_jobs.payloads import DecisionShape
from beam_jobs.warehouses import open_warehouse
from contracts import live_sums
from contracts.errors import InputError
from contracts.live_emissions import SUMS_FOLDER, Reader
from contracts.live_encoders import Encoder
from contracts.records import utc_microseconds
from tests.live_logs import (
    NUM_ACTIONS,
    OBSERVATION_DIM,
    WINDOW_SECONDS,
    faulty_log,
    follow_until,
    learn_until,
    live_job,
    payload,
    plan,
    write_segment,
)

WINDOWS = 3


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def make_folders(root: Path) -> None:
    for name in ("events", "windows", "live"):
        (root / name).mkdir(parents=True)


def export_all(root: Path, how: JoinPlan) -> dict[int, live_sums.ArmSums]:
    """Ingests the log and exports all windows with the batch jobs; the sums of their records, by window."""
    warehouse = open_warehouse(str(root / "warehouse"), PipelineOptions([]))
    ingest(root / "events", warehouse, DecisionShape(OBSERVATION_DIM, NUM_ACTIONS))
    record = Record(str(root / "windows"), how, NUM_ACTIONS)
    found = {}
    for number in range(WINDOWS):
        start = utc_microseconds(how.origin + timedelta(seconds=WINDOW_SECONDS * number))
        export(warehouse, root / "windows", how.window(start), how.settings, observation_dim=OBSERVATION_DIM)
        found[number] = record.sums(start)
    return found


def learned(reader: Reader, how: JoinPlan) -> dict[int, live_sums.ArmSums]:
    return {round((one.start - how.origin).total_seconds() / 5): sums for one, sums in reader.windows.items()}


def assert_equal(found: dict[int, live_sums.ArmSums], wanted: dict[int, live_sums.ArmSums]) -> None:
    for number, sums in wanted.items():
        assert len(sums.arms), "a test on windows without records proves nothing"
        assert live_sums.equal(found[number], sums), f"window {number}"


def test_with_an_encoder_the_sums_are_over_what_it_makes_of_observations(tmp_path: Path) -> None:
    make_folders(tmp_path)
    random = np.random.default_rng(0)
    layers = [(random.normal(size=(OBSERVATION_DIM, 6)).astype(np.float32), np.zeros(6, np.float32))]
    how = plan(now() - timedelta(seconds=20), missing_reward="default")._replace(encoder=Encoder(layers))
    lines = list(map(payload, faulty_log(how.origin, 11)))
    write_segment(tmp_path / "events", lines, 1)
    job = live_job(tmp_path, how, buckets=2)
    reader = learn_until(tmp_path, job, lambda it: it.latest is not None and it.latest.events == len(lines))
    assert reader.latest is not None
    assert (reader.latest.observation_dim, reader.latest.encoder) == (6, Encoder(layers).digest)
    assert_equal(learned(reader, how), export_all(tmp_path, how))


@pytest.mark.parametrize(
    ("seed", "missing", "buckets"), [(1, "drop", 1), (2, "default", 3), (3, "default", 1), (4, "drop", 4)]
)
def test_the_job_learns_what_the_record_will_hold(tmp_path: Path, seed: int, missing: str, buckets: int) -> None:
    make_folders(tmp_path)
    how = plan(now() - timedelta(seconds=20), missing_reward=missing)
    events = faulty_log(how.origin, seed)
    lines = [*map(payload, events), b"unreadable"]
    job = live_job(tmp_path, how, buckets)

    def write() -> None:
        for number in range(0, len(lines), 80):
            write_segment(tmp_path / "events", lines[number : number + 80], number)
            time.sleep(0.15)

    writer = threading.Thread(target=write)
    writer.start()
    reader = learn_until(tmp_path, job, lambda it: it.latest is not None and it.latest.events == len(lines))
    writer.join()
    assert reader.latest is not None
    assert reader.latest.dead_letters == 1
    provisional = learned(reader, how)
    assert_equal(provisional, export_all(tmp_path, how))


def test_a_window_is_replaced_by_its_record_and_a_difference_is_healed(tmp_path: Path) -> None:
    make_folders(tmp_path)
    how = plan(now() - timedelta(seconds=20))
    events = faulty_log(how.origin, 5)
    write_segment(tmp_path / "events", list(map(payload, events[:-40])), 1)
    total = len(events) - 40
    recorded: dict[int, live_sums.ArmSums] = {}

    def done(reader: Reader) -> bool:
        assert reader.latest is not None
        if reader.latest.events == total and not recorded:
            # The record is made of more events than the job has read: those reach it in another folder.
            hidden = tmp_path / "more"
            for folder in ("events", "windows"):
                (hidden / folder).mkdir(parents=True)
            write_segment(hidden / "events", list(map(payload, events)), 2)
            recorded.update(export_all(hidden, how))
            for window in sorted((hidden / "windows").glob("window=*")):
                window.rename(tmp_path / "windows" / window.name)
        states = [one.state for one in reader.latest.windows if one.window.start >= how.origin]
        return bool(recorded) and states[:WINDOWS] == ["recorded"] * WINDOWS

    # The job was started two windows before the first one that is exported.
    early = how._replace(origin=how.origin - timedelta(seconds=2 * WINDOW_SECONDS))
    reader = learn_until(tmp_path, live_job(tmp_path, early), done)
    assert_equal(learned(reader, how), recorded)
    assert reader.latest is not None
    assert reader.latest.healed >= 1


@contextmanager
def running(root: Path, how: JoinPlan) -> Iterator[subprocess.Popen[bytes]]:
    """The job as a process of its own."""
    settings = how.settings
    flags = {
        "events": root / "events",
        "windows": root / "windows",
        "live": root / "live",
        "start": how.origin.isoformat(),
        "window-seconds": how.window_seconds,
        "observation-dim": OBSERVATION_DIM,
        "num-actions": NUM_ACTIONS,
        "emit-seconds": 0.2,
        **{name.replace("_", "-"): getattr(settings, name) for name in settings.__struct_fields__},
    }
    command = [sys.executable, "-m", "beam_jobs.learn_live", *(f"--{name}={value}" for name, value in flags.items())]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_job_that_is_killed_learns_the_same_from_the_log_alone(tmp_path: Path) -> None:
    make_folders(tmp_path)
    how = plan(now() - timedelta(seconds=20), missing_reward="default")
    lines = list(map(payload, faulty_log(how.origin, 6)))
    parts = [lines[begin : begin + 120] for begin in range(0, len(lines), 120)]
    reader = Reader(tmp_path / "live" / SUMS_FOLDER)
    written = 0
    for number, part in enumerate(parts[:3]):
        write_segment(tmp_path / "events", part, number)
        written += len(part)
        with running(tmp_path, how) as process:
            follow_until(reader, lambda it: it.latest is not None and it.latest.events == written)  # noqa: B023
            os.kill(process.pid, signal.SIGKILL)
    for number, part in enumerate(parts[3:], start=3):
        write_segment(tmp_path / "events", part, number)
    with running(tmp_path, how):
        follow_until(reader, lambda it: it.latest is not None and it.latest.events == len(lines))
    assert_equal(learned(reader, how), export_all(tmp_path, how))


def flags(root: Path, **changes: str) -> list[str]:
    given = {
        "events": str(root / "events"),
        "windows": str(root / "windows"),
        "live": str(root / "live"),
        "start": "2026-01-01T00:00:00Z",
        "window-seconds": "5",
        "observation-dim": "3",
        "num-actions": "4",
    }
    return [f"--{name}={value}" for name, value in (given | changes).items()]


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"events": "/nowhere"}, "--events: a folder expected, got '/nowhere'"),
        ({"events": "gs://b/events"}, "--events: a folder of this machine or pubsub:"),
        ({"events": "pubsub:x"}, "--events: pubsub:projects/PROJECT/subscriptions/NAME expected, got 'pubsub:x'"),
        ({"windows": "/nowhere"}, "--windows: a folder of exported windows expected, got '/nowhere'"),
        ({"timestamp-attribute": "t"}, "--timestamp-attribute: requires --events pubsub:"),
        ({"encoder": "/nowhere"}, "--encoder: a policy with a network expected, got '/nowhere': it has no policy.json"),
        ({"window-seconds": "0"}, "a number above 0 to "),
        ({"observation-dim": "0"}, "a whole number from 1 expected, got '0'"),
        ({"emit-seconds": "0.01"}, "a number from 0.05 to 60 expected, got '0.01'"),
        ({"snapshot-every": "5000"}, "--snapshot-every: Expected `int` <= 1000, got 5000"),
        ({"runner": "FnApiRunner"}, "--events: a folder is followed by the local streaming runner alone"),
    ],
)
def test_wrong_flags_are_one_line(
    tmp_path: Path, changes: dict[str, str], fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path)
    assert learn_live.main(flags(tmp_path, **changes)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert fact in line


def test_two_jobs_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folders(tmp_path)
    with (tmp_path / "live" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert learn_live.main(flags(tmp_path)) == 2
    assert "--live: a folder that no other process writes to expected" in capsys.readouterr().err


def test_the_folder_for_what_is_learned_must_be_writable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folders(tmp_path)
    (tmp_path / "file").write_text("")
    assert learn_live.main(flags(tmp_path, live=str(tmp_path / "file"))) == 2
    assert "--live: " in capsys.readouterr().err


def test_an_error_that_the_record_shows_is_input(tmp_path: Path) -> None:
    make_folders(tmp_path)
    how = plan(now() - timedelta(seconds=20))
    write_segment(tmp_path / "events", list(map(payload, faulty_log(how.origin, 7))), 1)
    export_all(tmp_path, how)
    with pytest.raises(InputError, match=r"--reward-window-seconds: must be 2\.0, as in "):
        other = how._replace(settings=plan(how.origin, reward_window_seconds=1.0).settings)
        Record(str(tmp_path / "windows"), other, NUM_ACTIONS).check_newest()
