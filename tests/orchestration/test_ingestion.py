import fcntl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from beam_jobs import warehouse
from beam_jobs.payloads import IngestCounts
from beam_jobs.warehouses import EmbeddedWarehouse
from contracts.event_segments import (
    OPEN_SUFFIX,
    SEALED_SUFFIX,
    open_segments,
    seal,
    sealed_segments,
    segment_name,
    stem,
)
from contracts.items import Item
from contracts.records import Decision, encoder
from contracts.watermarks import Watermark
from orchestration import ingestion, policy_store
from orchestration.places import Places
from tests.linear_policies import write_policy

START = datetime(2026, 1, 1, tzinfo=UTC)
D, K = 4, 5


def advance(folder: Path, moment: datetime) -> tuple[Watermark, list[int]]:
    """The watermark, and how many segments were sealed at each call of the ingestion."""
    calls: list[int] = []
    warehouse.create(folder / "warehouse")
    source = EmbeddedWarehouse(folder / "warehouse")

    def ingest() -> None:
        calls.append(len(sealed_segments(folder)))
        for segment in sealed_segments(folder):
            source.note_ingested(stem(segment.name), IngestCounts())

    return ingestion.advance(folder, source, moment, ingest), calls


def test_it_waits_for_the_writer_of_an_older_segment_and_not_of_a_younger_one(tmp_path):
    old, young = (tmp_path / (segment_name(START + timedelta(days=day), "predictor") + OPEN_SUFFIX) for day in (0, 2))
    moment = START + timedelta(days=1)
    with old.open("wb") as first, young.open("wb") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_EX)
        mark, calls = advance(tmp_path, moment)
        assert (mark.complete_until, calls) == (START, [])
        seal(old)
        mark, calls = advance(tmp_path, moment)
        assert (mark.complete_until, calls) == (START + timedelta(days=2), [1])
        assert open_segments(tmp_path) == [young]


def test_a_segment_whose_writer_was_killed_is_sealed_at_once(tmp_path):
    (tmp_path / (segment_name(START, "predictor") + OPEN_SUFFIX)).write_bytes(b"{}\n")
    mark, calls = advance(tmp_path, START + timedelta(days=1))
    assert calls == [1]
    assert mark.held_by == "" and mark.complete_until > START + timedelta(days=1)


def test_what_no_policy_could_be_trained_on_is_set_aside_before_there_is_a_champion_and_after(tmp_path):
    places = Places(tmp_path)
    places.events.mkdir()
    places.catalogue.write_bytes(msgspec.json.encode([Item(action=k, item_id=str(k)) for k in range(K)]))

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
    log(1)  # the context may change, so any length is stored where none is demanded
    assert ingestion.ingest(places) == IngestCounts(events=3, decisions=2, dead_letters=1)
