"""Training with the settings that were asked for, and tuning on the local Vertex AI."""

import json
import time
import urllib.request
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from beam_jobs import warehouse
from contracts import items, policies
from contracts.items import Item
from contracts.policies import Exploration
from contracts.trajectories import TrajectoryBatch
from orchestration import catalogue, policy_store
from orchestration.catalogue import Reuse
from orchestration.gate import GateResult
from orchestration.pipelines import training_tasks
from orchestration.pipelines.environment import METRIC
from orchestration.pipelines.parameters import TuningBudget
from orchestration.pipelines.plan import Plan
from orchestration.places import Places
from predictor import policy as serving
from tests.orchestration.pipelines.environments import SETTINGS, Environment
from tests.windows import consecutive_windows, write_window

pytestmark = pytest.mark.timeout(900)


def write_windows(environment: Environment) -> None:
    """Two windows of five movies, which have a year, so that arms have features."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(5, 3))
    for window in consecutive_windows(start, 5, 2):
        observation = rng.normal(size=(300, 3)).astype(np.float32)
        action = rng.integers(0, 5, 300).astype(np.int32)
        reward = (observation * theta[action]).sum(axis=1).astype(np.float32)
        batch = TrajectoryBatch(observation, action, reward, np.full(300, 0.2, np.float32), np.zeros(300, dtype=bool))
        write_window(environment.places.windows, window, batch, batch)
    movies = [Item(action=action, item_id=str(action), attributes={"year": 1990.0 + action}) for action in range(5)]
    environment.places.catalogue.write_bytes(msgspec.json.encode(movies))


def tuned(environment: Environment, algorithm: str, trials: int):
    """The tuning job that the pipeline's study makes, once it has ended, and the hyperparameters of its best trial."""
    study = training_tasks.study(
        environment.plan,
        algorithm,
        msgspec.to_builtins(TuningBudget(trials=trials)),
        "gs://bucket/recommender",
        "orchestration:1",
        "n1-standard-4",
    )
    study.pools[0]["container_spec"]["args"] = [
        # Cloud Storage is mounted in the cloud; here its folders stand for it.
        argument.replace("gs://bucket", str(environment.root.parent))
        for argument in study.pools[0]["container_spec"]["args"]
    ]
    # As the component makes it of the pipeline's serialised metrics and parameters.
    request = {
        "displayName": "tune",
        "studySpec": {"metrics": [{"metricId": METRIC, "goal": "MAXIMIZE"}], "parameters": study.parameters},
        "maxTrialCount": study.trials,
        "parallelTrialCount": 1,
        "trialJobSpec": {"workerPoolSpecs": study.pools},
    }
    url = msgspec.json.decode(environment.target)["api_endpoint"]
    jobs = f"{url}/v1/projects/films/locations/europe-west1/hyperparameterTuningJobs"
    with urllib.request.urlopen(urllib.request.Request(jobs, json.dumps(request).encode())) as response:
        name = json.load(response)["name"]
    job = environment.fake.tuning_jobs[name.rpartition("/")[2]]
    while job.state.name == "JOB_STATE_RUNNING":
        time.sleep(0.1)
    assert job.state.name == "JOB_STATE_SUCCEEDED", job.error.message
    resources = {"resources": [{"resourceType": "HyperparameterTuningJob", "resourceUri": f"https://x/v1/{name}"}]}
    return job, training_tasks.best_trial(environment.plan, json.dumps(resources), environment.target)


def test_a_tuning_job_runs_the_trainer_and_its_best_trial_is_found(environment):
    """The worker pool, the flags and the metric are those of the pipeline: the trainer takes and reports them."""
    write_windows(environment)
    job, best = tuned(environment, "lin_ucb", 4)
    assert {"tikhonov", "half_life", "arm_features"} <= set(best)
    for trial in job.trials:
        chosen = {one.parameter_id: one.value for one in trial.parameters}
        assert ("arm-tikhonov" in chosen) == (chosen["arm-features"] == "hybrid")
    values = [trial.final_measurement.metrics[0].value for trial in job.trials]
    chosen = job.trials[values.index(max(values))]
    assert best["tikhonov"] == {one.parameter_id: one.value for one in chosen.parameters}["tikhonov"]


