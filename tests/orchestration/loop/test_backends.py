from datetime import UTC, datetime, timedelta

from beam_jobs import warehouse
from beam_jobs.payloads import ANY_SHAPE
from contracts import schemas
from contracts.event_segments import OPEN_SUFFIX, segment_name
from contracts.records import Decision, encoder
from orchestration.loop import backends
from orchestration.loop.run_folder import RunFolder

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_what_a_killed_predictor_left_is_ingested_and_not_waited_for(tmp_path):
    folder = RunFolder(tmp_path)
    folder.events.mkdir()
    decision = Decision(
        decision_id="018f0000-0000-7000-8000-000000000001",
        decided_at=START,
        policy_version="v",
        observation=[1.0],
        action=0,
        propensity=1.0,
    )
    whole = encoder.encode(decision)
    (folder.events / (segment_name(START, "predictor") + OPEN_SUFFIX)).write_bytes(whole + b"\n" + whole[:40])

    day = timedelta(days=1)
    mark = backends.EmbeddedBackend(folder, ANY_SHAPE).advance(START + day)
    assert mark.complete_until > START + day
    decisions = warehouse.read(folder.warehouse, schemas.DECISIONS, START, START + day).rows
    assert decisions["decision_id"].to_pylist() == [decision.decision_id]
