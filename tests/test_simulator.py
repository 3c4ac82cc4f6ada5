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
from orchestration import simulator
from orchestration.processes import free_port
from orchestration.settings import LoopSettings
from orchestration.simulator import BadTransport
from orchestration.truth import InjectedFaults, ServedDecision, TruthLog, TruthReader

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


def test_the_truth_survives_a_torn_line_and_is_read_once(tmp_path):
    log = TruthLog(tmp_path / "viewers.jsonl")
    served = ServedDecision("id", "v", 1, 2, 0.5, 3.0, 4.0, 1.5)
    reader = TruthReader(tmp_path)
    log.append([served])
    assert reader.read() == [served]
    with (tmp_path / "viewers.jsonl").open("ab") as file:
        file.write(b'["served","id2"')
    assert reader.read() == []
    assert TruthReader(tmp_path).read() == [served]
    log.close()


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


def test_arm_features_are_of_the_movies_that_are_offered_and_change_no_reward():
    plain = LoopSettings(num_actions=5, rank=3)
    featured = msgspec.structs.replace(plain, arm_features="hybrid")
    before, after = simulator.load_movielens(plain), simulator.load_movielens(featured)
    assert [len(movie.features) for movie in before.catalogue] == [0] * 5
    assert [len(movie.features) for movie in after.catalogue] == [3] * 5
    assert [movie.movie_id for movie in after.catalogue] == [movie.movie_id for movie in before.catalogue]
    assert np.array_equal(before.expected_reward_matrix, after.expected_reward_matrix)
    assert len({tuple(movie.features) for movie in after.catalogue}) == 5
