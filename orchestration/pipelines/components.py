"""The pipelines' components: each does no more than call `orchestration.pipelines.tasks`, so its source can travel in YAML.

KFP takes a function's parameters as the component's inputs. The functions run in the orchestration image, which holds
this package and KFP; `make` gives them that image.
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl


def resolve_bootstrap(
    root: str,
    run_id: str,
    window_seconds: float,
    reward_window_seconds: float,
    settle_seconds: float,
    missing_reward: str,
    default_reward: float,
    holdback_share: float,
    ratings: str,
    num_decisions: int,
    num_actions: int,
    rank: int,
    reward_noise: float,
    no_reward_probability: float,
    seed: int,
) -> str:
    """The plan of a first training."""
    from orchestration.pipelines import tasks
    from orchestration.pipelines.plan import GeneratedLog, WindowSettings

    settings = WindowSettings(
        window_seconds, reward_window_seconds, settle_seconds, missing_reward, default_reward, holdback_share
    )
    generated = GeneratedLog(ratings, num_decisions, num_actions, rank, reward_noise, no_reward_probability, seed)
    return tasks.resolve_bootstrap(root, run_id, settings, generated)


def resolve_retrain(
    root: str,
    run_id: str,
    until: str,
    vertex: str,
    window_seconds: float,
    reward_window_seconds: float,
    settle_seconds: float,
    missing_reward: str,
    default_reward: float,
    holdback_share: float,
) -> str:
    """The plan of a retraining."""
    from orchestration.pipelines import tasks
    from orchestration.pipelines.plan import WindowSettings

    settings = WindowSettings(
        window_seconds, reward_window_seconds, settle_seconds, missing_reward, default_reward, holdback_share
    )
    return tasks.resolve_retrain(root, run_id, settings, until, vertex)


def generate(plan: str) -> str:
    """Decisions of a uniform policy."""
    from orchestration.pipelines import tasks

    return tasks.generate(plan)


def export_windows(plan: str) -> str:
    """Exports the plan's windows: "exported" or "nothing new"."""
    from orchestration.pipelines import tasks

    return tasks.export_windows(plan)


def bootstrap_jobs(plan: str, root_uri: str, warehouse: str) -> list[dict[str, dict[str, str]]]:
    """The parameters of the Dataflow jobs of a bootstrap, by template, for each window."""
    from orchestration.pipelines import tasks

    return tasks.bootstrap_jobs(plan, root_uri, warehouse)


def export_jobs(plan: str, root_uri: str, warehouse: str) -> list[dict[str, dict[str, str]]]:
    """The parameters of the Dataflow job that exports a window, for each window."""
    from orchestration.pipelines import tasks

    return tasks.export_jobs(plan, root_uri, warehouse)


def run_jobs(plan: str, jobs: list) -> list:
    """The Beam jobs of each window on this machine, with the parameters that Dataflow would be given."""
    from orchestration.pipelines import tasks

    return tasks.run_jobs(plan, jobs)


def exported(plan: str, jobs: list) -> str:
    """Whether the plan's windows, exported by `jobs`, hold anything new: "exported" or "nothing new"."""
    from orchestration.pipelines import tasks

    return tasks.exported(plan)


def train(
    plan: str,
    algorithm: str,
    hyperparameters: dict,
    exploration: str,
    epsilon: float,
    alpha: float,
    fresh: bool,
) -> str:
    """Trains the champion's next update, or afresh: its version."""
    from orchestration.pipelines import tasks

    return tasks.train(plan, algorithm, hyperparameters, exploration, epsilon, alpha, fresh)


def search(plan: str, algorithm: str, trials: int, seed: int) -> dict:
    """The best hyperparameters of a search here."""
    from orchestration.pipelines import tasks

    return tasks.search(plan, algorithm, trials, seed)


def trial_pools(plan: str, root_uri: str, image: str, machine_type: str, algorithm: str) -> list:
    """The worker pool of a trial on Vertex AI."""
    from orchestration.pipelines import tasks

    return tasks.trial_pools(plan, root_uri, image, machine_type, algorithm)


def best_trial(plan: str, gcp_resources: str, vertex: str) -> dict:
    """The hyperparameters of the best trial of a tuning job."""
    from orchestration.pipelines import tasks

    return tasks.best_trial(plan, gcp_resources, vertex)


def evaluate(plan: str, candidate: str) -> str:
    """Compares candidate and champion: the gate's result."""
    from orchestration.pipelines import tasks

    return tasks.evaluate(plan, candidate)


def gate(plan: str, candidate: str, result: str) -> str:
    """Whether the candidate goes on: "promote" or "keep"."""
    from orchestration.pipelines import tasks

    return tasks.gate(plan, candidate, result)


def register(plan: str, candidate: str, result: str, vertex: str) -> str:
    """Registers the candidate with what is known of it."""
    from orchestration.pipelines import tasks

    return tasks.register(plan, candidate, result, vertex)


def try_out(
    plan: str, candidate: str, share: float, decisions: int, seconds: float, warehouse: str, vertex: str
) -> str:
    """Canary: "promote" or "roll back"."""
    from orchestration.pipelines import tasks

    return tasks.try_out(plan, candidate, share, decisions, seconds, warehouse, vertex)


def promote(plan: str, candidate: str, result: str, endpoint: str, vertex: str) -> str:
    """Makes the candidate the champion."""
    from orchestration.pipelines import tasks

    return tasks.promote(plan, candidate, result, endpoint, vertex)


def withdraw(plan: str, candidate: str, vertex: str) -> str:
    """Ends the canary."""
    from orchestration.pipelines import tasks

    return tasks.withdraw(plan, candidate, vertex)


def report_outcome(root: str, run_id: str, pipeline: str, vertex: str, status: dsl.PipelineTaskFinalStatus) -> None:
    """The exit handler: promoted, refused, rolled back, nothing new or failed, and why."""
    from orchestration.pipelines import tasks

    tasks.report_outcome(root, run_id, pipeline, vertex, status.state, status.error_message or "")


def make(function: Callable[..., Any], image: str) -> Any:
    """The component of `function`, to run in `image` (which holds KFP already)."""
    return dsl.component(func=function, base_image=image, install_kfp_package=False)
