from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from beam_jobs.warehouses import EmbeddedWarehouse
from contracts.windows import TrainingWindow
from orchestration import ingestion, policy_store
from orchestration.audit import guard
from orchestration.learning import Learning, timed
from predictor import policy as serving
from tests.orchestration.project.projects import BEST, WINDOW_SECONDS, make, past, traffic


def taken(folder, start, **how):
    """A window of traffic, ingested, exported and audited."""
    traffic(folder, start, **how)
    ingestion.ingest(folder)
    window = TrainingWindow(start, start + timedelta(seconds=WINDOW_SECONDS))
    learning = Learning(folder, EmbeddedWarehouse(folder.warehouse), folder.recipe())
    learning.export([window])
    return learning, window


def test_windows_become_policies_that_serve_until_the_guard_holds(tmp_path):
    folder = make(tmp_path / "shop")
    start = past(60)
    learning, window = taken(folder, start)
    assert [audit.accepted for audit in learning.audit({window: 0})] == [True]
    assert learning.watch([window]) == [None]  # nothing is on probation
    first = learning.learn()
    assert first.gate.promoted, first.gate.reason
    assert policy_store.champion(folder.policies).version == first.candidate == first.card.version
    policy = serving.load(folder.policies / first.candidate)
    for who, best in BEST.items():
        observation = policy.encoder.encode({"who": who})
        [mean], _ = policy.scores(np.array([observation], np.float32))
        assert policy.card.catalogue[mean.argmax()].item_id == best
    again = learning.learn()
    assert (again.candidate, again.gate.promoted, again.card) == (first.candidate, False, None)
    assert again.gate.reason == "nothing new to train on"

    learning, window = taken(folder, start + timedelta(seconds=WINDOW_SECONDS))
    assert all(audit.accepted for audit in learning.audit({window: 0}))
    guard.hold(folder, "a look", datetime.now(UTC))
    held = learning.learn()
    assert (held.candidate, held.gate.promoted) == (first.candidate, False)
    assert held.gate.reason.startswith("held since ")
    guard.release(folder, "seen", datetime.now(UTC))
    second = learning.learn()
    assert second.card.parent == first.candidate


def test_without_records_there_is_nothing_to_learn(tmp_path):
    folder = make(tmp_path / "shop")
    learned = Learning(folder, EmbeddedWarehouse(folder.warehouse), folder.recipe()).learn()
    assert (learned.gate.promoted, learned.gate.reason) == (False, "no interactions to train on yet")


def test_a_block_is_timed():
    with timed() as seconds:
        assert seconds == [0.0]
    assert seconds[0] > 0


def test_an_error_leaves_what_serves_alone(tmp_path):
    folder = make(tmp_path / "shop")
    learning, window = taken(folder, past(60), count=50)
    learning.audit({window: 0})
    before = policy_store.champion(folder.policies)
    (folder.windows / window.folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="manifest"):
        learning.learn()
    assert policy_store.champion(folder.policies) == before
