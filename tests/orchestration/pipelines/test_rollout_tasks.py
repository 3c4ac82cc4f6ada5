"""The steps where policies serve on Vertex AI: store and endpoint move together, and the endpoint decides."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from contracts.errors import InputError, OperationError
from orchestration import gate, policy_store
from orchestration.pipelines import canary, rollout_tasks, runs, training_tasks
from tests.orchestration.pipelines.environments import PASSED

pytestmark = pytest.mark.timeout(900)


def test_a_candidate_that_proves_itself_on_the_endpoint_is_promoted_there_and_in_the_store(environment):
    assert environment.split() == {"old": 100}
    rollout_tasks.register(environment.plan, "new", PASSED, environment.target)
    with environment.viewers(reward_of_new=3.0):
        assert environment.try_out() == "promote"
        assert environment.split() == {"old": 50, "new": 50}
        assert environment.serving() == ("old", "new")
    rollout_tasks.promote(environment.plan, "new", PASSED, "", environment.target)
    assert environment.split() == {"new": 100}
    assert environment.serving() == ("new", None)
    reason = policy_store.history(environment.places.policies)[-1].reason
    assert reason.startswith("better: gain +1; not worse in the canary: gain ")


def test_a_candidate_whose_reward_drops_on_the_endpoint_is_taken_back_and_stays_away(environment):
    rollout_tasks.register(environment.plan, "new", PASSED, environment.target)
    with environment.viewers(reward_of_new=1.0):
        assert environment.try_out() == "roll back"
    rollout_tasks.withdraw(environment.plan, "new", environment.target)
    assert environment.split() == {"old": 100}
    assert environment.serving() == ("old", None)
    assert len(environment.fake.predictors) == 1
    rollout_tasks.report_outcome(str(environment.root), "run", "retrain", environment.target, "SUCCEEDED", "")
    (report,) = runs.reports(environment.root)
    assert (report.outcome, report.version) == ("rolled back", "new")
    assert "worse in the canary: gain -" in report.reason
    again = msgspec.json.decode(training_tasks.evaluate(environment.plan, "new"), type=gate.GateResult)
    assert not again.promoted
    assert again.reason.startswith("rolled back before, by run: ")


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
            rollout_tasks.promote(environment.plan, "new", PASSED, endpoint, "")
        if answer is not None:
            server.shutdown()
    assert environment.serving() == ("old", None)


def test_a_failing_promotion_on_the_endpoint_leaves_the_store_as_it_was(environment):
    with pytest.raises(ValueError, match="has no version 'new': register it first"):
        rollout_tasks.promote(environment.plan, "new", PASSED, "", environment.target)
    assert environment.serving() == ("old", None)
    assert environment.split() == {"old": 100}
    assert runs.records(environment.root, "run")[-1].error.startswith("InputError: model recommender has no version")
