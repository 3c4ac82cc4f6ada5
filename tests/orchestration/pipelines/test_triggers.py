"""Triggers and schedules through the real SDK against the local Vertex AI."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.cloud.aiplatform import PipelineJob
from google.cloud.aiplatform.utils import resource_manager_utils
from google.cloud.aiplatform_v1 import types

from contracts.errors import InputError
from orchestration import cli
from orchestration.cloud import configuration
from orchestration.cloud.configuration import Configuration
from orchestration.cloud.vertex_jobs import Compiled, VertexJobs
from orchestration.cloud.vertex_models import VertexModels
from orchestration.pipelines import commands, definitions, triggers
from tests.linear_policies import write_policy
from tests.local_vertex.server import PROJECT_NUMBER, LocalVertex, local_vertex

BUCKET = "films-bandit"
WINDOW = "windows/window=20260101T000000.000000Z/manifest.json"


DELETED = "google.cloud.storage.object.v1.deleted"


class Event(dict):
    """A CloudEvent as functions-framework gives it."""

    def __init__(self, name: str, bucket: str = BUCKET, kind: str = triggers.FINALIZED) -> None:
        super().__init__(type=kind, source="//storage.googleapis.com", id="1")
        self.data: dict[str, Any] = {"name": name, "bucket": bucket}


class Environment:
    def __init__(self, folder: Path, fake: LocalVertex, url: str) -> None:
        self.fake = fake
        self.path = folder / "prod.toml"
        prod = (configuration.FOLDER / "prod.toml").read_text()
        self.path.write_text(
            prod.replace('project = ""', 'project = "films"').replace("cron =", f'api_endpoint = "{url}"\ncron =')
        )

    def loaded(self) -> Configuration:
        return configuration.load(str(self.path))

    def cli(self, *arguments: str) -> int:
        return cli.main([*arguments, "--config", str(self.path)])


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Environment]:
    with local_vertex(tmp_path) as (fake, url):
        # The SDK looks whether the bucket for the pipelines' files is there and is the project's.
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setattr(resource_manager_utils, "get_project_number", lambda *_, **__: PROJECT_NUMBER)
        yield Environment(tmp_path, fake, url)


def test_a_manifest_starts_one_retraining_however_often_it_is_told(environment):
    loaded = environment.loaded()
    name = "bandit-retrain-20260101t000000-000000z"
    assert triggers.on_manifest(WINDOW, BUCKET, loaded) == f"{name} is submitted"
    assert triggers.on_manifest(WINDOW, BUCKET, loaded) == f"{name} was submitted before"
    (job,) = environment.fake.pipeline_jobs.values()
    assert job.name.endswith(f"/pipelineJobs/{name}")
    values = job.runtime_config.parameter_values
    assert values["root"] == "/gcs/films-bandit"
    assert values["canary"]["share"] == 0.1
    assert job.runtime_config.gcs_output_directory == "gs://films-bandit/pipelines"
    assert job.service_account == "bandit-pipelines@films.iam.gserviceaccount.com"


def test_a_revision_of_a_window_starts_a_retraining_of_its_own(environment):
    loaded = environment.loaded()
    triggers.on_manifest(WINDOW, BUCKET, loaded)
    for job in environment.fake.pipeline_jobs.values():
        job.state = types.PipelineState.PIPELINE_STATE_SUCCEEDED
    revision = WINDOW.replace("/manifest", ".r1/manifest")
    name = "bandit-retrain-20260101t000000-000000z-r1"
    assert triggers.on_manifest(revision, BUCKET, loaded) == f"{name} is submitted"
    assert triggers.on_manifest(revision, BUCKET, loaded) == f"{name} was submitted before"


def test_while_a_pipeline_is_under_way_a_manifest_starts_no_other(environment):
    """It may be the one that wrote the manifest; if not, the next retraining takes the window too."""
    loaded = environment.loaded()
    later = WINDOW.replace("T00", "T01")
    for pipeline in configuration.PIPELINES:
        triggers.submit(pipeline, loaded, {}, pipeline)
        said = triggers.on_manifest(later, BUCKET, loaded)
        assert said == f"{pipeline} is under way: it takes the window 20260101T010000.000000Z, or the run after it does"
        assert list(environment.fake.pipeline_jobs) == [pipeline]
        environment.fake.pipeline_jobs.clear()
    # Out of order: the older manifest comes after the newer one's run has ended.
    triggers.on_manifest(later, BUCKET, loaded)
    for job in environment.fake.pipeline_jobs.values():
        job.state = types.PipelineState.PIPELINE_STATE_SUCCEEDED
    assert triggers.on_manifest(WINDOW, BUCKET, loaded) == "bandit-retrain-20260101t000000-000000z is submitted"
    assert triggers.on_manifest(later, BUCKET, loaded).startswith(
        "bandit-retrain-20260101t000000-000000z is under way: "
    )


@pytest.mark.parametrize(
    "event",
    [
        Event("windows/window=20260101T000000.000000Z/part-train-00000.tfrecord"),
        Event("another/windows/window=20260101T000000.000000Z/manifest.json"),
        Event("policies/manifest.json"),
        Event(WINDOW, bucket="films-bandit-dev"),
    ],
)
def test_other_objects_start_nothing(environment, in_the_function, event):
    assert triggers.retrain_on_manifest(event).endswith("of prod.toml: nothing to do")
    assert not environment.fake.pipeline_jobs


@pytest.fixture
def in_the_function(environment, monkeypatch):
    monkeypatch.setenv("RECOMMENDER_CONFIG", str(environment.path))
    monkeypatch.setenv("RECOMMENDER_PROJECT", "films")


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        (DELETED, {"name": WINDOW, "bucket": BUCKET}, f"event: type {triggers.FINALIZED}, got {DELETED!r}"),
        *(
            (triggers.FINALIZED, data, f"event: data with the name and bucket of an object, got {data!r}")
            for data in (None, b"\x00", "text", [1], {}, {"name": WINDOW}, {"name": 3, "bucket": BUCKET})
        ),
    ],
)
def test_an_event_that_is_none_is_told_and_done_with(environment, in_the_function, capsys, kind, data, said):
    """Raising would have it delivered again and again."""
    event = Event(WINDOW, kind=kind)
    event.data = data
    assert triggers.retrain_on_manifest(event) == said
    assert capsys.readouterr().out == f"{said}\n"
    assert not environment.fake.pipeline_jobs


def test_a_function_needs_its_environment(environment, monkeypatch, in_the_function, capsys):
    assert triggers.retrain_on_manifest(Event(WINDOW)).endswith("is submitted")
    assert capsys.readouterr().out.endswith("is submitted\n")  # in the function's log
    monkeypatch.delenv("RECOMMENDER_CONFIG")
    with pytest.raises(InputError, match="RECOMMENDER_CONFIG: required in the function's environment"):
        triggers.retrain_on_manifest(Event(WINDOW))


def test_functions_framework_serves_it(environment, in_the_function, capsys):
    """As Cloud Run does: the CloudEvent in binary mode, as Eventarc sends it; a success is not delivered again."""
    from functions_framework import create_app

    app = create_app("retrain_on_manifest", triggers.__file__, "cloudevent").test_client()
    headers = {
        "ce-id": "1",
        "ce-source": f"//storage.googleapis.com/projects/_/buckets/{BUCKET}",
        "ce-specversion": "1.0",
        "ce-type": triggers.FINALIZED,
        "ce-subject": f"objects/{WINDOW}",
    }
    for _ in range(2):
        assert app.post("/", headers=headers, json={"bucket": BUCKET, "name": WINDOW}).status_code == 200
    assert list(environment.fake.pipeline_jobs) == ["bandit-retrain-20260101t000000-000000z"]
    assert app.post("/", headers=headers, json={"bucket": BUCKET}).status_code == 200
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "bandit-retrain-20260101t000000-000000z is submitted",
        "bandit-retrain-20260101t000000-000000z was submitted before",
        f"event: data with the name and bucket of an object, got {{'bucket': '{BUCKET}'}}",
    ]


def test_a_schedule_is_created_updated_paused_and_deleted_by_its_name(environment, capsys):
    schedules = environment.fake.schedules

    def said(*arguments: str) -> str:
        assert environment.cli("schedule", *arguments) == 0
        return capsys.readouterr().out.strip()

    assert said("create") == "retrain is scheduled: TZ=Etc/UTC 5 * * * *"
    assert said("create") == "retrain is scheduled already: TZ=Etc/UTC 5 * * * *"
    (first,) = schedules.values()
    assert (first.display_name, first.max_concurrent_run_count) == ("bandit-retrain", 1)

    text = environment.path.read_text()
    environment.path.write_text(text.replace("5 * * * *", "35 * * * *"))
    assert said("create") == "the schedule of retrain is now TZ=Etc/UTC 35 * * * *"
    assert [one.name for one in schedules.values()] == [first.name]
    assert said("create", "--set", "epsilon=0.05").startswith("retrain is scheduled, in place of the old schedule: ")
    (second,) = schedules.values()
    assert second.name != first.name
    assert (
        second.create_pipeline_job_request.pipeline_job.runtime_config.parameter_values["exploration"]["epsilon"]
        == 0.05
    )

    assert said("pause") == said("pause") == "the schedule of retrain is paused"
    assert said("list").startswith("bandit-retrain  PAUSED  TZ=Etc/UTC 35 * * * *")
    # What was paused stays so, whatever else changes.
    assert said("create", "--set", "epsilon=0.05") == "retrain is scheduled already, but paused: TZ=Etc/UTC 35 * * * *"
    assert said("create").startswith("retrain is scheduled, in place of the old schedule, but paused: ")
    assert [one.state.name for one in schedules.values()] == ["PAUSED"]
    assert said("resume") == said("resume") == "the schedule of retrain is resumed"
    assert said("delete") == "the schedule of retrain is deleted"
    assert not schedules
    assert environment.cli("schedule", "pause") == 2
    assert capsys.readouterr().err == "orchestration.cli: error: bandit has no schedule of 'retrain' in films\n"


def test_two_who_schedule_at_a_time_leave_one_schedule(environment, tmp_path):
    loaded = environment.loaded()
    cloud = loaded.needed_cloud()
    yaml = tmp_path / "retrain.yaml"
    yaml.write_text(definitions.compiled(definitions.build("retrain", loaded)))  # KFP builds one pipeline at a time
    compiled = Compiled("retrain", yaml, {"root": cloud.root}, cloud.root_uri)
    jobs = VertexJobs(cloud.target)
    both = threading.Barrier(2, timeout=60)
    create = PipelineJob.create_schedule

    def create_together(*arguments: Any, **named: Any) -> Any:
        both.wait()
        return create(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as threads:
        patch.setattr(PipelineJob, "create_schedule", create_together)
        created = [threads.submit(jobs.schedule, compiled, cloud.cron, "digest") for _ in range(2)]
        said = [one.result() for one in created]
    assert said == ["retrain is scheduled: TZ=Etc/UTC 5 * * * *"] * 2
    assert len(environment.fake.schedules) == 1


def test_submit_and_status_by_hand(environment, capsys):
    assert environment.cli("submit", "retrain", "--job-id", "by-hand") == 0
    assert environment.cli("submit", "retrain", "--job-id", "by-hand") == 0
    assert capsys.readouterr().out == "by-hand is submitted\nby-hand was submitted before\n"
    assert environment.cli("status") == 0
    assert capsys.readouterr().out == "  by-hand  PIPELINE_STATE_PENDING\n"


def test_the_reasons_of_what_was_done_by_hand_are_in_the_history(environment, capsys, tmp_path, monkeypatch):
    # What is deployed here is a process of this machine: it keeps its events below the test's folder.
    target = environment.loaded().needed_cloud().target
    target = msgspec.structs.replace(target, topic="", events=str(tmp_path / "events"))
    monkeypatch.setattr(commands, "target_of", lambda arguments: target)
    models = VertexModels(target)
    for number, version in enumerate(("v1", "v2")):
        # The bucket of the target, where the local Vertex AI looks for it.
        folder = tmp_path / "films-bandit" / "policies"
        models.register(write_policy(folder / version, seed=number), "")
    assert environment.cli("promote", "v1", "--reason", "The first one") == 0
    assert environment.cli("promote", "v2", "--reason", "Better on paper") == 0
    assert environment.cli("rollback", "--reason", "Complaints: #4711") == 0
    capsys.readouterr()
    assert environment.cli("history") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Runs", "Champions"]
    assert [line.split(maxsplit=2)[2] for line in lines[2:]] == [
        "v1  The first one",
        "v2  Better on paper",
        "v1  Complaints: #4711",
    ]
    assert environment.cli("status") == 0
    shown = capsys.readouterr().out
    assert "→ v1  100% of the traffic" in shown
    assert shown.splitlines()[-1].endswith(": Complaints: #4711")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["promote", "v9", "--reason", "try"], "model bandit has no version 'v9': register it first"),
        (["rollback", "--reason", "try"], "endpoint bandit has no earlier champion to go back to"),
        (["submit", "retrian"], "pipeline: one of bootstrap, retrain, tune, got 'retrian'"),
        (["submit", "retrain", "--set", "speed=1"], "--set speed: retrain has no such parameter; it has: root, until"),
        (["submit", "retrain", "--set", "speed"], "--set: NAME=VALUE expected, got 'speed'"),
    ],
)
def test_wrong_commands_are_one_line(environment, capsys, command, message):
    assert environment.cli(*command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"orchestration.cli: error: {message}")
    assert error.count("\n") == 1


def test_a_cloud_command_without_a_project_is_one_line(capsys):
    assert cli.main(["submit", "retrain", "--config", "dev"]) == 2
    assert capsys.readouterr().err.startswith("orchestration.cli: error: cloud.project is missing in dev.toml: set it")
    assert cli.main(["schedule", "list", "--config", "local"]) == 2
    assert "local.toml is not on Google Cloud" in capsys.readouterr().err
