"""The steps where policies serve on Vertex AI: store and endpoint move together, and the endpoint has the last word."""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import numpy as np
import pytest

from contracts.errors import InputError, OperationError
from contracts.policies import Movie, PolicyCard
from contracts.trajectories import TrajectoryBatch
from orchestration import gate, policy_store
from orchestration.cloud.place import Place
from orchestration.cloud.vertex import Vertex
from orchestration.pipelines import canary, definitions, runs, tasks
from orchestration.pipelines.plan import Plan, WindowSettings
from orchestration.places import Places
from orchestration.policy_store import champion
from tests.linear_policies import write_policy
from tests.local_vertex.server import LocalVertex, local_vertex
from tests.windows import consecutive_windows, write_window

pytestmark = pytest.mark.timeout(900)

SETTINGS = WindowSettings(5.0, 2.0, 1.0, "drop", default_reward=0.0, holdback_share=0.1)

PASSED = msgspec.json.encode(
    gate.GateResult(verdict="better", promoted=True, reason="better: gain +1", evaluation=None)
).decode()


class Environment:
    """A root whose policies serve on the local Vertex AI: `old` is the champion, `new` the candidate."""

    def __init__(self, folder: Path, fake: LocalVertex, url: str) -> None:
        self.root = folder / "bucket" / "recommender"
        self.places = Places(self.root)
        self.fake = fake
        place = Place(
            project="films",
            location="europe-west1",
            endpoint="recommender",
            policies="gs://bucket/recommender/policies",
            image="predictor:1",
            topic="",
            machine_type="n1-standard-2",
            events=str(self.places.events),
            api_endpoint=url,
        )
        self.place = msgspec.json.encode(place).decode()
        self.vertex = Vertex(place)
        self.old, self.new = self.policy("old", 1), self.policy("new", 2)
        self.places.catalogue.write_bytes(msgspec.json.encode(self.old.catalogue))
        plan = Plan(root=str(self.root), run_id="run", champion=None, windows=[], settings=SETTINGS)
        first = msgspec.json.encode(plan).decode()
        tasks.register(first, "old", PASSED, self.place)
        tasks.promote(first, "old", PASSED, "", self.place)
        self.plan = msgspec.json.encode(msgspec.structs.replace(plan, champion="old")).decode()

    def policy(self, version: str, seed: int) -> PolicyCard:
        return write_policy(self.places.policies / version, seed=seed)

    def split(self) -> dict[str, int]:
        return {one.version: one.traffic for one in self.vertex.deployed() if one.traffic}

    def serving(self) -> tuple[str, str | None]:
        """Champion and candidate by the store."""
        found = champion(self.places.policies)
        assert found is not None
        return found.version, found.candidate

    def try_out(self) -> str:
        # 60 decisions take seconds; on a slow machine they may take minutes.
        return tasks.try_out(self.plan, "new", 0.5, 60, 240.0, "", self.place)

    @contextmanager
    def viewers(self, reward_of_new: float) -> Iterator[None]:
        """Ask the endpoint, and reward every policy with 3 but the candidate."""
        enough = threading.Event()

        def watch() -> None:
            while not enough.wait(0.1):
                instances = [{"observation": [0.1, 0.2, 0.3]} for _ in range(2)]
                for _ in range(3):
                    shown = self.vertex.predict(instances)
                    rewards = [
                        {
                            "decision_id": one["decision_id"],
                            "reward": (reward_of_new if one["policy_version"] == "new" else 3.0) + place,
                        }
                        for place, one in enumerate(shown)
                    ]
                    url = next(iter(self.fake.predictors.values())).url
                    body = json.dumps({"rewards": rewards}).encode()
                    urllib.request.urlopen(urllib.request.Request(f"{url}/rewards", body), timeout=60).close()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Environment]:
    with local_vertex(tmp_path) as (fake, url):
        yield Environment(tmp_path, fake, url)


def test_a_candidate_that_proves_itself_on_the_endpoint_is_promoted_there_and_in_the_store(environment):
    assert environment.split() == {"old": 100}
    tasks.register(environment.plan, "new", PASSED, environment.place)
    with environment.viewers(reward_of_new=3.0):
        assert environment.try_out() == "promote"
        assert environment.split() == {"old": 50, "new": 50}
        assert environment.serving() == ("old", "new")
    tasks.promote(environment.plan, "new", PASSED, "", environment.place)
    assert environment.split() == {"new": 100}
    assert environment.serving() == ("new", None)
    reason = policy_store.history(environment.places.policies)[-1].reason
    assert reason.startswith("better: gain +1; not worse in the canary: gain ")


def test_a_candidate_whose_reward_drops_on_the_endpoint_is_taken_back_and_stays_away(environment):
    tasks.register(environment.plan, "new", PASSED, environment.place)
    with environment.viewers(reward_of_new=1.0):
        assert environment.try_out() == "roll back"
    tasks.withdraw(environment.plan, "new", environment.place)
    assert environment.split() == {"old": 100}
    assert environment.serving() == ("old", None)
    assert len(environment.fake.predictors) == 1
    tasks.report_outcome(str(environment.root), "run", "retrain", environment.place, "SUCCEEDED", "")
    (report,) = runs.reports(environment.root)
    assert (report.outcome, report.version) == ("rolled back", "new")
    assert "worse in the canary: gain -" in report.reason
    again = msgspec.json.decode(tasks.evaluate(environment.plan, "new"), type=gate.GateResult)
    assert not again.promoted
    assert again.reason.startswith("rolled back before, by run: ")


