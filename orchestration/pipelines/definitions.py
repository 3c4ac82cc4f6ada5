"""The pipelines on KFP: bootstrap, retrain and tune, in one shape for every environment.

    bootstrap  generate → export → train → evaluate → gate → register → promote
    retrain    resolve the ready windows → export → audit → watch what is on probation → train, warm → evaluate → gate
               → register → canary → promote or withdraw
    tune       resolve → export → search hyperparameters → train afresh with the best → then as retrain

`orchestration.pipelines.environment` places the long work, and adds the exit handler that reports the outcome of every
run. A gate returns one value, because KFP's local runner silently takes a named output in a lone condition for false.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kfp import compiler, dsl

from contracts.errors import InputError
from orchestration.cloud.configuration import PIPELINES, Configuration
from orchestration.pipelines import components, parameters
from orchestration.pipelines.environment import Environment
from orchestration.pipelines.parameters import DEFAULTS

HYPERPARAMETERS = {"tikhonov": 0.3}


def build(name: str, configuration: Configuration) -> Any:
    """The pipeline `name` for an environment. Raises InputError for an unknown name."""
    builders = {"bootstrap": _bootstrap, "retrain": _retrain, "tune": _tune}
    if name not in builders:
        raise InputError(f"pipeline: one of {', '.join(PIPELINES)}, got {name!r}")
    return builders[name](Environment(configuration))


def check(configuration: Configuration) -> dict[str, str]:
    """Checks an environment against every pipeline, and returns the compiled YAML by pipeline. Raises InputError."""
    built = {name: build(name, configuration) for name in PIPELINES}
    every = {key for pipeline in built.values() for key in parameters.signature(pipeline)}
    for key in configuration.shared:
        if key not in every:
            raise InputError(
                f"{configuration.name}: shared.{key}: no pipeline has such a parameter; they have: "
                f"{', '.join(sorted(every))}"
            )
    for pipeline in built.values():
        parameters.values(pipeline, configuration)
    return {name: compiled(pipeline) for name, pipeline in built.items()}


def compiled(pipeline: Any) -> str:
    """The pipeline as YAML: the same bytes for the same pipeline."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        # KFP's comment at the top shows a struct's default in an order that differs between processes.
        return re.sub(r"^(#    \w+: dict) \[Default: .*\]$", r"\1", path.read_text(), flags=re.MULTILINE)


def _bootstrap(environment: Environment) -> Any:
    @dsl.pipeline(
        name=environment.pipeline_name("bootstrap"), description="The first policy, from decisions of a uniform one."
    )
    def bootstrap(
        root: str,
        generated: dict = DEFAULTS["generated"],
        windows: dict = DEFAULTS["windows"],
        algorithm: str = "lin_ucb",
        hyperparameters: dict = HYPERPARAMETERS,
        exploration: dict = DEFAULTS["exploration"],
        endpoint: str = "",
    ) -> None:
        with environment.reported("bootstrap", root) as run_id:
            plan = environment.task(
                components.resolve_bootstrap, root=root, run_id=run_id, windows=windows, generated=generated
            ).output
            exported = environment.generate_and_export(plan, root)
            with dsl.If(exported == "exported", name="exported"):
                candidate = environment.train(plan, algorithm, hyperparameters, exploration, fresh=False)
                first = _RollOut({"share": 0.0}, endpoint)  # there is nothing to try it beside
                with _accepted(environment, plan, candidate, first) as accepted:
                    _promote(environment, plan, accepted, first)

    return bootstrap


