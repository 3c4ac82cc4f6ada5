"""The pipelines: bootstrap, retrain and tune. One shape for every backend, on KFP.

    bootstrap  generate → export → train → evaluate → gate → register → promote
    retrain    resolve the ready windows → export → train, warm → evaluate → gate → register → canary → promote or withdraw
    tune       resolve → export → search hyperparameters → train afresh with the best → on as in retrain

Backends differ in the long work alone. `gcp` takes the Google Cloud components: Dataflow flex templates for the Beam jobs,
a CustomJob for training. `emulators` runs the same jobs with the same parameters on this machine, `local` within the steps
on the embedded event log and warehouse. Whatever happens, an exit handler reports what
came of the run. A gate returns one value, because a named output in a lone condition is silently false in KFP's local
runner.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from kfp import compiler, dsl
from msgspec.structs import asdict

from contracts.command_line import parse_time
from contracts.errors import InputError
from orchestration.cloud.configuration import PIPELINES, Cloud, Configuration, Value
from orchestration.cloud.place import Place
from orchestration.pipelines import components
from orchestration.pipelines.plan import GeneratedLog, WindowSettings

PARAMETER_TYPES: dict[str, type] = {
    "String": str,
    "Integer": int,
    "Float": float,
    "Boolean": bool,
    "List": list,
    "Dict": dict,
}
# The ranges of parameters.
SHARES = {"holdback_share", "no_reward_probability", "epsilon", "canary_share"}
POSITIVE = {"num_decisions", "num_actions", "rank", "window_seconds", "trials"}
NOT_NEGATIVE = {
    "reward_noise", "seed", "reward_window_seconds", "settle_seconds", "alpha", "canary_decisions", "canary_seconds",
}  # fmt: skip
LOCAL_IMAGE = "python:3.11"  # stands in the YAML; local runs take this interpreter


class Steps:
    """The components of one environment, and the constants that they take from it."""

    def __init__(self, configuration: Configuration) -> None:
        self.cloud = configuration.cloud
        image = self.cloud.image("orchestration") if self.cloud else LOCAL_IMAGE
        self.vertex = msgspec.json.encode(place(self.cloud)).decode() if self.cloud else ""
        self.warehouse = configuration.warehouse

        def component(function: Callable[..., Any]) -> Any:
            return _fresh(components.make(function, image))

        self.resolve_bootstrap = component(components.resolve_bootstrap)
        self.resolve_retrain = component(components.resolve_retrain)
        self.generate = component(components.generate)
        self.export_windows = component(components.export_windows)
        self.bootstrap_jobs = component(components.bootstrap_jobs)
        self.export_jobs = component(components.export_jobs)
        self.run_jobs = component(components.run_jobs)
        self.exported = component(components.exported)
        self.train = _fresh(self._long(components.make(components.train, image), "train"))
        self.search = component(components.search)
        self.trial_pools = component(components.trial_pools)
        self.best_trial = component(components.best_trial)
        self.evaluate = component(components.evaluate)
        self.gate = component(components.gate)
        self.register = component(components.register)
        self.try_out = component(components.try_out)
        self.promote = component(components.promote)
        self.withdraw = component(components.withdraw)
        self.report_outcome = component(components.report_outcome)

    def _long(self, component: Any, name: str) -> Any:
        """In the cloud, a CustomJob with a machine of its own."""
        if self.cloud is None:
            return component
        from google_cloud_pipeline_components.v1.custom_job import create_custom_training_job_from_component

        return create_custom_training_job_from_component(
            component,
            display_name=name,
            machine_type=self.cloud.training_machine_type,
            service_account=self.cloud.account("trainer"),
        )

    @contextmanager
    def reported(self, pipeline: str, root: Any) -> Iterator[str]:
        """Whatever happens inside, an exit handler reports what came of the run. Gives the run's id."""
        run_id = dsl.PIPELINE_JOB_NAME_PLACEHOLDER
        last = self.report_outcome(root=root, run_id=run_id, pipeline=pipeline, vertex=self.vertex)
        with dsl.ExitHandler(last, name="run"):
            yield run_id

    def generate_and_export(self, plan: Any, root: Any) -> Any:
        """The decisions of a bootstrap, and its window."""
        if not self.warehouse:
            return self.export_windows(plan=self.generate(plan=plan.output).output)
        jobs = self.bootstrap_jobs(plan=plan.output, root_uri=self.root_uri(root), warehouse=self.warehouse)
        ended = self.run(plan, jobs, "generate_movielens", "ingest_events", "export_trajectories")
        return self.exported(plan=plan.output, jobs=ended)

    def export(self, plan: Any, root: Any) -> Any:
        """The windows of the plan."""
        if not self.warehouse:
            return self.export_windows(plan=plan.output)
        jobs = self.export_jobs(plan=plan.output, root_uri=self.root_uri(root), warehouse=self.warehouse)
        return self.exported(plan=plan.output, jobs=self.run(plan, jobs, "export_trajectories"))

    def run(self, plan: Any, jobs: Any, *names: str) -> Any:
        """The Beam jobs `names` of each window in `jobs`, in this order: on Dataflow, or here. Gives what has ended."""
        if self.cloud is None:
            # Not in a loop: within one, KFP's local runner takes the loop's item for every other input too.
            return self.run_jobs(plan=plan.output, jobs=jobs.output).output
        with dsl.ParallelFor(items=jobs.output, name="windows") as job:
            ended = self._dataflow(names[0], getattr(job, names[0]))
            for name in names[1:]:
                ended = self._dataflow(name, getattr(job, name), after=ended)
        return dsl.Collected(ended.outputs["gcp_resources"])

    def root_uri(self, root: Any) -> Any:
        """The root as the jobs take it."""
        return self.cloud.root_uri if self.cloud else root

    def _dataflow(self, template: str, parameters: Any, after: Any = None) -> Any:
        """A Dataflow job from the flex template of a Beam job, until it has ended; started once `after` has."""
        from google_cloud_pipeline_components.v1.dataflow import DataflowFlexTemplateJobOp
        from google_cloud_pipeline_components.v1.wait_gcp_resources import WaitGcpResourcesOp

        assert self.cloud is not None
        launched = _fresh(DataflowFlexTemplateJobOp)(
            container_spec_gcs_path=f"{self.cloud.template_folder}/{template}.json",
            location=self.cloud.location,
            # Two jobs of one name cannot run at a time; a task's id is its own.
            job_name=f"{template.replace('_', '-')}-{dsl.PIPELINE_TASK_ID_PLACEHOLDER}",
            parameters=parameters,
            max_workers=self.cloud.max_workers,
            service_account_email=self.cloud.account("dataflow"),
            sdk_container_image=self.cloud.image(template),  # launcher and worker are one image
            temp_location=f"{self.cloud.root_uri}/temp",
        )
        if after is not None:
            launched.after(after)
        return _fresh(WaitGcpResourcesOp)(gcp_resources=launched.outputs["gcp_resources"])

    def find_best(self, plan: Any, after: Any, algorithm: Any, trials: Any, seed: Any) -> Any:
        """The best hyperparameters: of a tuning job in the cloud, else of a search within the step."""
        if self.cloud is None:
            found = self.search(plan=plan.output, algorithm=algorithm, trials=trials, seed=seed).after(after)
            return found.output
        from google_cloud_pipeline_components.v1 import hyperparameter_tuning_job as job

        pools = self.trial_pools(
            plan=plan.output,
            root_uri=self.cloud.root_uri,
            image=self.cloud.image("orchestration"),
            machine_type=self.cloud.training_machine_type,
            algorithm=algorithm,
        ).after(after)
        tuned = _fresh(job.HyperparameterTuningJobRunOp)(
            display_name="tune",
            location=self.cloud.location,
            base_output_directory=f"{self.cloud.root_uri}/studies",
            worker_pool_specs=pools.output,
            study_spec_metrics=job.serialize_metrics({"reward": "maximize"}),
            study_spec_parameters=study_parameters(),
            max_trial_count=trials,
            parallel_trial_count=self.cloud.parallel_trials,
            service_account=self.cloud.account("trainer"),
        )
        best = self.best_trial(plan=plan.output, gcp_resources=tuned.outputs["gcp_resources"], vertex=self.vertex)
        return best.output


