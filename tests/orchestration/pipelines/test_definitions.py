"""Every pipeline in every environment: it compiles, to the same bytes each time."""

import hashlib
import os
import subprocess
import sys
import textwrap

import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from contracts.errors import InputError
from orchestration.cloud import configuration
from orchestration.pipelines import definitions

CONFIGURATIONS = configuration.names()


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, str]]:
    return {name: definitions.check(configuration.load(name)) for name in CONFIGURATIONS}


def spec_of(text: str) -> pipeline_spec_pb2.PipelineSpec:
    """Strictly: an unknown field or a wrong type is an error."""
    return json_format.ParseDict(next(yaml.safe_load_all(text)), pipeline_spec_pb2.PipelineSpec())


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("pipeline", configuration.PIPELINES)
def test_every_pipeline_compiles_in_every_environment(compiled, name, pipeline):
    spec = spec_of(compiled[name][pipeline])
    cloud = configuration.load(name).cloud
    assert spec.pipeline_info.name == (f"{cloud.name}-{pipeline}" if cloud else pipeline)
    # The exit handler: the one task that runs whatever became of the others.
    triggers = {task: one.trigger_policy.strategy for task, one in spec.root.dag.tasks.items()}
    strategy = pipeline_spec_pb2.PipelineTaskSpec.TriggerPolicy.ALL_UPSTREAM_TASKS_COMPLETED
    assert [task for task, found in triggers.items() if found == strategy] == ["report-outcome"]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_nothing_is_cached_in_a_pipeline_whose_inputs_are_elsewhere(compiled, name):
    for text in compiled[name].values():
        spec = spec_of(text)
        dags = [component.dag for component in (spec.root, *spec.components.values())]
        tasks_of_ours = [task for dag in dags for task in dag.tasks.values() if _runs_something(spec, task)]
        assert len(tasks_of_ours) >= 9
        assert not [task.task_info.name for task in tasks_of_ours if task.caching_options.enable_cache]


def _runs_something(spec: pipeline_spec_pb2.PipelineSpec, task: pipeline_spec_pb2.PipelineTaskSpec) -> bool:
    return bool(spec.components[task.component_ref.name].executor_label)


def test_the_yaml_is_the_same_in_another_process(compiled):
    script = """
        import hashlib
        from orchestration.cloud import configuration
        from orchestration.pipelines import definitions
        texts = definitions.check(configuration.load("prod"))
        print(hashlib.sha256("".join(texts.values()).encode()).hexdigest())
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    other_order = os.environ | {"PYTHONHASHSEED": "4711"}
    found = subprocess.run(command, env=other_order, capture_output=True, text=True, check=True)
    assert found.stdout.split()[-1] == hashlib.sha256("".join(compiled["prod"].values()).encode()).hexdigest()


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("pipeline", configuration.PIPELINES)
def test_a_plan_is_made_of_the_parameters_of_the_same_names(compiled, name, pipeline):
    spec = spec_of(compiled[name][pipeline])
    every = [task for component in spec.components.values() for task in component.dag.tasks.values()]
    (task,) = [task for task in every if task.task_info.name.startswith("resolve")]
    given = {key: one.component_input_parameter for key, one in task.inputs.parameters.items()}
    wanted = ["windows", *(["generated"] if pipeline == "bootstrap" else [])]
    assert {key: given[key] for key in wanted} == {key: f"pipelinechannel--{key}" for key in wanted}


def test_an_unknown_pipeline_is_one_line():
    with pytest.raises(InputError, match="pipeline: one of bootstrap, retrain, tune, got 'retrian'"):
        definitions.build("retrian", configuration.load("local"))


def test_shared_parameters_must_belong_to_a_pipeline(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("backend = 'local'\nshared.root = 'r'\nshared.windw_seconds = 1.0")
    with pytest.raises(
        InputError, match=r"c.toml: shared.windw_seconds: no pipeline has such a parameter; they have: a"
    ):
        definitions.check(configuration.load(str(path)))
