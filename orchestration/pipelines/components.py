"""The pipelines' components. Each only calls a task, because KFP copies a component's source into the compiled YAML.

KFP makes a component's inputs from the function's parameters; settings travel as dictionaries, which the task turns into
their struct. The functions run in the image `orchestration`, which holds this package and KFP. A new step takes a
function in one of the task modules, a function here, and its call in `orchestration.pipelines.definitions`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from kfp import dsl


def resolve_bootstrap(root: str, run_id: str, windows: dict, generated: dict) -> str:
    """The plan of a first training."""
    from orchestration.pipelines import window_tasks

    return window_tasks.resolve_bootstrap(root, run_id, windows, generated)


def resolve_retrain(root: str, run_id: str, windows: dict, until: str, vertex: str) -> str:
    """The plan of a retraining."""
    from orchestration.pipelines import window_tasks

    return window_tasks.resolve_retrain(root, run_id, windows, until, vertex)


def generate(plan: str) -> str:
    """Decisions of a uniform policy."""
    from orchestration.pipelines import window_tasks

    return window_tasks.generate(plan)


def export_windows(plan: str) -> str:
    """Exports the plan's windows: "exported" or "nothing new"."""
    from orchestration.pipelines import window_tasks

    return window_tasks.export_windows(plan)


def bootstrap_jobs(plan: str, root_uri: str, warehouse: str) -> list[dict[str, dict[str, str]]]:
    """The parameters of the Dataflow jobs of a bootstrap, by template, for each window."""
    from orchestration.pipelines import window_tasks

    return window_tasks.bootstrap_jobs(plan, root_uri, warehouse)


def export_jobs(plan: str, root_uri: str, warehouse: str, watermark: str) -> list[dict[str, dict[str, str]]]:
    """The parameters of the Dataflow job that exports a window, for each window."""
    from orchestration.pipelines import window_tasks

    return window_tasks.export_jobs(plan, root_uri, warehouse, watermark)


def run_jobs(plan: str, jobs: list) -> list:
    """Runs the Beam jobs of each window on this machine, with the parameters of their Dataflow templates."""
    from orchestration.pipelines import window_tasks

    return window_tasks.run_jobs(plan, jobs)


def exported(plan: str, jobs: list) -> str:
    """Whether the plan's windows, exported by `jobs`, have decisions: "exported" or "nothing new"."""
    from orchestration.pipelines import window_tasks

    return window_tasks.exported(plan)


def audit(plan: str, exported: str, warehouse: str) -> str:
    """Audits the plan's windows before anything is trained on them: `exported`, or "held"."""
    from orchestration.pipelines import window_tasks

    return window_tasks.audit(plan, exported, warehouse)


def watch(plan: str, exported: str, warehouse: str, vertex: str) -> str:
    """Watches the version on probation: `exported`, or "rolled back"."""
    from orchestration.pipelines import probation_tasks

    return probation_tasks.watch(plan, exported, warehouse, vertex)


def train(plan: str, algorithm: str, hyperparameters: dict, exploration: dict, fresh: bool) -> str:
    """Trains the champion's next update, or a policy from scratch: its version."""
    from orchestration.pipelines import training_tasks

    return training_tasks.train(plan, algorithm, hyperparameters, exploration, fresh)


def search(plan: str, algorithm: str, budget: dict) -> dict:
    """The best hyperparameters of a search on this machine."""
    from orchestration.pipelines import training_tasks

    return training_tasks.search(plan, algorithm, budget)


def study(
    plan: str,
    algorithm: str,
    budget: dict,
    root_uri: str,
    image: str,
    machine_type: str,
) -> NamedTuple("Study", pools=list, parameters=list, trials=int):  # type: ignore[valid-type]
    """A tuning study on Vertex AI: worker pool, parameters and number of trials."""
    from orchestration.pipelines import training_tasks

    return training_tasks.study(plan, algorithm, budget, root_uri, image, machine_type)


def best_trial(plan: str, gcp_resources: str, vertex: str) -> dict:
    """The hyperparameters of the best trial of a tuning job."""
    from orchestration.pipelines import training_tasks

    return training_tasks.best_trial(plan, gcp_resources, vertex)


def evaluate(plan: str, candidate: str, canary: dict, warehouse: str) -> str:
    """Compares candidate and champion: the gate's result."""
    from orchestration.pipelines import training_tasks

    return training_tasks.evaluate(plan, candidate, canary, warehouse)


def gate(plan: str, candidate: str, result: str) -> str:
    """Whether the candidate goes on: "promote" or "keep"."""
    from orchestration.pipelines import training_tasks

    return training_tasks.gate(plan, candidate, result)


def register(plan: str, candidate: str, result: str, vertex: str) -> str:
    """Registers the candidate with the gate's estimate."""
    from orchestration.pipelines import rollout_tasks

    return rollout_tasks.register(plan, candidate, result, vertex)


def try_out(plan: str, candidate: str, result: str, canary: dict, warehouse: str, vertex: str) -> str:
    """Canary: "promote" or "withdraw"."""
    from orchestration.pipelines import rollout_tasks

    return rollout_tasks.try_out(plan, candidate, result, canary, warehouse, vertex)


def promote(plan: str, candidate: str, result: str, canary: dict, warehouse: str, endpoint: str, vertex: str) -> str:
    """Makes the candidate the champion, on probation or alone."""
    from orchestration.pipelines import rollout_tasks

    return rollout_tasks.promote(plan, candidate, result, canary, warehouse, endpoint, vertex)


def withdraw(plan: str, candidate: str, vertex: str) -> str:
    """Ends the canary."""
    from orchestration.pipelines import rollout_tasks

    return rollout_tasks.withdraw(plan, candidate, vertex)


def report_outcome(root: str, run_id: str, pipeline: str, vertex: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """The exit handler: promoted, refused, rolled back, nothing new or failed, and why."""
    from orchestration.pipelines import rollout_tasks

    rollout_tasks.report_outcome(root, run_id, pipeline, vertex, status.state, status.error_message or "")


def make(function: Callable[..., Any], image: str) -> Any:
    """The component of `function`, which runs in `image` (KFP is installed there)."""
    return dsl.component(func=function, base_image=image, install_kfp_package=False)