def study_parameters() -> list[dict[str, Any]]:
    """What a tuning job tries: flags of the trainer, in ranges as `trainer.tune` searches them on one machine."""
    from google.cloud.aiplatform import hyperparameter_tuning as tuning
    from google_cloud_pipeline_components.v1 import hyperparameter_tuning_job as job

    serialized: list[dict[str, Any]] = job.serialize_parameters(
        {
            "tikhonov": tuning.DoubleParameterSpec(min=0.01, max=100, scale="log"),
            "half-life": tuning.DiscreteParameterSpec(values=[0, 4, 16], scale=None),
        }
    )
    return serialized


def _fresh(component: Any) -> Callable[..., Any]:
    """The component with every task of it run anew: what a step finds in the stores is not among its inputs."""

    def task(**inputs: Any) -> Any:
        return component(**inputs).set_caching_options(False)

    return task


def place(cloud: Cloud) -> Place:
    """Where `orchestration.cloud.vertex` works in this environment."""
    return Place(
        project=cloud.project,
        location=cloud.location,
        endpoint=cloud.name,
        policies=f"{cloud.root_uri}/policies",
        image=cloud.image("predictor"),
        topic=cloud.topic,
        machine_type=cloud.machine_type,
        min_replicas=cloud.min_replicas,
        max_replicas=cloud.max_replicas,
        service_account=cloud.account("predictor"),
        pipelines_account=cloud.account("pipelines"),
        staging_bucket=cloud.root_uri,
        api_endpoint=cloud.api_endpoint,
    )


