import fcntl
import threading
import time
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from beam_jobs.payloads import IngestCounts
from contracts.errors import OperationError
from contracts.event_segments import OPEN_SUFFIX, SEALED_SUFFIX, open_segments, seal, sealed_segments, segment_name
from contracts.policies import Movie
from contracts.records import Decision, encoder
from orchestration import ingestion, policy_store
from orchestration.places import Places
from tests.linear_policies import write_policy

START = datetime(2026, 1, 1, tzinfo=UTC)
D, K = 4, 5


def test_it_waits_for_the_writer_of_an_older_segment_and_not_of_a_younger_one(tmp_path):
    old, young = (tmp_path / (segment_name(START + timedelta(days=day), "predictor") + OPEN_SUFFIX) for day in (0, 2))
    with old.open("wb") as first, young.open("wb") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_EX)
        writer = threading.Timer(0.2, seal, [old])
        begin = time.monotonic()
        writer.start()
        ingestion.wait_until_sealed(tmp_path, START + timedelta(days=1))
        assert time.monotonic() - begin >= 0.15
        writer.join()
        assert (len(sealed_segments(tmp_path)), open_segments(tmp_path)) == (1, [young])


def test_a_segment_whose_writer_was_killed_is_sealed_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(ingestion, "SEAL_TIMEOUT_SECONDS", 0.0)
    (tmp_path / (segment_name(START, "predictor") + OPEN_SUFFIX)).write_bytes(b"{}\n")
    ingestion.wait_until_sealed(tmp_path, START + timedelta(days=1))
    assert len(sealed_segments(tmp_path)) == 1


def test_a_writer_that_does_not_seal_is_a_failed_operation(tmp_path, monkeypatch):
    monkeypatch.setattr(ingestion, "SEAL_TIMEOUT_SECONDS", 0.1)
    with (tmp_path / (segment_name(START, "predictor") + OPEN_SUFFIX)).open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OperationError, match=r"^the event log in .* was not sealed within 0.1 s$"):
            ingestion.wait_until_sealed(tmp_path, START + timedelta(days=1))


def test_it_does_not_return_before_the_moment(tmp_path):
    moment = datetime.now(UTC) + timedelta(seconds=0.2)
    ingestion.wait_until_sealed(tmp_path, moment)
    assert datetime.now(UTC) >= moment


def test_what_no_policy_could_be_trained_on_is_set_aside_before_there_is_a_champion_and_after(tmp_path):
    places = Places(tmp_path)
    places.events.mkdir()
    places.catalogue.write_bytes(msgspec.json.encode([Movie(action=k, movie_id=str(k)) for k in range(K)]))

    def log(second: int) -> None:
        """Three decisions: one that fits, one that is too short, one beyond the catalogue."""
        moment = START + timedelta(seconds=second)
        fits = Decision(
            decision_id="019b76da-a800-7000-8000-000000000000",
            decided_at=moment,
            policy_version="v",
            observation=[0.0] * D,
            action=K - 1,
            propensity=1.0,
        )
        short, beyond = (msgspec.structs.replace(fits, **change) for change in ({"observation": [0.0]}, {"action": K}))
        lines = encoder.encode_lines([fits, short, beyond])
        (places.events / f"{segment_name(moment, 'w')}{SEALED_SUFFIX}").write_bytes(lines)

    log(0)
    assert ingestion.ingest(places, D) == IngestCounts(events=3, decisions=1, dead_letters=2)
    write_policy(places.policies / "v1", num_actions=K - 1, observation_dim=D)  # the catalogue has grown since
    policy_store.roll_out(places.policies, "v1", "first", START)
    log(1)
    assert ingestion.ingest(places) == IngestCounts(events=3, decisions=1, dead_letters=2)
