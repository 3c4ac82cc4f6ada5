import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest

from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from contracts.event_segments import SEALED_SUFFIX, sealed_segments, segment_name
from contracts.records import UNREADABLE, event_decoder
from orchestration.loop import simulator
from orchestration.loop.settings import LoopSettings
from orchestration.loop.simulator import BadTransport, next_on_grid
from orchestration.loop.truth import InjectedFaults, TruthLog
from orchestration.processes import free_port

ID = "018f0000-0000-7000-8000-{:012x}"


def write_log(events: Path, count: int) -> list[bytes]:
    lines = []
    for number in range(count):
        if number % 2:
            line = {
                "kind": "reward",
                "decision_id": ID.format(number),
                "occurred_at": "2026-01-01T00:00:01Z",
                "reward": 4,
            }
        else:
            line = {"kind": "decision", "decision_id": ID.format(number), "decided_at": "2026-01-01T00:00:00Z"}
            line |= {"policy_version": "v", "observation": [1.0], "action": 1, "propensity": 0.5}
        lines.append(msgspec.json.encode(line))
    events.mkdir()
    path = events / (segment_name(datetime(2026, 1, 1, tzinfo=UTC), "predictor") + SEALED_SUFFIX)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return lines


def test_viewers_that_nobody_serves_say_so(tmp_path, capsys):
    endpoint = f"http://127.0.0.1:{free_port()}"
    flags = ["--events", str(tmp_path), "--truth", str(tmp_path / "truth"), "--windows", "1", "--num-actions", "2"]
    flags += ["--rank", "1", "--decisions-per-window", "1", "--window-seconds", "0.1"]
    assert simulator.main(["--endpoint", endpoint, *flags]) == 3
    error = capsys.readouterr().err
    assert f"{endpoint} answered no request: ConnectError" in error and error.count("\n") == 1
    assert simulator.main(["--endpoint", "127.0.0.1:80", *flags]) == 2
    assert "--endpoint: http://host:port expected, got '127.0.0.1:80'" in capsys.readouterr().err


def test_a_bad_transport_says_exactly_what_it_did(tmp_path):
    lines = write_log(tmp_path / "events", 2000)
    transport = BadTransport(tmp_path / "events", 0.1, np.random.default_rng(0))
    told = transport.strike()
    (added,) = [path for path in sealed_segments(tmp_path / "events") if simulator.FAULTY_WRITER in path.name]
    found: Counter[str] = Counter()
    for line in added.read_bytes().splitlines():
        try:
            event = event_decoder.decode(line)
        except UNREADABLE:
            found["malformed"] += 1
        else:
            assert line in lines
            found[type(event).__name__] += 1
    assert found == {
        "malformed": told.malformed,
        "Decision": told.redelivered_decisions,
        "RewardEvent": told.redelivered_rewards,
    }
    assert 60 < told.malformed < 140
    assert transport.strike() == InjectedFaults()  # its own segments and those seen before are left alone


def test_a_bad_transport_that_looked_in_time_can_do_without_the_segments(tmp_path):
    """A publisher removes them."""
    write_log(tmp_path / "events", 2000)
    transport = BadTransport(tmp_path / "events", 0.1, np.random.default_rng(0))
    transport.look()
    for segment in sealed_segments(tmp_path / "events"):
        segment.unlink()
    assert transport.strike().malformed > 60
    assert transport.strike() == InjectedFaults()


@pytest.mark.parametrize(
    "flags", [["--start", "2026-01-01T00:00:00"], ["--start", "2026-01-01T00:00:00Z", "--ratings", "/none"]]
)
def test_wrong_input_is_one_line(tmp_path, capsys, flags):
    paths = ["--endpoint", "http://127.0.0.1:9", "--events", str(tmp_path), "--truth", str(tmp_path / "t")]
    assert simulator.main([*paths, *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def small_movielens() -> MovieLens:
    return MovieLens.build(load_ratings("sample"), num_actions=5, rank=3, reward_noise=0.5, seed=0)


def test_viewers_without_a_predictor_write_down_their_failures(tmp_path):
    settings = LoopSettings(num_actions=5, rank=3, windows=1, window_seconds=0.2, decisions_per_window=40, fault_rate=0)
    truth = TruthLog(tmp_path / "truth" / "viewers.jsonl")
    endpoint = f"http://127.0.0.1:{free_port()}"
    viewers = simulator.Simulator(settings, small_movielens(), endpoint, tmp_path / "events", truth, session=0)
    asyncio.run(viewers.run(start=datetime.now(UTC).timestamp(), windows=1))
    truth.close()
    entries = [json.loads(line) for line in (tmp_path / "truth" / "viewers.jsonl").read_text().splitlines()]
    assert [entry[0] for entry in entries] == ["session", "failed", "failed"]
    assert sum(entry[2] for entry in entries[1:]) == 40


def test_the_first_window_is_on_the_grid_and_not_in_the_past():
    assert next_on_grid(100.0, 5.0, 100.0) == 100.0
    assert next_on_grid(100.0, 5.0, 101.0) == 105.0
    assert next_on_grid(100.0, 2.5, 111.0) == 112.5
    assert next_on_grid(100.0, 5.0, 90.0) == 100.0