def build(name: str, configuration: Configuration) -> Any:
    """The pipeline `name` for an environment. Raises InputError for a name that there is not."""
    builders = {"bootstrap": _bootstrap, "retrain": _retrain, "tune": _tune}
    if name not in builders:
        raise InputError(f"no pipeline {name!r}; there are: {', '.join(PIPELINES)}")
    return builders[name](Steps(configuration))


def _bootstrap(steps: Steps) -> Any:
    @dsl.pipeline(name="bootstrap", description="The first policy, from decisions of a uniform one.")
    def bootstrap(
        root: str,
        ratings: str = "sample",
        num_decisions: int = 2000,
        num_actions: int = 100,
        rank: int = 20,
        reward_noise: float = 0.5,
        no_reward_probability: float = 0.05,
        seed: int = 0,
        window_seconds: float = 5.0,
        reward_window_seconds: float = 2.0,
        settle_seconds: float = 1.0,
        missing_reward: str = "drop",
        default_reward: float = 0.0,
        holdback_share: float = 0.1,
        algorithm: str = "lin_ucb",
        hyperparameters: dict = {"tikhonov": 0.3},  # noqa: B006 - KFP takes it as a constant
        exploration: str = "ucb",
        epsilon: float = 0.02,
        alpha: float = 0.2,
        endpoint: str = "",
    ) -> None:
        with steps.reported("bootstrap", root) as run_id:
            settings = WindowSettings(
                window_seconds, reward_window_seconds, settle_seconds, missing_reward, default_reward, holdback_share
            )
            generated = GeneratedLog(
                ratings, num_decisions, num_actions, rank, reward_noise, no_reward_probability, seed
            )
            plan = steps.resolve_bootstrap(root=root, run_id=run_id, **asdict(settings), **asdict(generated))
            exported = steps.generate_and_export(plan, root)
            with dsl.If(exported.output == "exported", name="exported"):
                candidate = _train(steps, plan, algorithm, hyperparameters, exploration, epsilon, alpha, fresh=False)
                with _accepted(steps, plan, candidate) as accepted:
                    _promote(steps, plan, accepted, endpoint)

    return bootstrap


def _retrain(steps: Steps) -> Any:
    @dsl.pipeline(name="retrain", description="The champion's next update, from the windows it has not seen.")
    def retrain(
        root: str,
        until: str = "",
        window_seconds: float = 5.0,
        reward_window_seconds: float = 2.0,
        settle_seconds: float = 1.0,
        missing_reward: str = "drop",
        default_reward: float = 0.0,
        holdback_share: float = 0.1,
        algorithm: str = "lin_ucb",
        hyperparameters: dict = {"tikhonov": 0.3},  # noqa: B006 - KFP takes it as a constant
        exploration: str = "ucb",
        epsilon: float = 0.02,
        alpha: float = 0.2,
        canary_share: float = 0.1,
        canary_decisions: int = 200,
        canary_seconds: float = 30.0,
        endpoint: str = "",
    ) -> None:
        with steps.reported("retrain", root) as run_id:
            settings = WindowSettings(
                window_seconds, reward_window_seconds, settle_seconds, missing_reward, default_reward, holdback_share
            )
            plan, exported = _resolve_and_export(steps, root, run_id, until, settings)
            with dsl.If(exported.output == "exported", name="exported"):
                candidate = _train(steps, plan, algorithm, hyperparameters, exploration, epsilon, alpha, fresh=False)
                _judge_and_roll_out(steps, plan, candidate, canary_share, canary_decisions, canary_seconds, endpoint)

    return retrain


