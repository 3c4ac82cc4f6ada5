"""The steps where policies serve on Vertex AI: store and endpoint move together, and the endpoint decides."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from contracts import policies
from contracts.errors import InputError, OperationError
from orchestration import gate, policy_store, probation
from orchestration.pipelines import canary, rollout_tasks, runs, training_tasks
from tests.orchestration.pipelines.environments import PASSED, UNDECIDED

pytestmark = pytest.mark.timeout(900)


def test_a_candidate_that_proves_itself_on_the_endpoint_is_promoted_there_and_in_the_store(environment):
    assert environment.split() == {"old": 100}
    rollout_tasks.register(environment.plan, "new", PASSED, environment.target)
    with environment.viewers(reward_of_new=4.0):
        assert environment.try_out(decisions=4000) == "promote"
        assert environment.split() == {"old": 50, "new": 50}
        assert environment.serving() == ("old", "new")
    environment.promote()
    assert environment.split() == {"new": 100}
    assert environment.serving() == ("new", None)
    last = policy_store.history(environment.places.policies)[-1]
    assert last.reason.startswith("better: gain +1; confirmed in the canary: not worse than the anchor by more than 0.")
    assert policy_store.champion(environment.places.policies).anchor is None
    shared = [change.pointer.shared_by for change in policy_store.pointers(environment.places.policies)]
    assert shared == ["ids", "traffic", "ids"]


def test_a_candidate_whose_reward_drops_on_the_endpoint_is_taken_back_and_stays_away(environment):
    rollout_tasks.register(environment.plan, "new", PASSED, environment.target)
    with environment.viewers(reward_of_new=1.0):
        assert environment.try_out(decisions=4000) == "withdraw"
    rollout_tasks.withdraw(environment.plan, "new", environment.target)
    assert environment.split() == {"old": 100}
    assert environment.serving() == ("old", None)
    assert len(environment.fake.predictors) == 1
    rollout_tasks.report_outcome(str(environment.root), "run", "retrain", environment.target, "SUCCEEDED", "")
    (report,) = runs.reports(environment.root)
    assert (report.outcome, report.version, report.exit_code) == ("rolled back", "new", 7)
    assert report.reason.startswith("worse in the canary: ")
    again = msgspec.json.decode(training_tasks.evaluate(environment.plan, "new", {}, ""), type=gate.GateResult)
    assert not again.promoted
    assert again.reason.startswith("rolled back before, by run: ")


def test_an_undecided_update_serves_on_probation_with_the_evidence_of_its_canary(environment):
    rollout_tasks.register(environment.plan, "new", PASSED, environment.target)
    with environment.viewers(reward_of_new=3.0):
        assert environment.try_out(decisions=20, margin=0.001) == "promote"
    before = canary.read(environment.root)
    assert before.look.outcome == "on probation" and before.look.decisions > 0
    environment.promote()
    assert environment.split() == {"new": 50, "old": 50}
    pointer = policy_store.champion(environment.places.policies)
    assert (pointer.version, pointer.anchor, pointer.anchor_share, pointer.shared_by) == ("new", "old", 0.5, "traffic")
    assert "; undecided in the canary: gain " in pointer.reason
    trial = probation.current_trial(environment.places)
    assert trial.evidence.sequence == before.evidence.sequence
    rollout_tasks.report_outcome(str(environment.root), "run", "retrain", environment.target, "SUCCEEDED", "")
    (report,) = runs.reports(environment.root)
    assert (report.outcome, report.exit_code) == ("on probation", 0)
    assert report.reason.endswith("; on probation beside old, which keeps 50%")
    # A later run that fails ends a canary, not the probation.
    rollout_tasks.report_outcome(str(environment.root), "later", "retrain", environment.target, "FAILED", "no quota")
    assert environment.split() == {"new": 50, "old": 50}


def test_another_setting_that_is_undecided_is_withdrawn_and_the_next_canary_goes_on(environment):
    rollout_tasks.register(environment.plan, "new", UNDECIDED, environment.target)
    found = []
    for _ in range(2):
        with environment.viewers(reward_of_new=3.0):
            assert environment.try_out(UNDECIDED, decisions=20, margin=0.001) == "withdraw"
        rollout_tasks.withdraw(environment.plan, "new", environment.target)
        assert environment.split() == {"old": 100}
        assert environment.serving() == ("old", None)
        found.append(canary.read(environment.root).look.decisions)
    assert 0 < found[0] < found[1]
    rollout_tasks.report_outcome(str(environment.root), "run", "retrain", environment.target, "SUCCEEDED", "")
    (report,) = runs.reports(environment.root)
    assert (report.outcome, report.exit_code) == ("undecided", 0)
    assert report.reason.startswith("undecided in the canary: gain ")
    assert "more decisions" in report.reason


def test_what_cannot_be_watched_serves_at_once_if_the_gate_lets_it(environment):
    card_path = environment.places.policies / "new" / policies.CARD_NAME
    card = msgspec.structs.replace(environment.new, trained_on=[])
    card_path.write_bytes(policies.encode_json(card))
    rollout_tasks.register(environment.plan, "new", PASSED, environment.target)
    assert environment.try_out(UNDECIDED) == "withdraw"
    assert environment.try_out() == "promote"
    assert environment.split() == {"old": 100}
    environment.promote()
    assert environment.split() == {"new": 100}
    reason = policy_store.history(environment.places.policies)[-1].reason
    assert reason.endswith("; no probation: new: must have been trained on a window to be watched, got none")


def test_a_failure_in_the_canary_gives_everything_back_to_the_champion(environment):
    rollout_tasks.register(environment.plan, "new", PASSED, environment.target)
    environment.endpoint.canary("new", 0.5)
    canary.start(environment.places.policies, "new", 0.5)
    rollout_tasks.report_outcome(
        str(environment.root), "run", "retrain", environment.target, "FAILED", "the worker was lost"
    )
    assert environment.split() == {"old": 100}
    assert environment.serving() == ("old", None)
    (report,) = runs.reports(environment.root)
    assert (report.outcome, report.reason) == ("failed", "after the step register: the worker was lost")


def test_a_canary_that_the_store_does_not_know_of_is_ended_too(environment):
    """The endpoint changes first: if the process dies between the two, only the endpoint has a canary."""
    rollout_tasks.register(environment.plan, "new", PASSED, environment.target)
    environment.endpoint.canary("new", 0.5)
    rollout_tasks.report_outcome(
        str(environment.root), "run", "retrain", environment.target, "FAILED", "the worker was lost"
    )
    assert environment.split() == {"old": 100}
    assert len(environment.fake.predictors) == 1


def test_a_bootstrap_that_fails_has_no_canary_to_end(environment, tmp_path):
    rollout_tasks.report_outcome(str(tmp_path / "new"), "run", "bootstrap", environment.target, "FAILED", "no quota")
    (report,) = runs.reports(tmp_path / "new")
    assert (report.outcome, report.reason) == ("failed", "before the first step: no quota")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"does not answer: <urlopen error \[Errno 111\] Connection refused>"),
        (b"<html>", r"is not a predictor: its /health answers '<html>'"),
        (b'{"status": "fine"}', r"is not a predictor: its /health answers '\{\"status\": \"fine\"\}'"),
    ],
)
def test_an_endpoint_that_is_gone_or_none_is_told_before_anything_changes(environment, answer, message):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        if answer is None:
            server.server_close()
        else:
            threading.Thread(target=server.serve_forever).start()
        with pytest.raises(OperationError if answer is None else InputError, match=f"^endpoint: {endpoint} {message}$"):
            environment.promote(endpoint=endpoint, vertex="")
        if answer is not None:
            server.shutdown()
    assert environment.serving() == ("old", None)


def test_a_failing_promotion_on_the_endpoint_leaves_the_store_as_it_was(environment):
    with pytest.raises(ValueError, match="has no version 'new': register it first"):
        environment.promote()
    assert environment.serving() == ("old", None)
    assert environment.split() == {"old": 100}
    assert runs.records(environment.root, "run")[-1].error.startswith("InputError: model recommender has no version")