def test_a_failure_in_the_canary_gives_everything_back_to_the_champion(environment):
    tasks.register(environment.plan, "new", PASSED, environment.place)
    environment.vertex.canary("new", 0.5)
    canary.start(environment.places.policies, "new", 0.5)
    tasks.report_outcome(str(environment.root), "run", "retrain", environment.place, "FAILED", "the worker was lost")
    assert environment.split() == {"old": 100}
    assert environment.serving() == ("old", None)
    (report,) = runs.reports(environment.root)
    assert (report.outcome, report.reason) == ("failed", "after the step register: the worker was lost")


def test_a_canary_that_the_store_does_not_know_of_is_ended_too(environment):
    """The endpoint changes first: who is killed between the two leaves a canary on the endpoint alone."""
    tasks.register(environment.plan, "new", PASSED, environment.place)
    environment.vertex.canary("new", 0.5)
    tasks.report_outcome(str(environment.root), "run", "retrain", environment.place, "FAILED", "the worker was lost")
    assert environment.split() == {"old": 100}
    assert len(environment.fake.predictors) == 1


def test_a_bootstrap_that_fails_has_no_canary_to_end(environment, tmp_path):
    tasks.report_outcome(str(tmp_path / "new"), "run", "bootstrap", environment.place, "FAILED", "no quota")
    (report,) = runs.reports(tmp_path / "new")
    assert (report.outcome, report.reason) == ("failed", "before the first step: no quota")


def test_the_store_follows_what_was_promoted_and_rolled_back_by_hand(environment):
    tasks.register(environment.plan, "new", PASSED, environment.place)
    environment.vertex.promote("new", "it looks good")
    assert environment.serving() == ("old", None)
    arguments = (str(environment.root), "later", SETTINGS, datetime.now(UTC).isoformat(), environment.place)
    with pytest.raises(ValueError, match="has no window"):  # there are none here, which is found out after that
        tasks.resolve_retrain(*arguments)
    assert environment.serving() == ("new", None)
    environment.vertex.roll_back("it was not")
    with pytest.raises(ValueError, match="has no window"):
        tasks.resolve_retrain(*arguments)
    assert environment.serving() == ("old", None)
    reasons = [past.reason for past in policy_store.history(environment.places.policies)]
    assert reasons[1:] == ["it serves on the endpoint: it looks good", "it serves on the endpoint: it was not"]


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
            tasks.promote(environment.plan, "new", PASSED, endpoint, "")
        if answer is not None:
            server.shutdown()
    assert environment.serving() == ("old", None)


def test_a_window_that_is_yet_to_come_is_not_waited_for(environment):
    until = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    with pytest.raises(InputError, match=r"until must not be later than now \(20.*Z\), got 20"):
        tasks.resolve_retrain(str(environment.root), "later", SETTINGS, until, "")


def test_a_failing_promotion_on_the_endpoint_leaves_the_store_as_it_was(environment):
    with pytest.raises(ValueError, match="has no version 'new': register it first"):
        tasks.promote(environment.plan, "new", PASSED, "", environment.place)
    assert environment.serving() == ("old", None)
    assert environment.split() == {"old": 100}
    assert runs.records(environment.root, "run")[-1].error.startswith("InputError: model recommender has no version")


def test_a_tuning_job_runs_the_trainer_and_its_best_trial_is_found(environment):
    """The worker pool, the flags and the metric are those of the pipeline: the trainer takes and reports them."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(5, 3))
    for window in consecutive_windows(start, 5, 2):
        observation = rng.normal(size=(300, 3)).astype(np.float32)
        action = rng.integers(0, 5, 300).astype(np.int32)
        reward = (observation * theta[action]).sum(axis=1).astype(np.float32)
        batch = TrajectoryBatch(observation, action, reward, np.full(300, 0.2, np.float32), np.zeros(300, dtype=bool))
        write_window(environment.places.windows, window, batch, batch)
    movies = [Movie(action=action, movie_id=str(action)) for action in range(5)]
    environment.places.catalogue.write_bytes(msgspec.json.encode(movies))

    pools = tasks.trial_pools(
        environment.plan, "gs://bucket/recommender", "orchestration:1", "n1-standard-4", "lin_ucb"
    )
    pools[0]["container_spec"]["args"] = [
        # Cloud Storage is mounted in the cloud; here its folders stand for it.
        argument.replace("gs://bucket", str(environment.root.parent))
        for argument in pools[0]["container_spec"]["args"]
    ]
    # As the component makes it out of the pipeline's serialised metrics and parameters.
    request = {
        "displayName": "tune",
        "studySpec": {
            "metrics": [{"metricId": "reward", "goal": "MAXIMIZE"}],
            "parameters": definitions.study_parameters(),
        },
        "maxTrialCount": 2,
        "parallelTrialCount": 1,
        "trialJobSpec": {"workerPoolSpecs": pools},
    }
    url = msgspec.json.decode(environment.place)["api_endpoint"]
    jobs = f"{url}/v1/projects/films/locations/europe-west1/hyperparameterTuningJobs"
    with urllib.request.urlopen(urllib.request.Request(jobs, json.dumps(request).encode())) as response:
        name = json.load(response)["name"]
    job = environment.fake.tuning_jobs[name.rpartition("/")[2]]
    while job.state.name == "JOB_STATE_RUNNING":
        time.sleep(0.1)
    assert job.state.name == "JOB_STATE_SUCCEEDED", job.error.message
    resources = {"resources": [{"resourceType": "HyperparameterTuningJob", "resourceUri": f"https://x/v1/{name}"}]}
    best = tasks.best_trial(environment.plan, json.dumps(resources), environment.place)
    assert set(best) == {"tikhonov", "half_life"}
    values = [trial.final_measurement.metrics[0].value for trial in job.trials]
    chosen = job.trials[values.index(max(values))]
    assert best["tikhonov"] == {one.parameter_id: one.value for one in chosen.parameters}["tikhonov"]