def _tune(steps: Steps) -> Any:
    @dsl.pipeline(name="tune", description="The best hyperparameters found, trained afresh, against the champion.")
    def tune(
        root: str,
        until: str = "",
        window_seconds: float = 5.0,
        reward_window_seconds: float = 2.0,
        settle_seconds: float = 1.0,
        missing_reward: str = "drop",
        default_reward: float = 0.0,
        holdback_share: float = 0.1,
        algorithm: str = "lin_ucb",
        exploration: str = "ucb",
        epsilon: float = 0.02,
        alpha: float = 0.2,
        trials: int = 20,
        seed: int = 0,
        canary_share: float = 0.1,
        canary_decisions: int = 200,
        canary_seconds: float = 30.0,
        endpoint: str = "",
    ) -> None:
        with steps.reported("tune", root) as run_id:
            settings = WindowSettings(
                window_seconds, reward_window_seconds, settle_seconds, missing_reward, default_reward, holdback_share
            )
            # Windows that are exported already are enough to tune on, so whether there are new ones does not matter.
            plan, exported = _resolve_and_export(steps, root, run_id, until, settings)
            found = steps.find_best(plan, exported, algorithm, trials, seed)
            candidate = _train(steps, plan, algorithm, found, exploration, epsilon, alpha, fresh=True)
            _judge_and_roll_out(steps, plan, candidate, canary_share, canary_decisions, canary_seconds, endpoint)

    return tune


def _resolve_and_export(steps: Steps, root: Any, run_id: str, until: Any, settings: WindowSettings) -> tuple[Any, Any]:
    """The tasks that make the plan and export its windows."""
    plan = steps.resolve_retrain(root=root, run_id=run_id, until=until, vertex=steps.vertex, **asdict(settings))
    return plan, steps.export(plan, root)


def _train(
    steps: Steps,
    plan: Any,
    algorithm: Any,
    hyperparameters: Any,
    exploration: Any,
    epsilon: Any,
    alpha: Any,
    *,
    fresh: bool,
) -> Any:
    """Gives the candidate's version: the output `Output`, beside which a CustomJob has others."""
    candidate = steps.train(
        plan=plan.output,
        algorithm=algorithm,
        hyperparameters=hyperparameters,
        exploration=exploration,
        epsilon=epsilon,
        alpha=alpha,
        fresh=fresh,
    )
    return candidate.outputs["Output"]


class _Accepted(NamedTuple):
    """A candidate that the gate let through and that is registered."""

    candidate: Any
    result: Any  # of the gate


@contextmanager
def _accepted(steps: Steps, plan: Any, candidate: Any) -> Iterator[_Accepted]:
    """Evaluate → gate → register; what is inside runs if the candidate got so far."""
    judged = steps.evaluate(plan=plan.output, candidate=candidate)
    passed = steps.gate(plan=plan.output, candidate=candidate, result=judged.output)
    with dsl.If(passed.output == "promote", name="passed"):
        registered = steps.register(plan=plan.output, candidate=candidate, result=judged.output, vertex=steps.vertex)
        yield _Accepted(registered.output, judged.output)


def _promote(steps: Steps, plan: Any, accepted: _Accepted, endpoint: Any) -> None:
    steps.promote(
        plan=plan.output,
        candidate=accepted.candidate,
        result=accepted.result,
        endpoint=endpoint,
        vertex=steps.vertex,
    )


def _judge_and_roll_out(
    steps: Steps, plan: Any, candidate: Any, share: Any, decisions: Any, seconds: Any, endpoint: Any
) -> None:
    """Evaluate → gate → register → canary → promote or withdraw."""
    with _accepted(steps, plan, candidate) as accepted:
        tried = steps.try_out(
            plan=plan.output,
            candidate=accepted.candidate,
            share=share,
            decisions=decisions,
            seconds=seconds,
            warehouse=steps.warehouse,
            vertex=steps.vertex,
        )
        with dsl.If(tried.output == "promote", name="proved"):
            _promote(steps, plan, accepted, endpoint)
        with dsl.Else(name="disproved"):
            steps.withdraw(plan=plan.output, candidate=accepted.candidate, vertex=steps.vertex)


