"""Ingestion and export killed with SIGKILL, at moments of all kinds, and run again."""

import random
import signal
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from beam_jobs import warehouse
from beam_jobs.export_trajectories import export
from beam_jobs.generate_movielens import GeneratorSettings, ShardEncoder, simulate_shard
from beam_jobs.ingest_events import ingest
from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts.event_segments import segment_name
from contracts.schemas import DEAD_LETTERS, DECISIONS, REWARDS
from contracts.windows import TrainingWindow, WindowSettings
from tests.killed import MOMENTS

ROOT = Path(__file__).parents[2]
START = datetime(2026, 1, 1, tzinfo=UTC)
KILLS = 5


def kill(moment: str, count: int, job: str, flags: list[str]) -> None:
    """Runs a job that is killed while it writes its `count`-th file."""
    command = [sys.executable, "-m", "tests.killed", moment, str(count), job, *flags]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def test_ingestion_killed_five_times_while_events_flow(tmp_path: Path) -> None:
    viewers = MovieLens.build(load_ratings("sample"), num_actions=20, rank=10, reward_noise=0.5, seed=0)
    per_segment, segments = 4_000, 12
    settings = GeneratorSettings(
        num_decisions=per_segment * segments, start=START, window_seconds=60, decisions_per_shard=per_segment
    )
    events, folder = tmp_path / "events", tmp_path / "warehouse"
    events.mkdir()
    encoder = ShardEncoder(viewers)

    def flow(number: int) -> Counter[bytes]:
        """The next segment: valid events, two lines of nonsense, and a torn end."""
        lines = [
            line for chunk in encoder.lines(simulate_shard(viewers, settings, number)) for line in chunk.splitlines()
        ]
        lines += [b"nonsense %d" % number, b"", lines[0][:50]]
        name = segment_name(START + timedelta(seconds=number), "test")
        (events / f"{name}.unfinished").write_bytes(b"\n".join(lines))
        (events / f"{name}.unfinished").rename(events / f"{name}.jsonl")
        return Counter(lines)

    rng = random.Random(1)
    sent: Counter[bytes] = Counter()
    next_segment = iter(range(segments))
    flags = ["--events", str(events), "--warehouse", str(folder)]
    for number in range(KILLS):
        for _ in range(2):  # each of at least three files and a note
            sent += flow(next(next_segment))
        kill(MOMENTS[number % len(MOMENTS)], rng.randint(1, 8), "ingest_events", flags)
    for number in next_segment:
        sent += flow(number)
    ingest(events, EmbeddedWarehouse(folder))
    end = START + timedelta(days=1)
    decisions = warehouse.read_all(folder, DECISIONS, START, end).column("decision_id").to_pylist()
    rewards = warehouse.read_all(folder, REWARDS, START, end).column("decision_id").to_pylist()
    letters = warehouse.read_all(folder, DEAD_LETTERS, START, end).column("payload").to_pylist()
    assert len(decisions) == len(set(decisions)) == per_segment * segments
    assert len(rewards) == len(set(rewards))
    assert len(decisions) + len(rewards) + len(letters) == sent.total()
    assert Counter(letters) == Counter({line: count for line, count in sent.items() if not line.endswith(b"}")})
    assert not list(folder.rglob("*.unfinished"))


@pytest.mark.parametrize("moment", MOMENTS)
def test_export_killed_and_run_again(tmp_path: Path, moment: str) -> None:
    viewers = MovieLens.build(load_ratings("sample"), num_actions=20, rank=10, reward_noise=0.5, seed=0)
    settings = GeneratorSettings(num_decisions=3_000, start=START, decisions_per_shard=3_000)
    events, folder = tmp_path / "events", tmp_path / "warehouse"
    events.mkdir()
    lines = b"".join(ShardEncoder(viewers).lines(simulate_shard(viewers, settings, 0)))
    (events / f"{segment_name(START, 'test')}.jsonl").write_bytes(lines)
    ingest(events, EmbeddedWarehouse(folder))
    window = TrainingWindow(START, START + timedelta(seconds=5))
    export_settings = WindowSettings(reward_window_seconds=2)
    untouched = export(
        EmbeddedWarehouse(folder), tmp_path / "untouched", window, export_settings, max_records_per_file=100
    )
    flags = ["--warehouse", str(folder), "--windows", str(tmp_path / "windows")]
    flags += ["--start", START.isoformat(), "--window-seconds", "5", "--reward-window-seconds", "2"]
    flags += ["--settle-seconds", "1", "--max-records-per-file", "100"]
    kill(moment, 5, "export_trajectories", flags)
    assert not (tmp_path / "windows" / window.folder / "manifest.json").exists()
    assert (
        export(EmbeddedWarehouse(folder), tmp_path / "windows", window, export_settings, max_records_per_file=100)
        == untouched
    )
    files = {path.name: path.read_bytes() for path in (tmp_path / "untouched" / window.folder).iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "windows" / window.folder).iterdir()} == files
