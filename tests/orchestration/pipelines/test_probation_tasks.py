"""Probation as runs of the pipelines take it on, in the store and on the local Vertex AI."""

import msgspec
import pytest

from beam_jobs import export_trajectories
from orchestration import policy_store, probation
from orchestration.audit import guard
from orchestration.pipelines import probation_tasks, rollout_tasks, runs
from orchestration.pipelines.plan import Plan, WindowGrid
from tests.orchestration.pipelines.environments import PASSED
from tests.orchestration.test_probation import SETTINGS, Shop, now, window

pytestmark = pytest.mark.timeout(900)


def plan_of(shop: Shop, run_id: str) -> str:
    settings = WindowGrid(reward_window_seconds=2.0, missing_reward="drop")
    plan = Plan(root=str(shop.places.root), run_id=run_id, champion=shop.pointer.version, windows=[], settings=settings)
    return msgspec.json.encode(plan).decode()


def served(shop: Shop, number: int) -> None:
    """A window of the log, exported."""
    shop.serve(number)
    export_trajectories.export(shop.source.warehouse, shop.places.windows, window(number), SETTINGS)


def outcome(shop: Shop, run_id: str) -> runs.RunReport:
    return runs.close(shop.places.root, run_id, "retrain", "SUCCEEDED", "", now(9))


def test_runs_go_on_with_the_evidence_until_a_worse_version_is_rolled_back(tmp_path):
    shop = Shop(tmp_path)
    served(shop, 0)
    assert probation_tasks.watch(plan_of(shop, "before"), "exported", "", "") == "exported"
    assert runs.records(tmp_path, "before")[-1].said == "nothing is on probation"
    shop.enter(shop.add("worse", 0, times=-1.0), 0)
    shop.serve(1, count=12)  # too few for a verdict
    export_trajectories.export(shop.source.warehouse, shop.places.windows, window(1), SETTINGS)
    assert probation_tasks.watch(plan_of(shop, "first"), "held", "", "") == "held"
    assert probation.history(tmp_path) == []
    assert probation_tasks.watch(plan_of(shop, "first"), "exported", "", "") == "exported"
    assert runs.records(tmp_path, "first")[-1].said.startswith("worse on probation: gain -")
    assert shop.pointer.anchor == "first"
    before = probation.current_trial(shop.places)
    served(shop, 2)
    plan = plan_of(shop, "second")
    assert probation_tasks.watch(plan, "exported", "", "") == "rolled back"
    first, last = probation.history(tmp_path)
    assert first == before.look and last.decisions > first.decisions
    assert (shop.pointer.version, shop.pointer.rolled_back, shop.pointer.anchor) == ("first", "worse", None)
    report = outcome(shop, "second")
    assert (report.outcome, report.version, report.exit_code) == ("rolled back", "worse", 7)
    assert "earns less than the anchor: gain -" in report.reason
    assert probation_tasks.watch(plan, "exported", "", "") == "exported"  # again: nothing is on probation


def test_a_window_that_the_guard_refused_says_nothing(tmp_path):
    shop = Shop(tmp_path)
    served(shop, 0)
    shop.enter(shop.add("worse", 0, times=-1.0), 0)
    served(shop, 1)
    guard.set_aside(shop.places, [window(1)], "test")
    assert probation_tasks.watch(plan_of(shop, "r"), "exported", "", "") == "exported"
    assert probation.history(tmp_path) == []


def test_a_confirmed_version_serves_alone_and_training_goes_on(tmp_path):
    shop = Shop(tmp_path)
    served(shop, 0)
    shop.enter(shop.add("same", 0), 0)
    number = 0
    while shop.pointer.anchor is not None and number < 8:
        number += 1
        served(shop, number)
        assert probation_tasks.watch(plan_of(shop, f"r{number}"), "exported", "", "") == "exported"
    assert (shop.pointer.version, shop.pointer.mode) == ("same", "canary")
    record = runs.records(tmp_path, f"r{number}")[-1]
    assert record.said.startswith("same confirmed: not worse than the anchor by more than")
    assert record.outcome is None


@pytest.mark.parametrize(
    ("outcome", "split", "serving"), [("confirmed", {"new": 100}, "new"), ("rolled back", {"old": 100}, "old")]
)
def test_a_verdict_moves_the_endpoint_before_the_store(environment, outcome, split, serving):
    rollout_tasks.register(environment.plan, "new", PASSED, environment.target)
    environment.promote()
    assert environment.split() == {"new": 50, "old": 50}
    assert probation_tasks.beside(environment.places) == ("old", 0.5)
    trial = probation_tasks.settle(environment.places, environment.target)
    assert trial.look.outcome == "on probation"
    assert environment.split() == {"new": 50, "old": 50}
    look = msgspec.structs.replace(trial.look, outcome=outcome, reason="as the test says")
    decided = msgspec.structs.replace(trial, look=look)
    path = environment.root / probation.STATE_NAME
    path.write_bytes(msgspec.json.encode(decided))
    # A run that died before it could move anything: the next one does, and doing it again changes nothing.
    for _ in range(2):
        probation_tasks.settle(environment.places, environment.target)
        assert environment.split() == split
        assert environment.serving() == (serving, None)
        assert probation_tasks.beside(environment.places) is None
        assert environment.endpoint.champion() == serving
    reasons = [past.reason for past in policy_store.history(environment.places.policies)]
    assert ("probation: as the test says" in reasons) == (outcome == "rolled back")