def signature(pipeline: Any) -> dict[str, tuple[type, bool]]:
    """The parameters of a pipeline: their type, and whether they must be given."""
    found: dict[str, tuple[type, bool]] = {}
    for name, definition in pipeline.component_spec.inputs.items():
        found[name] = (PARAMETER_TYPES[definition.type], not definition.optional)
    return found


def parameters(
    name: str, configuration: Configuration, given: dict[str, str] | None = None, pipeline: Any = None
) -> dict[str, Value]:
    """The parameters with which an environment runs a pipeline; `given` ones (as text) take precedence.

    Raises InputError for a parameter that the pipeline has not, that has another type or is not finite, or that is
    missing.
    """
    known = signature(pipeline if pipeline is not None else build(name, configuration))
    values: dict[str, Value] = {key: value for key, value in configuration.shared.items() if key in known}
    for key, value in configuration.own.get(name, {}).items():
        _check_known(f"{configuration.name}: {name}.{key}", name, key, known)
        values[key] = value
    for key, text in (given or {}).items():
        _check_known(f"--set {key}", name, key, known)
        values[key] = _parse(f"--set {key}", text, known[key][0])
    if configuration.cloud is not None and "root" in known:
        values.setdefault("root", configuration.cloud.root)
    for key, value in values.items():
        kind = known[key][0]
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{configuration.name}: {name}.{key} must be of type {kind.__name__}, got {value!r}")
        if kind is float:
            values[key] = number = float(value)  # type: ignore[arg-type]
            if not math.isfinite(number):  # KFP has no way to pass it on
                raise InputError(f"{configuration.name}: {name}.{key} must be finite, got {number}")
        _check_range(f"{configuration.name}: {name}.{key}", key, values[key])
    for key, (_, required) in known.items():
        if required and key not in values:
            raise InputError(f"{configuration.name}: {name}.{key} is missing: {name} cannot do without")
    return values


def check(configuration: Configuration) -> dict[str, str]:
    """Checks an environment against every pipeline, and compiles each. Returns the YAML by pipeline. Raises InputError."""
    built = {name: build(name, configuration) for name in PIPELINES}
    signatures = {name: signature(pipeline) for name, pipeline in built.items()}
    for key in configuration.shared:
        if not any(key in known for known in signatures.values()):
            every = sorted({name for known in signatures.values() for name in known})
            raise InputError(
                f"{configuration.name}: shared.{key}: no pipeline has such a parameter; they have: {', '.join(every)}"
            )
    for name, pipeline in built.items():
        parameters(name, configuration, pipeline=pipeline)
    return {name: compiled(pipeline) for name, pipeline in built.items()}


def compiled(pipeline: Any) -> str:
    """The pipeline as YAML: the same bytes for the same pipeline."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        return path.read_text()


def _check_range(where: str, key: str, value: Value) -> None:
    """What a run would only find out after it has trained for money."""
    if key in SHARES and not 0 <= value <= 1:  # type: ignore[operator]  # a number, by its type
        raise InputError(f"{where} must be from 0 to 1, got {value}")
    if key in POSITIVE and not value > 0:  # type: ignore[operator]
        raise InputError(f"{where} must be above 0, got {value}")
    if key in NOT_NEGATIVE and not value >= 0:  # type: ignore[operator]
        raise InputError(f"{where} must not be negative, got {value}")
    if key == "missing_reward" and value not in ("default", "drop"):
        raise InputError(f"{where} must be default or drop, got {value}")
    if key == "until" and value:
        parse_time(str(value), where)


def _check_known(where: str, pipeline: str, key: str, known: dict[str, tuple[type, bool]]) -> None:
    if key not in known:
        raise InputError(f"{where}: {pipeline} has no such parameter; it has: {', '.join(known)}")


def _parse(where: str, text: str, kind: type) -> Value:
    try:
        if kind is dict:
            parsed: dict[str, Any] = msgspec.json.decode(text, type=dict)
            return parsed
        if kind is list:
            return [float(part) for part in re.split(r"[,\s]+", text.strip("[] ")) if part]
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value: Value = kind(text)
    except (KeyError, ValueError):  # msgspec's errors are ValueErrors
        raise InputError(f"{where} must be of type {kind.__name__}, got {text!r}") from None
    return value
