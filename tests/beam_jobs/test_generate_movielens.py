import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import pytest

from beam_jobs import generate_movielens
from beam_jobs.generate_movielens import GeneratorSettings, generate, simulate_shard
from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from contracts.errors import InputError
from contracts.event_segments import sealed_segments
from contracts.items import Item
from contracts.records import Decision, RewardEvent, event_decoder, utc_microseconds

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def viewers() -> MovieLens:
    return MovieLens.build(load_ratings("sample"), num_actions=10, rank=4, reward_noise=0.5, seed=0)


def events_in(folder: Path) -> tuple[list[Decision], list[RewardEvent]]:
    events = [event_decoder.decode(line) for path in sealed_segments(folder) for line in path.read_bytes().splitlines()]
    return [e for e in events if isinstance(e, Decision)], [e for e in events if isinstance(e, RewardEvent)]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_each_decision_once_as_the_contract_says(tmp_path: Path, viewers: MovieLens) -> None:
    settings = GeneratorSettings(num_decisions=2500, start=START, window_seconds=5, decisions_per_shard=1000)
    generate(viewers, settings, tmp_path / "events")
    decisions, rewards = events_in(tmp_path / "events")
    assert len(sealed_segments(tmp_path / "events")) == 3
    assert len(list((tmp_path / "events").iterdir())) == 3  # nothing half-done is left
    assert len({d.decision_id for d in decisions}) == len(decisions) == 2500
    assert {(d.policy_version, d.propensity) for d in decisions} == {("uniform", 0.1)}
    moments = [utc_microseconds(d.decided_at) - utc_microseconds(START) for d in decisions]
    assert sorted(moments) == [index * 2000 for index in range(2500)]
    # The time part of a UUIDv7 is its milliseconds.
    assert all(
        int(d.decision_id.replace("-", "")[:12], 16) == utc_microseconds(d.decided_at) // 1000 for d in decisions
    )
    assert 0.02 < 1 - len(rewards) / len(decisions) < 0.08
    by_id = {d.decision_id: d for d in decisions}
    users = {str(user_id): index for index, user_id in enumerate(viewers.user_ids)}
    noise = []
    for reward in rewards:
        decision = by_id.pop(reward.decision_id)
        assert 0 <= (reward.occurred_at - decision.decided_at).total_seconds() <= 0.5
        user = users[decision.user_id or ""]
        assert (np.array(decision.observation, np.float32) == viewers.observations[user]).all()
        noise.append(reward.reward - viewers.expected_reward_matrix[user, decision.action])
    assert abs(np.mean(noise)) < 0.05
    assert np.std(noise) == pytest.approx(0.5, rel=0.05)
    assert np.bincount([d.action for d in decisions]).min() > 180


def test_a_movie_that_is_masked_is_not_in_the_log_and_the_others_say_so(tmp_path: Path, viewers: MovieLens) -> None:
    settings = GeneratorSettings(num_decisions=500, start=START)
    generate(viewers.masking([0, 7]), settings, tmp_path / "events")
    decisions, _ = events_in(tmp_path / "events")
    offered = [1, 2, 3, 4, 5, 6, 8, 9]
    assert {decision.action for decision in decisions} == set(offered)
    assert {(decision.propensity, tuple(decision.candidates)) for decision in decisions} == {(1 / 8, tuple(offered))}


def test_a_rerun_leaves_the_same_bytes_and_another_seed_others(tmp_path: Path, viewers: MovieLens) -> None:
    settings = GeneratorSettings(num_decisions=300, start=START, decisions_per_shard=100, seed=5)
    generate(viewers, settings, tmp_path)
    first = digests(tmp_path)
    generate(viewers, settings, tmp_path)
    assert digests(tmp_path) == first
    generate(viewers, GeneratorSettings(num_decisions=300, start=START, decisions_per_shard=100, seed=6), tmp_path)
    assert digests(tmp_path).keys() == first.keys()
    assert not set(digests(tmp_path).values()) & set(first.values())


