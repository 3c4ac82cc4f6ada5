"""Two environments in one project on the local Vertex AI: every command shows and changes its own environment only."""

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.cloud.aiplatform.utils import resource_manager_utils
from google.cloud.aiplatform_v1 import types
from google.protobuf import json_format

from orchestration import cli
from orchestration.cloud import configuration
from orchestration.cloud.vertex_endpoint import VertexEndpoint
from orchestration.cloud.vertex_models import VertexModels
from orchestration.pipelines import commands, triggers
from tests.linear_policies import write_policy
from tests.local_vertex.server import PROJECT_NUMBER, LocalVertex, local_vertex

# The name of one begins with the other's: a filter by prefix would mix them up.
NAMES = {"dev": "bandit-dev", "prod": "bandit"}
WINDOW = "windows/window=20260101T000000.000000Z/manifest.json"
# Each command with --config, as often as it has different things to do, in an order in which each has something to do.
COMMANDS = [
    ["promote", "{name}.1", "--reason", "first"],
    ["promote", "{name}.2", "--reason", "second"],
    ["rollback", "--reason", "complaints"],
    ["status"],
    ["history"],
    ["submit", "bootstrap"],
    ["submit", "retrain", "--job-id", "by-hand-{name}"],
    ["schedule", "create"],
    ["schedule", "create", "--set", "epsilon=0.05"],
    ["schedule", "pause"],
    ["schedule", "create", "--set", "epsilon=0.1"],
    ["schedule", "resume"],
    ["schedule", "list"],
    ["schedule", "create", "tune"],
    ["schedule", "delete"],
]
HERE = {"run-local", "check", "compile", "cost"}  # take a configuration, and ask no service


class Project:
    """The project `films` with both environments, each with two registered policies."""

    def __init__(self, folder: Path, fake: LocalVertex, url: str) -> None:
        self.fake = fake
        self.paths = {}
        for config, name in NAMES.items():
            text = (configuration.FOLDER / f"{config}.toml").read_text()
            self.paths[name] = folder / f"{config}.toml"
            self.paths[name].write_text(
                text.replace('project = ""', 'project = "films"').replace("cron =", f'api_endpoint = "{url}"\ncron =')
            )
        # What is deployed here is a process of this machine: it publishes nothing, and keeps its events here.
        self.targets = {
            name: msgspec.structs.replace(
                configuration.load(str(path)).needed_cloud().target, topic="", events=str(folder / f"events-{name}")
            )
            for name, path in self.paths.items()
        }
        for name, target in self.targets.items():
            for number in (1, 2):
                card = write_policy(
                    folder / f"films-{name}" / "policies" / f"{name}.{number}", num_actions=number + 2, seed=number
                )
                VertexModels(target).register(card, "")

    def state(self, name: str) -> dict[str, Any]:
        """Everything that the service has of an environment."""
        resources: dict[str, dict[str, Any]] = {
            "models": {key: list(versions.values()) for key, versions in self.fake.models.items()},
            "endpoints": {key: [one] for key, one in self.fake.endpoints.items()},
            "jobs": {key: [one] for key, one in self.fake.pipeline_jobs.items()},
            "schedules": {key: [one] for key, one in self.fake.schedules.items()},
        }
        return {
            kind: {
                key: [json_format.MessageToDict(one._pb) for one in found]
                for key, found in some.items()
                if _owner(found[0].display_name) == name
            }
            for kind, some in resources.items()
        }


def _owner(display_name: str) -> str:
    """The environment of `bandit-dev-retrain` is `bandit-dev`, that of the model `bandit` is `bandit`."""
    return re.sub(rf"-({'|'.join(configuration.PIPELINES)})$", "", display_name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with local_vertex(tmp_path) as (fake, url):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setattr(resource_manager_utils, "get_project_number", lambda *_, **__: PROJECT_NUMBER)
        made = Project(tmp_path, fake, url)
        by_path = {str(path): made.targets[name] for name, path in made.paths.items()}
        monkeypatch.setattr(commands, "target_of", lambda arguments: by_path[arguments.config])
        yield made


def _foreign(name: str) -> re.Pattern[str]:
    """The name of the other environment, in a version, a schedule or an id."""
    return re.compile(r"bandit-dev" if name == "bandit" else r"\bbandit(?!-dev)")


def _unchanged(project: Project, other: str, act: Callable[[], object], what: str) -> None:
    before = project.state(other)
    act()
    assert project.state(other) == before, f"{what} changed {other}"


def test_every_command_touches_its_own_environment_only(project, capsys):
    for template in COMMANDS:
        for name, other in zip(NAMES.values(), reversed(NAMES.values()), strict=True):
            command = [part.format(name=name) for part in template]
            capsys.readouterr()
            _unchanged(
                project,
                other,
                lambda command=command, name=name: (
                    cli.main([*command, "--config", str(project.paths[name])]) == 0 or pytest.fail(str(command))
                ),
                f"{' '.join(command)} of {name}",
            )
            assert not _foreign(name).search(capsys.readouterr().out), f"{command} of {name} shows {other}"
    for name in NAMES.values():
        state = project.state(name)
        assert {_owner(one["displayName"]) for (one,) in state["schedules"].values()} == {name}
        assert len(state["jobs"]) == 2 and all(key.endswith(name) or key.startswith(name) for key in state["jobs"])
        assert VertexEndpoint(project.targets[name]).champion() == f"{name}.1"


def test_the_trigger_and_the_viewers_of_an_environment_stay_in_it(project, capsys, monkeypatch):
    for name, other in zip(NAMES.values(), reversed(NAMES.values()), strict=True):
        loaded = configuration.load(str(project.paths[name]))
        VertexEndpoint(project.targets[name]).promote(f"{name}.1", "first")
        for window in (WINDOW, WINDOW.replace("T00", "T01")):
            _unchanged(
                project,
                other,
                lambda window=window, loaded=loaded, name=name: triggers.on_manifest(window, f"films-{name}", loaded),
                f"the trigger of {name}",
            )
        # The other environment's run under way held up nothing, and this one's does.
        assert list(project.state(name)["jobs"]) == [f"{name}-retrain-20260101t000000-000000z"]
        assert "nothing to do" in triggers.on_manifest(WINDOW, f"films-{other}", loaded)
        (served,) = VertexEndpoint(project.targets[name]).predict([{"observation": [0.1, 0.2, 0.3]}])
        assert served["policy_version"] == f"{name}.1"
    for job in project.fake.pipeline_jobs.values():
        job.state = types.PipelineState.PIPELINE_STATE_SUCCEEDED


def test_pipelines_of_two_environments_have_lineage_of_their_own(project):
    """Vertex AI keeps the lineage of runs by the name in the pipeline's YAML."""
    for name, path in project.paths.items():
        assert cli.main(["submit", "retrain", "--config", str(path)]) == 0
        ((job,),) = project.state(name)["jobs"].values()
        assert job["pipelineSpec"]["pipelineInfo"]["name"] == f"{name}-retrain"


def test_no_command_that_takes_an_environment_is_left_out():
    subparsers = next(
        action for action in cli.build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    takes = {name for name, parser in subparsers.choices.items() if "--config" in parser.format_help()}
    assert takes == {command[0] for command in COMMANDS} | HERE
