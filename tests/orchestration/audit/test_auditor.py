"""Audits of real windows: a small loop in simulated time, whose rows a sabotage changes on their way to the tables."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import warehouse
from beam_jobs.movielens import MovieLens
from beam_jobs.ratings import load_ratings
from beam_jobs.tables import record_batch, record_schema
from beam_jobs.warehouses import open_warehouse
from bench.simulated_loop import SETTINGS, Rows, Sabotages, SimulatedLoop
from contracts.errors import InputError
from contracts.records import Interaction, RewardEvent
from contracts.schemas import REWARDS
from orchestration import policy_store
from orchestration.audit import auditor, guard, window_audits
from orchestration.audit.settings import GuardSettings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ARMS, DECISIONS, CLEAN = 10, 800, 4


@pytest.fixture(scope="module")
def viewers() -> MovieLens:
    return MovieLens.build(load_ratings("sample"), num_actions=ARMS, rank=5, reward_noise=0.5, seed=0)


def test_contradictions_hold_at_once_and_nothing_bad_is_trained_on(viewers: MovieLens, tmp_path: Path) -> None:
    loop = SimulatedLoop(tmp_path, viewers, seed=1, decisions=DECISIONS)
    clean = [loop.window() for _ in range(CLEAN)]
    assert [one.audit.alarms for one in clean] == [[]] * CLEAN
    champion = policy_store.champion(tmp_path / "policies")
    versions = policy_store.versions(tmp_path / "policies")
    bad = loop.window(Sabotages(CLEAN, versions, ARMS).by_name["propensities halved"])
    assert "replayed propensity" in [finding.check for finding in bad.audit.alarms]
    assert bad.held and bad.audit.examination is None
    assert policy_store.champion(tmp_path / "policies") == champion
    again = loop.window()  # right again, but held until a person looks
    assert again.held and again.audit.accepted
    assert policy_store.champion(tmp_path / "policies") == champion
    guard.release(loop.places, "the feed is repaired", datetime.now(UTC))
    released = loop.window()
    assert not released.held
    trained = {one.window.start for one in _card(tmp_path).trained_on}
    assert bad.audit.window.start not in trained and again.audit.window.start in trained


def test_a_break_is_examined_and_may_be_accepted(viewers: MovieLens, tmp_path: Path) -> None:
    loop = SimulatedLoop(tmp_path, viewers, seed=2, decisions=DECISIONS)
    for _ in range(CLEAN):
        assert not loop.window().held
    by_name = Sabotages(CLEAN, [], ARMS).by_name
    flipped, noise = loop.window(by_name["rewards flipped"]), loop.window(by_name["rewards permuted"])
    assert (flipped.audit.examination, noise.audit.examination) == ("consistent", "noise")
    assert flipped.held and not flipped.audit.accepted
    accepted = guard.accept(loop.places, flipped.audit.window, "the scale was turned around", datetime.now(UTC))
    assert accepted.accepted and guard.is_held(tmp_path)
    assert guard.refused_windows(loop.places) == [noise.audit.window.start]
    with pytest.raises(InputError, match="a refused window expected"):
        guard.accept(loop.places, flipped.audit.window, "twice", datetime.now(UTC))


def test_rewards_before_their_decisions_are_a_contradiction(viewers: MovieLens, tmp_path: Path) -> None:
    loop = SimulatedLoop(tmp_path, viewers, seed=4, decisions=DECISIONS)
    for _ in range(CLEAN):
        assert loop.window().audit.evidence.early_rewards == 0
    early = loop.window(lambda rows, _, __: rows._replace(occurred_at=rows.decided_at - 100_000))
    assert early.audit.evidence.early_rewards > 0.9 * DECISIONS
    assert "rewards before decisions" in [finding.check for finding in early.audit.alarms]


def test_an_audit_is_made_once(viewers: MovieLens, tmp_path: Path) -> None:
    loop = SimulatedLoop(tmp_path, viewers, seed=3, decisions=100)
    served = loop.window()
    [kept] = window_audits.read_all(loop.places.audit)
    assert kept == served.audit == window_audits.read(loop.places.audit, served.audit.window)


def test_a_revision_is_audited_with_the_rows_that_came_late(viewers: MovieLens, tmp_path: Path) -> None:
    """The first export lacks the rewards of half of the arms, which come later."""
    loop = SimulatedLoop(tmp_path, viewers, seed=5, decisions=DECISIONS)
    for _ in range(CLEAN):
        assert not loop.window().held
    late: list[RewardEvent] = []

    def half_late(rows: Rows, _: int, __: np.random.Generator) -> Rows:
        comes = rows.answered & (rows.action % 2 == 1)
        late.extend(
            RewardEvent(
                decision_id=str(rows.decision_id[row]),
                occurred_at=EPOCH + timedelta(microseconds=int(rows.occurred_at[row])),
                reward=float(rows.reward[row]),
            )
            for row in np.flatnonzero(comes)
        )
        return rows._replace(answered=rows.answered & ~comes)

    first = loop.window(half_late)
    assert first.held and "reward rate by action" in [finding.check for finding in first.audit.alarms]
    warehouse.write(loop.places.warehouse, REWARDS, "late", record_batch(REWARDS, late))
    source = open_warehouse(str(loop.places.warehouse), PipelineOptions([]))
    made = auditor.Auditor(source, loop.places.policies, loop.places.audit, SETTINGS)
    watch = guard.Guard(loop.places, made, GuardSettings())
    window = first.audit.window
    assert watch.check(window, datetime.now(UTC)) == first.audit  # the same revision is audited once
    again = watch.check(window, datetime.now(UTC), revision=1)
    assert again.accepted and again.revision == 1 and not again.alarms
    assert again.evidence.rewarded > first.audit.evidence.rewarded
    assert window_audits.read(loop.places.audit, window) == again
    assert guard.refused_windows(loop.places) == []
    assert watch.check(window, datetime.now(UTC)) == again


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_rewards_are_noise(count: int) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        {
            "decision_id": f"01a203f8-50ba-7b45-b47d-{number:012x}",
            "decided_at": start,
            "policy_version": "v",
            "observation": [1.0],
            "candidates": [],
            "action": 0,
            "propensity": 1.0,
            "reward": 1.0,
            "rewarded_at": start + timedelta(seconds=1),
            "defaulted": False,
        }
        for number in range(count)
    ]
    assert auditor.examine(pa.RecordBatch.from_pylist(rows, record_schema(Interaction)), 0.1) == "noise"


def _card(root: Path):  # type: ignore[no-untyped-def]
    from predictor import policy

    champion = policy_store.champion(root / "policies")
    assert champion is not None
    return policy.read_card(root / "policies" / champion.version)