def test_the_truth_can_be_simulated_again(tmp_path: Path, viewers: MovieLens) -> None:
    settings = GeneratorSettings(num_decisions=150, start=START, decisions_per_shard=100)
    generate(viewers, settings, tmp_path)
    decisions, rewards = events_in(tmp_path)
    again = [simulate_shard(viewers, settings, shard) for shard in range(settings.num_shards)]
    ids = np.concatenate([shard.decision_id for shard in again]).astype(str).tolist()
    assert ids == [d.decision_id for d in decisions]
    assert np.concatenate([shard.action for shard in again]).tolist() == [d.action for d in decisions]
    answered = np.concatenate([shard.answered for shard in again])
    assert np.concatenate([shard.reward for shard in again])[answered].tolist() == [r.reward for r in rewards]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--num-decisions", "20", "--num_actions", "5", "--rank", "2", "--start", "2026-01-01T02:00:00+02:00"]
    flags += ["--events", str(tmp_path / "events"), "--catalogue", str(tmp_path / "to" / "catalogue.json")]
    assert generate_movielens.main(flags) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'events'}: 20 decisions, segments written: 1\n"
    assert [path.name for path in sealed_segments(tmp_path / "events")] == [
        "20260101T000000.000000Z-generate_movielens-000000.jsonl"
    ]
    catalogue = msgspec.json.decode((tmp_path / "to" / "catalogue.json").read_bytes(), type=list[Item])
    assert [movie.action for movie in catalogue] == list(range(5))


def test_decisions_in_another_world(tmp_path: Path) -> None:
    flags = ["--num-decisions", "200", "--num-actions", "5", "--rank", "2", "--start", "2026-01-01T00:00:00Z"]
    assert generate_movielens.main([*flags, "--world", "like", "--events", str(tmp_path / "like")]) == 0
    assert {reward.reward for reward in events_in(tmp_path / "like")[1]} == {0.0, 1.0}
    assert generate_movielens.main([*flags, "--world", "second_half", "--events", str(tmp_path / "halves")]) == 0
    decisions, _ = events_in(tmp_path / "halves")
    assert {np.array(decision.observation).tolist()[0] for decision in decisions} == {1.0}  # its constant


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--world", "flat"], "argument --world: invalid choice: 'flat'"),
        (
            ["--start", "2026-01-01"],
            "argument --start: expected: a time with its time zone, such as .*, got '2026-01-01'",
        ),
        (["--num-decisions", "0"], "argument --num-decisions: a whole number from 1 expected, got '0'"),
        (["--no-reward-probability", "1.5"], "a number from 0 to 1 expected, got '1.5'"),
        (["--window-seconds", "nan"], "a number above 0 expected, got 'nan'"),
        (["--window-seconds", "1e300"], "--window-seconds: no such end"),
        (["--num-actions", "10000"], r"--num-actions must be from 1 to 9066 \(the movies rated\), got 10000"),
        (["--ratings", "nowhere"], "--ratings: 'nowhere' does not exist"),
        (["--num-decision", "7"], "unrecognized argument: --num-decision"),
        (["--events", "FILE"], "--events: a folder expected, got the file"),
        ([], "the following arguments are required: --start"),
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    flags = [str(tmp_path / "file") if flag == "FILE" else flag for flag in flags]
    start = [] if "--start" in flags or not flags else ["--start", "2026-01-01T00:00:00Z"]
    assert generate_movielens.main(["--events", str(tmp_path / "events"), *start, *flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("beam_jobs.generate_movielens: error: ")
    assert re.search(message, line)
    assert not (tmp_path / "events").exists()


def test_settings_refuse_a_start_without_time_zone() -> None:
    with pytest.raises(InputError, match="--start must carry a time zone"):
        GeneratorSettings(num_decisions=1, start=datetime(2026, 1, 1))  # noqa: DTZ001
