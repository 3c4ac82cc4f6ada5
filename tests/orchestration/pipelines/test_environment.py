"""The long work of each environment: which component runs it, and that Google's services take the requests."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from google.cloud import dataflow_v1beta3
from google.cloud.aiplatform_v1 import types
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from orchestration.cloud import configuration
from orchestration.cloud.study import study_parameters
from orchestration.pipelines import definitions
from orchestration.pipelines.window_tasks import JOBS
from trainer.search_space import search_space


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, str]]:
    return {name: definitions.check(configuration.load(name)) for name in ("local", "prod")}


def spec_of(text: str) -> pipeline_spec_pb2.PipelineSpec:
    """Strictly: an unknown field or a wrong type is an error."""
    return json_format.ParseDict(next(yaml.safe_load_all(text)), pipeline_spec_pb2.PipelineSpec())


def test_long_work_goes_to_the_google_cloud_components(compiled):
    launchers = ("dataflow.flex_template", "v1.custom_job.launcher", "v1.wait_gcp_resources")
    for pipeline in ("bootstrap", "retrain"):
        assert all(launcher in compiled["prod"][pipeline] for launcher in launchers)
        assert not any(launcher in compiled["local"][pipeline] for launcher in launchers)


SERVICES = {
    "CustomJob": types.CustomJob,
    "HyperparameterTuningJob": types.HyperparameterTuningJob,
    "DataflowJob": dataflow_v1beta3.LaunchFlexTemplateRequest,
}
# What other tasks give a launcher.
OF_OTHER_TASKS: dict[str, Any] = {
    "parameters": {"warehouse": "bigquery:films.bandit"},
    "worker_pool_specs": [{"machine_spec": {"machine_type": "n1-standard-4"}, "container_spec": {"image_uri": "i"}}],
    "max_trial_count": 20,
    "study_spec_parameters": study_parameters(search_space("lin_ucb", has_arm_features=False)),
}


@pytest.mark.parametrize("pipeline", configuration.PIPELINES)
def test_the_services_take_what_the_launchers_are_given(pipeline):
    """Each request as the service's own message, and in it the images and accounts of `infra/` and `templates/`."""
    spec = spec_of(definitions.check(configuration.load("prod", "films"))[pipeline])
    requests = dict(_requests(spec))
    images = "europe-west1-docker.pkg.dev/films/bandit"
    jobs = list(JOBS) if pipeline == "bootstrap" else ["export_trajectories"]
    launched = [one.launch_parameter for name, one in sorted(requests.items()) if name.startswith("dataflow")]
    assert [one.container_spec_gcs_path for one in launched] == [
        f"gs://films-bandit/templates/{job}.json" for job in jobs
    ]
    assert {(one.environment.subnetwork, one.environment.ip_configuration.name) for one in launched} <= {
        ("regions/europe-west1/subnetworks/bandit", "WORKER_IP_PRIVATE")
    }
    assert [one.environment.sdk_container_image for one in launched] == [f"{images}/{job}:stable" for job in jobs]
    assert {one.environment.service_account_email for one in launched} == {
        "bandit-dataflow@films.iam.gserviceaccount.com"
    }
    (pool,) = requests["train"].job_spec.worker_pool_specs
    assert pool.container_spec.image_uri == f"{images}/orchestration:stable"
    assert pool.machine_spec.machine_type == "n1-highmem-8"
    trained = [requests["train"].job_spec]
    if pipeline == "tune":
        tuned = requests["hyperparameter-tuning-job"]
        assert [one.parameter_id for one in tuned.study_spec.parameters] == ["tikhonov", "half-life"]
        assert tuned.max_trial_count == 20
        assert [one.metric_id for one in tuned.study_spec.metrics] == ["reward"]
        trained.append(tuned.trial_job_spec)
    assert {one.service_account for one in trained} == {"bandit-trainer@films.iam.gserviceaccount.com"}


def _requests(spec: pipeline_spec_pb2.PipelineSpec) -> Iterator[tuple[str, Any]]:
    """The request of each launcher's task, as the launcher makes it of its payload: without what is empty."""
    executors = json_format.MessageToDict(spec.deployment_spec)["executors"]
    for dag in (component.dag for component in (spec.root, *spec.components.values())):
        for name, task in dag.tasks.items():
            component = spec.components[task.component_ref.name]
            arguments = executors.get(component.executor_label, {}).get("container", {}).get("args", [])
            flags = dict(zip(arguments[::2], arguments[1::2], strict=False))
            if flags.get("--type") not in SERVICES:
                continue
            payload = flags["--payload"]
            if payload.startswith('{"Concat"'):
                payload = "".join(json.loads(payload)["Concat"])
            values = _values(component, task)
            for parameter, value in values.items():
                payload = payload.replace(f"{{{{$.inputs.parameters['{parameter}']}}}}", value)
            kind = SERVICES[flags["--type"]]
            yield name, kind(json_format.ParseDict(_without_empty(json.loads(payload)), kind.pb(kind())))


def _values(component: pipeline_spec_pb2.ComponentSpec, task: pipeline_spec_pb2.PipelineTaskSpec) -> dict[str, str]:
    """The task's inputs as they are put into a payload: strings bare, anything else as JSON."""
    found: dict[str, Any] = {
        name: json_format.MessageToDict(one.default_value)
        for name, one in component.input_definitions.parameters.items()
    }
    for name, one in task.inputs.parameters.items():
        constant = one.WhichOneof("kind") == "runtime_value"
        found[name] = json_format.MessageToDict(one.runtime_value.constant) if constant else OF_OTHER_TASKS.get(name)
    return {name: value if isinstance(value, str) else json.dumps(_whole(value)) for name, value in found.items()}


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_empty(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_empty(one) for one in value]
    if not isinstance(value, dict):
        return value
    cleaned = {key: _without_empty(one) for key, one in value.items()}
    return {key: one for key, one in cleaned.items() if one not in ("", None, {}, [])}


def test_a_dataflow_job_starts_when_the_one_before_has_ended(compiled):
    spec = spec_of(compiled["prod"]["bootstrap"])
    (loop,) = [one.dag for one in spec.components.values() if "dataflow-flex-template" in one.dag.tasks]
    suffixes = ("", "-2", "-3")
    launched = [loop.tasks[f"dataflow-flex-template{suffix}"] for suffix in suffixes]
    names = [task.inputs.parameters["job_name"].runtime_value.constant.string_value for task in launched]
    assert [name.partition("-{{")[0] for name in names] == [f"bandit-{job.replace('_', '-')}" for job in JOBS]
    assert not launched[0].dependent_tasks
    for task, before in zip(launched[1:], suffixes, strict=False):
        assert list(task.dependent_tasks) == [f"wait-gcp-resources{before}"]
