"""Training with the settings that were asked for, and tuning on the local Vertex AI."""

import json
import time
import urllib.request
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from contracts import policies
from contracts.items import Item
from contracts.policies import Exploration
from contracts.trajectories import TrajectoryBatch
from orchestration.pipelines import training_tasks
from orchestration.pipelines.environment import METRIC
from orchestration.pipelines.parameters import TuningBudget
from tests.orchestration.pipelines.environments import Environment
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
