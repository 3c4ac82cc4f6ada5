"""Triggers and schedules through the real SDK against the local Vertex AI."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.cloud.aiplatform.utils import resource_manager_utils

from contracts.errors import InputError
from orchestration import cli, configuration, pipelines, triggers
from orchestration.configuration import Configuration
from orchestration.vertex import Vertex
from tests.linear_policies import write_policy
from tests.local_vertex.server import PROJECT_NUMBER, LocalVertex, local_vertex

WINDOW = "recommender/windows/window=20260101T000000.000000Z/manifest.json"


class Event(dict):
    """A CloudEvent as functions-framework gives it."""

    def __init__(self, name: str, bucket: str = "movie-recommender-prod", kind: str = triggers.FINALIZED) -> None:
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
    name = "retrain-20260101t000000-000000z"
    assert triggers.on_manifest(Event(WINDOW), loaded) == f"{name} is submitted"
    assert triggers.on_manifest(Event(WINDOW), loaded) == f"{name} was submitted before"
    (job,) = environment.fake.pipeline_jobs.values()
    assert job.name.endswith(f"/pipelineJobs/{name}")
    values = job.runtime_config.parameter_values
    assert values["root"] == "/gcs/movie-recommender-prod/recommender"
    assert values["canary_share"] == 0.1
    assert job.runtime_config.gcs_output_directory == "gs://movie-recommender-prod/recommender/pipelines"


@pytest.mark.parametrize(
    "event",
    [
        Event("recommender/windows/window=20260101T000000.000000Z/part-train-00000.tfrecord"),
        Event("another/windows/window=20260101T000000.000000Z/manifest.json"),
        Event("recommender/policies/manifest.json"),
        Event(WINDOW, bucket="movie-recommender-dev"),
    ],
)
def test_other_objects_start_nothing(environment, event):
    assert triggers.on_manifest(event, environment.loaded()).endswith("of prod.toml: nothing to do")
    assert not environment.fake.pipeline_jobs


def test_wrong_events_and_environments(environment, monkeypatch):
    with pytest.raises(InputError, match=r"event: .*finalized expected, got 'google.cloud.storage.object.v1.deleted'"):
        triggers.on_manifest(Event(WINDOW, kind="google.cloud.storage.object.v1.deleted"), environment.loaded())
    with pytest.raises(InputError, match="RECOMMENDER_CONFIG is missing in the function's environment"):
        triggers.retrain_on_manifest(Event(WINDOW))
    monkeypatch.setenv("RECOMMENDER_CONFIG", str(environment.path))
    monkeypatch.setenv("RECOMMENDER_PROJECT", "films")
    assert triggers.retrain_on_manifest(Event(WINDOW)).endswith("is submitted")


def test_a_schedule_is_created_updated_paused_and_deleted_by_its_name(environment, capsys):
    schedules = environment.fake.schedules

    def said(*arguments: str) -> str:
        assert environment.cli("schedule", *arguments) == 0
        return capsys.readouterr().out.strip()

    assert said("create") == "retrain is scheduled: TZ=Etc/UTC 5 * * * *"
    assert said("create") == "retrain is scheduled already: TZ=Etc/UTC 5 * * * *"
    (first,) = schedules.values()
    assert (first.display_name, first.max_concurrent_run_count) == ("retrain", 1)

    text = environment.path.read_text()
    environment.path.write_text(text.replace("5 * * * *", "35 * * * *"))
    assert said("create") == "the schedule of retrain is now TZ=Etc/UTC 35 * * * *"
    assert [one.name for one in schedules.values()] == [first.name]
    assert said("create", "--set", "epsilon=0.05").startswith("retrain is scheduled, in place of what it was: ")
    (second,) = schedules.values()
    assert second.name != first.name
    assert second.create_pipeline_job_request.pipeline_job.runtime_config.parameter_values["epsilon"] == 0.05

    assert said("pause") == "the schedule of retrain is paused"
    assert said("list").startswith("retrain  PAUSED  TZ=Etc/UTC 35 * * * *")
    assert said("resume") == "the schedule of retrain goes on"
    assert said("delete") == "the schedule of retrain is deleted"
    assert not schedules
    assert environment.cli("schedule", "pause") == 2
    assert capsys.readouterr().err == "orchestration.cli: error: there is no schedule of 'retrain' in films\n"


def test_submit_and_status_by_hand(environment, capsys):
    assert environment.cli("submit", "retrain", "--job-id", "by-hand") == 0
    assert environment.cli("submit", "retrain", "--job-id", "by-hand") == 0
    assert capsys.readouterr().out == "by-hand is submitted\nby-hand was submitted before\n"
    assert environment.cli("status") == 0
    assert capsys.readouterr().out == "  by-hand  PIPELINE_STATE_PENDING\n"


def test_the_reasons_of_what_was_done_by_hand_are_in_the_history(environment, capsys, tmp_path, monkeypatch):
    # What is deployed here is a process of this machine: it keeps its events below the test's folder.
    place = pipelines.place(environment.loaded().needed_cloud())
    place = msgspec.structs.replace(place, topic="", events=str(tmp_path / "events"))
    monkeypatch.setattr(pipelines, "place", lambda cloud: place)
    vertex = Vertex(place)
    for number, version in enumerate(("v1", "v2")):
        # `bucket` of the place, where the local Vertex AI looks for it.
        folder = tmp_path / "movie-recommender-prod" / "recommender" / "policies"
        vertex.register(write_policy(folder / version, seed=number), "")
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
        (["promote", "v9", "--reason", "try"], "model recommender has no version 'v9': register it first"),
        (["rollback", "--reason", "try"], "endpoint recommender has no earlier champion to go back to"),
        (["submit", "retrian"], "no pipeline 'retrian'; there are: bootstrap, retrain, tune"),
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
    assert capsys.readouterr().err.startswith("orchestration.cli: error: cloud.project is missing in dev.toml: name it")
    assert cli.main(["schedule", "list", "--config", "local"]) == 2
    assert "local.toml is not on Google Cloud" in capsys.readouterr().err
