"""Shares of decisions against the history of the pointer, with ids as the predictor makes them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from beam_jobs.tables import record_schema
from contracts.policies import Champion
from contracts.records import Interaction
from orchestration import policy_store
from orchestration.audit import shares
from orchestration.audit.evidence import ShareEvidence
from predictor.deciding import new_decision_ids
from predictor.line_up import takes

START = datetime(2026, 1, 1, tzinfo=UTC)
COUNT = 400


def pointer(version: str, **beside: object) -> Champion:
    return Champion(version=version, previous=None, promoted_at=START, reason="test", **beside)  # type: ignore[arg-type]


def rows(begin: datetime, versions: list[str], ids: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [
            {
                "decision_id": one,
                "decided_at": begin + timedelta(milliseconds=number),
                "policy_version": version,
                "observation": [1.0],
                "candidates": [],
                "action": 0,
                "propensity": 1.0,
                "reward": 1.0,
                "rewarded_at": None,
                "defaulted": True,
            }
            for number, (one, version) in enumerate(zip(ids, versions, strict=True))
        ],
        record_schema(Interaction),
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """v2 serves with 30% for its anchor v1; after ten minutes v3 with 30% for v2."""
    policy_store.set_pointer(tmp_path, pointer("v1"), START)
    for minutes, version, anchor in ((1, "v2", "v1"), (10, "v3", "v2")):
        changed = pointer(version, mode="probation", anchor=anchor, anchor_share=0.3)
        policy_store.set_pointer(tmp_path, changed, START + timedelta(minutes=minutes))
    return tmp_path


def decided(begin: datetime, serving: str, anchor: str) -> tuple[list[str], list[str]]:
    ids = new_decision_ids(round(begin.timestamp() * 1e3), COUNT)
    return np.where(takes("anchor", 0.3, ids), anchor, serving).tolist(), ids


def test_decisions_as_the_pointer_says(store: Path) -> None:
    begin = START + timedelta(minutes=5)
    versions, ids = decided(begin, "v2", "v1")
    found = shares.count(rows(begin, versions, ids), shares.periods(store)).shares
    expected = ShareEvidence(decisions=COUNT, taken=versions.count("v1"), expected=0.3 * COUNT, compared=COUNT)
    assert found == {"anchor v1 beside v2": expected}


def test_versions_that_are_mixed_up_are_counted(store: Path) -> None:
    begin = START + timedelta(minutes=5)
    versions, ids = decided(begin, "v1", "v2")
    [own] = shares.count(rows(begin, versions, ids), shares.periods(store)).shares.values()
    assert own.wrong_beside + own.wrong_serving == COUNT and min(own.wrong_beside, own.wrong_serving) > 0


def test_where_an_endpoint_splits_the_traffic_the_ids_say_nothing(store: Path) -> None:
    changed = pointer("v3", mode="probation", anchor="v2", anchor_share=0.3, shared_by="traffic")
    policy_store.set_pointer(store, changed, START + timedelta(minutes=20))
    begin = START + timedelta(minutes=25)
    versions, ids = decided(begin, "v2", "v3")
    assert shares.count(rows(begin, versions, ids), shares.periods(store)).shares == {}


def test_a_server_may_follow_the_pointer_late(store: Path) -> None:
    begin = START + timedelta(minutes=10, seconds=30)
    versions, ids = decided(begin, "v2", "v1")
    [own] = shares.count(rows(begin, versions, ids), shares.periods(store)).shares.values()
    assert (own.compared, own.wrong_beside, own.wrong_serving) == (COUNT, 0, 0)
    later = START + timedelta(minutes=15)
    versions, ids = decided(later, "v2", "v1")
    [own] = shares.count(rows(later, versions, ids), shares.periods(store)).shares.values()
    assert own.compared == versions.count("v2") and own.wrong_beside > 0


def test_parts_add_up(store: Path) -> None:
    begin = START + timedelta(minutes=5)
    versions, ids = decided(begin, "v2", "v1")
    known = shares.periods(store)
    whole = rows(begin, versions, ids)
    parts = shares.count(whole.slice(0, 100), known).merge(shares.count(whole.slice(100), known))
    assert parts.shares["anchor v1 beside v2"].taken == shares.count(whole, known).shares["anchor v1 beside v2"].taken


def test_without_a_history_nothing_is_shared(tmp_path: Path) -> None:
    assert shares.periods(tmp_path) == []
    assert shares.count(rows(START, [], []), []).shares == {}