def _retrain(environment: Environment) -> Any:
    @dsl.pipeline(
        name=environment.pipeline_name("retrain"),
        description="The champion's next update, from the windows it has not seen.",
    )
    def retrain(
        root: str,
        until: str = "",
        windows: dict = DEFAULTS["windows"],
        algorithm: str = "lin_ucb",
        hyperparameters: dict = HYPERPARAMETERS,
        exploration: dict = DEFAULTS["exploration"],
        canary: dict = DEFAULTS["canary"],
        endpoint: str = "",
    ) -> None:
        with environment.reported("retrain", root) as run_id:
            plan, exported = _resolve_and_export(environment, root, run_id, until, windows)
            with dsl.If(exported == "exported", name="exported"):
                candidate = environment.train(plan, algorithm, hyperparameters, exploration, fresh=False)
                _judge_and_roll_out(environment, plan, candidate, _RollOut(canary, endpoint))

    return retrain


def _tune(environment: Environment) -> Any:
    @dsl.pipeline(
        name=environment.pipeline_name("tune"),
        description="The best hyperparameters found, trained afresh, against the champion.",
    )
    def tune(
        root: str,
        until: str = "",
        windows: dict = DEFAULTS["windows"],
        algorithm: str = "lin_ucb",
        budget: dict = DEFAULTS["budget"],
        exploration: dict = DEFAULTS["exploration"],
        canary: dict = DEFAULTS["canary"],
        endpoint: str = "",
    ) -> None:
        with environment.reported("tune", root) as run_id:
            # Also where nothing is new: windows that were exported earlier are enough to tune on.
            plan, exported = _resolve_and_export(environment, root, run_id, until, windows)
            with dsl.If(exported != "rolled back", name="kept"):
                found = environment.find_best(plan, exported, algorithm, budget)
                candidate = environment.train(plan, algorithm, found, exploration, fresh=True)
                _judge_and_roll_out(environment, plan, candidate, _RollOut(canary, endpoint))

    return tune


def _resolve_and_export(environment: Environment, root: Any, run_id: str, until: Any, windows: Any) -> tuple[Any, Any]:
    """The plan, and whether its windows were exported."""
    plan = environment.task(
        components.resolve_retrain,
        root=root,
        run_id=run_id,
        windows=windows,
        until=until,
        vertex=environment.vertex,
    ).output
    return plan, environment.export(plan, root)


class _Accepted(NamedTuple):
    """A candidate that passed the gate and is registered."""

    candidate: Any
    result: Any  # of the gate


class _RollOut(NamedTuple):
    """How a candidate is tried, and what serves it."""

    canary: Any
    endpoint: Any


@contextmanager
def _accepted(environment: Environment, plan: Any, candidate: Any, how: _RollOut) -> Iterator[_Accepted]:
    """Evaluate → gate → register; the tasks made inside run only if the candidate passed the gate."""
    judged = environment.task(
        components.evaluate, plan=plan, candidate=candidate, canary=how.canary, warehouse=environment.warehouse
    ).output
    passed = environment.task(components.gate, plan=plan, candidate=candidate, result=judged).output
    with dsl.If(passed == "promote", name="passed"):
        registered = environment.task(
            components.register, plan=plan, candidate=candidate, result=judged, vertex=environment.vertex
        )
        yield _Accepted(registered.output, judged)


def _promote(environment: Environment, plan: Any, accepted: _Accepted, how: _RollOut) -> None:
    environment.task(
        components.promote,
        plan=plan,
        candidate=accepted.candidate,
        result=accepted.result,
        canary=how.canary,
        warehouse=environment.warehouse,
        endpoint=how.endpoint,
        vertex=environment.vertex,
    )


def _judge_and_roll_out(environment: Environment, plan: Any, candidate: Any, how: _RollOut) -> None:
    """Evaluate → gate → register → canary → promote or withdraw."""
    with _accepted(environment, plan, candidate, how) as accepted:
        tried = environment.task(
            components.try_out,
            plan=plan,
            candidate=accepted.candidate,
            result=accepted.result,
            canary=how.canary,
            warehouse=environment.warehouse,
            vertex=environment.vertex,
        ).output
        with dsl.If(tried == "promote", name="proved"):
            _promote(environment, plan, accepted, how)
        with dsl.Else(name="disproved"):
            environment.task(components.withdraw, plan=plan, candidate=accepted.candidate, vertex=environment.vertex)
