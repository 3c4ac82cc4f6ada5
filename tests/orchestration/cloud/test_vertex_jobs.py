"""Two environments in one project never touch each other's runs and schedules."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from google.cloud.aiplatform.utils import resource_manager_utils

from contracts.errors import InputError, OperationError
from orchestration.cloud import configuration
from orchestration.cloud.vertex_jobs import Compiled, VertexJobs
from orchestration.pipelines import definitions
from tests.local_vertex.server import PROJECT_NUMBER
from tests.orchestration.cloud.environments import Environment

CRON = "TZ=Etc/UTC 5 * * * *"


@pytest.fixture
def jobs_of(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], VertexJobs]:
    """The jobs of an environment by its name."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", environment.target.api_endpoint)
    monkeypatch.setattr(resource_manager_utils, "get_project_number", lambda *_, **__: PROJECT_NUMBER)
    return lambda name: VertexJobs(msgspec.structs.replace(environment.target, name=name))


@pytest.fixture
def compiled(tmp_path: Path) -> Compiled:
    path = tmp_path / "retrain.yaml"
    path.write_text(definitions.compiled(definitions.build("retrain", configuration.load("prod", "films"))))
    return Compiled("retrain", path, {"root": "/gcs/films-bandit"}, "gs://films-bandit/pipelines")


def test_schedules_of_two_environments_in_one_project_stay_apart(environment, jobs_of, compiled):
    development, production = jobs_of("bandit-dev"), jobs_of("bandit")
    assert development.schedule(compiled, CRON, "a") == f"retrain is scheduled: {CRON}"
    assert production.schedule(compiled, CRON, "b") == f"retrain is scheduled: {CRON}"
    assert production.schedule(compiled, CRON, "c") == f"retrain is scheduled, in place of the old schedule: {CRON}"
    assert sorted(one.display_name for one in environment.fake.schedules.values()) == [
        "bandit-dev-retrain",
        "bandit-retrain",
    ]
    assert [one.name for one in production.schedules()] == ["bandit-retrain"]
    production.pause_schedule("retrain")
    assert [one.state for one in development.schedules()] == ["ACTIVE"]
    production.delete_schedule("retrain")
    assert [one.name for one in development.schedules()] == ["bandit-dev-retrain"]
    with pytest.raises(InputError, match="bandit has no schedule of 'retrain' in films"):
        production.resume_schedule("retrain")


def test_runs_of_two_environments_in_one_project_stay_apart(jobs_of, compiled):
    development, production = jobs_of("bandit-dev"), jobs_of("bandit")
    assert development.submit(compiled, "by-hand") == "by-hand is submitted"
    assert development.submit(compiled, "by-hand") == "by-hand was submitted before"
    assert production.runs("retrain") == []
    assert production.under_way() is None
    assert development.under_way() == "by-hand"
    with pytest.raises(InputError, match="job id: one that is free, got 'by-hand', which is a run of bandit-dev-retra"):
        production.submit(compiled, "by-hand")


def test_a_tuning_job_without_a_metric_is_a_failed_operation(environment, jobs_of):
    name = "projects/films/locations/europe-west1/hyperparameterTuningJobs/1"
    from google.cloud.aiplatform_v1 import types

    environment.fake.tuning_jobs["1"] = types.HyperparameterTuningJob(name=name, display_name="tune")
    resources = msgspec.json.encode({"resources": [{"resourceUri": f"https://x/v1/{name}"}]}).decode()
    with pytest.raises(OperationError, match="tune: none of 0 trials reported a metric"):
        jobs_of("bandit").best_trial(resources)