def test_a_neural_algorithm_is_tuned_and_trained_with_the_best_trial_and_its_exploration(environment):
    """Vertex AI and KFP give 64.0 for a batch size of 64; temperature and gamma reach the policy's card."""
    write_windows(environment)
    _, best = tuned(environment, "neural_boltzmann", 1)
    assert set(best) == {"layers", "learning_rate", "batch_size"}
    exploration = {"strategy": "softmax", "temperature": 0.25, "gamma": 7.0}
    quick = best | {"batch_size": float(best["batch_size"]), "epochs": 1.0}
    version = training_tasks.train(environment.plan, "neural_boltzmann", quick, exploration, fresh=True)
    path = environment.places.policies / version / policies.CARD_NAME
    card = policies.decode_card(path.read_bytes(), str(path))
    assert card.exploration == Exploration(strategy="softmax", temperature=0.25, gamma=7.0)
    assert (card.hyperparameters["batch_size"], card.hyperparameters["layers"]) == (
        int(quick["batch_size"]),
        best["layers"],
    )


@pytest.mark.parametrize("arm_features", ["none", "hybrid"])
def test_a_catalogue_that_changes_before_each_retrain_fails_none_of_them(tmp_path, arm_features):
    """Items come and go, and actions are used again: every update is trained, judged and rolled out."""
    places, rng = Places(tmp_path), np.random.default_rng(0)
    places.runs.mkdir()
    warehouse.create(places.warehouse)
    start, reuse = datetime(2026, 1, 1, tzinfo=UTC), Reuse(reuse_after_hours=1.5)
    worth: dict[str, np.ndarray] = {}

    def made(*names: str) -> list[Item]:
        worth.update({name: rng.normal(size=3) for name in names})
        return [Item(action=0, item_id=name, attributes={"size": float(len(name))}) for name in names]

    offered = made("a", "bb", "ccc", "dd", "e")
    catalogue.apply(places, offered, start)
    version, sizes = None, []
    for number, window in enumerate(consecutive_windows(start, 3600, 5)):
        found = items.read(places.catalogue)
        active = [item for item in found if item.status == "active"]
        action = rng.choice([item.action for item in active], 300).astype(np.int32)
        observation = rng.normal(size=(300, 3)).astype(np.float32)
        reward = np.einsum("nd,nd->n", observation, [worth[found[one].item_id] for one in action]).astype(np.float32)
        propensity = np.full(300, 1 / len(active), np.float32)
        batch = TrajectoryBatch(observation, action, reward, propensity, np.zeros(300, dtype=bool))
        write_window(places.windows, window, batch, batch)
        plan = Plan(root=str(tmp_path), run_id=f"run{number}", champion=version, windows=[], settings=SETTINGS)
        encoded = msgspec.json.encode(plan).decode()
        candidate = training_tasks.train(encoded, "lin_ucb", {"arm_features": arm_features}, {}, fresh=False)
        result = training_tasks.evaluate(encoded, candidate, {}, "")
        assert training_tasks.gate(encoded, candidate, result) == "promote", result
        policy_store.roll_out(places.policies, candidate, "test", window.end)
        version = candidate
        served = serving.load(places.policies / version)
        assert set(served.on_offer) == {item.action for item in active}
        sizes.append(served.card.num_actions)
        offered = [*offered[1:], *made(f"new{number}")]
        catalogue.apply(places, offered, window.end, "retire", reuse)
    # Each hour one of five is replaced; the first two new ones need actions of their own, the later ones do not.
    assert sizes == [5, 6, 7, 7, 7]
    assert training_tasks.train(encoded, "lin_ucb", {"arm_features": arm_features}, {}, fresh=True)


def test_what_began_to_serve_during_the_run_is_not_replaced(environment):
    """A person promoted, or the run itself rolled back: the candidate was not trained from what serves now."""
    environment.policy("third", 3)
    policy_store.roll_out(environment.places.policies, "new", "by hand", datetime(2026, 1, 2, tzinfo=UTC))
    result = msgspec.json.decode(training_tasks.evaluate(environment.plan, "third", {}, ""), type=GateResult)
    assert not result.promoted
    assert result.reason == "new serves since the run began, not old: run the pipeline again"
