"""Every pipeline in every environment: it compiles, the same bytes each time, and its parameters are checked."""

import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from google.cloud import dataflow_v1beta3
from google.cloud.aiplatform_v1 import types
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from beam_jobs import export_trajectories, generate_movielens, ingest_events
from contracts.errors import InputError
from contracts.windows import TrainingWindow
from orchestration.cloud import configuration
from orchestration.pipelines import components, definitions, tasks
from orchestration.pipelines.plan import GeneratedLog, Plan, WindowSettings

TEMPLATES = Path(__file__).parents[3] / "templates"
CONFIGURATIONS = configuration.names()
JOBS = {
    "generate_movielens": generate_movielens,
    "ingest_events": ingest_events,
    "export_trajectories": export_trajectories,
}


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
    assert spec.pipeline_info.name == pipeline
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
    wanted = [*WindowSettings.__struct_fields__, *(GeneratedLog.__struct_fields__ if pipeline == "bootstrap" else ())]
    assert {key: given[key] for key in wanted} == {key: f"pipelinechannel--{key}" for key in wanted}


def test_a_plan_holds_the_settings_under_their_own_names(tmp_path, monkeypatch):
    settings = {
        "window_seconds": 60.0,
        "reward_window_seconds": 7.0,
        "settle_seconds": 3.0,
        "missing_reward": "default",
        "default_reward": -1.0,
        "holdback_share": 0.25,
    }
    generated = {
        "ratings": "sample",
        "num_decisions": 100,
        "num_actions": 10,
        "rank": 5,
        "reward_noise": 0.5,
        "no_reward_probability": 0.05,
        "seed": 9,
    }
    root = str(tmp_path)
    plan = msgspec.json.decode(components.resolve_bootstrap(root, "r", **settings, **generated), type=Plan)
    assert msgspec.structs.asdict(plan.settings) == settings
    assert plan.generated is not None
    assert msgspec.structs.asdict(plan.generated) == generated

    # A retraining's plan takes a champion and windows; what it is asked for is enough here.
    asked = []
    monkeypatch.setattr(tasks, "resolve_retrain", lambda *arguments: asked.append(arguments))
    components.resolve_retrain(root, "r", "", "", **settings)
    assert asked == [(root, "r", plan.settings, "", "")]


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
    assert [name.partition("-{{")[0] for name in names] == [job.replace("_", "-") for job in JOBS]
    assert not launched[0].dependent_tasks
    for task, before in zip(launched[1:], suffixes, strict=False):
        assert list(task.dependent_tasks) == [f"wait-gcp-resources{before}"]


def test_dataflow_is_given_flags_that_the_jobs_have(tmp_path):
    start = datetime(2026, 1, 1, tzinfo=UTC)
    window = TrainingWindow(start, start + timedelta(hours=1))
    made = Plan(
        root=str(tmp_path),
        run_id="r",
        champion=None,
        windows=[window],
        settings=WindowSettings(3600.0, 120.0, 60.0, "drop", default_reward=0.0, holdback_share=0.1),
        generated=GeneratedLog("sample", 100, 10, 5, 0.5, no_reward_probability=0.05, seed=0),
    )
    plan = msgspec.json.encode(made).decode()
    (told,) = tasks.bootstrap_jobs(plan, "gs://b/f", "bigquery:films.recommender")
    (again,) = tasks.export_jobs(plan, "gs://b/f", "bigquery:films.recommender")
    assert again["export_trajectories"] == told["export_trajectories"]
    assert (told["ingest_events"]["observation_dim"], told["ingest_events"]["num_actions"]) == ("5", "10")
    assert set(told) == set(JOBS)
    for job, parameters in told.items():
        metadata = json.loads((TEMPLATES / f"{job}.json").read_text())
        known = {parameter["name"]: parameter for parameter in metadata["parameters"]}
        assert {name for name, one in known.items() if not one.get("isOptional")} <= set(parameters) <= set(known)
        for name, value in parameters.items():
            assert all(re.fullmatch(regex, value) for regex in known[name].get("regexes", [])), (job, name, value)
        JOBS[job].parser().parse_with_beam([f"--{name}={value}" for name, value in parameters.items()])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "shared.root = 'r'\n[retrain]\nwindw_seconds = 1.0",
            "retrain.windw_seconds: retrain has no such parameter; it has: root, until",
        ),
        (
            "shared.root = 'r'\nshared.windw_seconds = 1.0",
            "shared.windw_seconds: no pipeline has such a parameter; they have: algorithm",
        ),
        ("shared.root = 'r'\n[bootstrap]\nnum_actions = 2.5", "bootstrap.num_actions must be of type int, got 2.5"),
        ("shared.root = 'r'\n[bootstrap]\nratings = 3", "bootstrap.ratings must be of type str, got 3"),
        ("shared.root = 'r'\n[tune]\nhyperparameters = 0.1", "tune.hyperparameters: tune has no such parameter"),
        (
            "shared.root = 'r'\n[retrain]\nhyperparameters = 0.1",
            "retrain.hyperparameters must be of type dict, got 0.1",
        ),
        ("shared.root = 'r'\n[retrain]\nepsilon = true", "retrain.epsilon must be of type float, got True"),
        ("shared.root = 'r'\n[retrain]\ndefault_reward = nan", "retrain.default_reward must be finite, got nan"),
        ("shared.root = 'r'\n[retrain]\ncanary_share = 20", "retrain.canary_share must be from 0 to 1, got 20.0"),
        ("shared.root = 'r'\nshared.window_seconds = 0", "bootstrap.window_seconds must be above 0, got 0.0"),
        ("shared.root = 'r'\n[tune]\ntrials = -1", "tune.trials must be above 0, got -1"),
        ("shared.root = 'r'\n[tune]\nalpha = -0.5", "tune.alpha must not be negative, got -0.5"),
        ("shared.root = 'r'\n[tune]\nmissing_reward = 'x'", "tune.missing_reward must be default or drop, got x"),
        ("shared.root = 'r'\n[tune]\nuntil = 'noon'", "tune.until must be a moment with its time zone, as 2026"),
        ("", "bootstrap.root is missing: bootstrap cannot do without"),
    ],
)
def test_a_wrong_parameter_is_one_line(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(f"backend = 'local'\n{text}")
    with pytest.raises(InputError) as raised:
        definitions.check(configuration.load(str(path)))
    assert str(raised.value).startswith(f"c.toml: {message}")


def test_whole_numbers_stand_for_floats():
    found = definitions.parameters("retrain", configuration.load("local"), {"canary_seconds": "3"})
    assert found["canary_seconds"] == 3.0
    assert isinstance(found["canary_seconds"], float)
    told = {"hyperparameters": '{"tikhonov": 1}'}
    assert definitions.parameters("retrain", configuration.load("local"), told)["hyperparameters"] == {"tikhonov": 1}
