"""The steps that make a candidate and judge it on the log: search hyperparameters, train, evaluate, gate."""

from typing import Any, NamedTuple

import msgspec

from contracts import items
from contracts.command_line import build
from contracts.errors import OperationError
from contracts.features import read_spec
from contracts.policies import Exploration, Verdict
from orchestration import gate as gates
from orchestration import policy_store
from orchestration.gate import GateResult
from orchestration.pipelines import probation_tasks, runs
from orchestration.pipelines.canary import Canary
from orchestration.pipelines.parameters import TuningBudget
from orchestration.pipelines.plan import Plan, decode_plan
from orchestration.places import Places

Hyperparameters = dict[str, float | int | str | bool]


def train(plan: str, algorithm: str, hyperparameters: Hyperparameters, exploration: dict[str, Any], fresh: bool) -> str:
    """Trains the champion's next update and returns its version; the champion's own version if nothing is new.

    Args:
      plan: a `Plan` as JSON.
      algorithm: one of the trainer's.
      hyperparameters: by name; those left out take the trainer's defaults.
      exploration: the fields of an `Exploration`.
      fresh: train on all windows from scratch instead, as other hyperparameters may require.
    """
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "train") as record:
        from orchestration.audit import guard
        from trainer import training

        if (state := guard.state(made.places.root)) is not None and state.held:
            raise OperationError(f"held by the guard: {state.reason}")
        catalogue = items.read(made.places.catalogue)
        card = training.train(
            training.Settings(
                windows=made.places.windows,
                policies=made.places.policies,
                num_actions=len(catalogue),
                catalogue=catalogue,
                parent=None if fresh else made.champion,
                algorithm=algorithm,
                hyperparameters=_with_integers(algorithm, hyperparameters),
                exploration=build(Exploration, exploration, lambda field: f"exploration: {field}"),
                refused=guard.refused_windows(made.places),
                features=read_spec(made.places.features) if made.places.features.is_file() else None,
            )
        )
        if card.version != made.champion:
            record.version = card.version
        record.said = f"{card.version} from {card.parent or 'scratch'}"
        return card.version


def search(plan: str, algorithm: str, budget: dict[str, Any]) -> Hyperparameters:
    """The best hyperparameters of a search on this machine, on all windows that are exported.

    Args:
      plan: a `Plan` as JSON.
      algorithm: one of the trainer's.
      budget: the fields of a `TuningBudget`.
    """
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "search") as record:
        from orchestration.audit import guard
        from trainer import tune

        catalogue = items.read(made.places.catalogue)
        wanted = build(TuningBudget, budget)
        best = tune.search(
            tune.Search(
                windows=made.places.windows,
                study=made.places.runs / f"{made.run_id}-study",
                num_actions=len(catalogue),
                catalogue=catalogue,
                algorithm=algorithm,
                trials=wanted.trials,
                seed=wanted.seed,
                refused=guard.refused_windows(made.places),
            )
        )
        record.said = (
            f"{best.value:.3f} [{best.low:.3f}, {best.high:.3f}] with {best.hyperparameters}, the best of {best.trials}"
        )
        return best.hyperparameters


class Study(NamedTuple):
    """What a tuning job on Vertex AI is made of."""

    pools: list[dict[str, Any]]  # the worker pool of a trial
    parameters: list[dict[str, Any]]
    trials: int


def study(plan: str, algorithm: str, budget: dict[str, Any], root_uri: str, image: str, machine_type: str) -> Study:
    """A tuning study of the trainer's search space; each trial is the trainer, which reports its off-policy estimate.

    Args:
      plan: a `Plan` as JSON.
      algorithm: one of the trainer's; it decides which parameters the study has.
      budget: the fields of a `TuningBudget`.
      root_uri: `gs://` folder of the environment.
      image: of the trainer.
      machine_type: of a trial.
    """
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "study") as record:
        from orchestration.cloud.study import study_parameters
        from trainer import arms
        from trainer.search_space import search_space

        catalogue = items.read(made.places.catalogue)
        space = search_space(algorithm, arms.has_features(catalogue))
        record.said = f"{algorithm} on {len(catalogue)} items: {', '.join(parameter.name for parameter in space)}"
        flags = {
            "--windows": f"{root_uri}/windows",
            "--policies": f"{root_uri}/studies/{made.run_id}",
            "--catalogue": f"{root_uri}/catalogue.json",
            "--num-actions": str(len(catalogue)),
            "--algorithm": algorithm,
        }
        pool = {
            "machine_spec": {"machine_type": machine_type},
            "replica_count": 1,
            "container_spec": {
                "image_uri": image,
                "command": ["python", "-m", "trainer.task"],
                "args": ["--report-metric", *(f"{flag}={value}" for flag, value in flags.items())],
            },
        }
        return Study([pool], study_parameters(space), build(TuningBudget, budget).trials)


def best_trial(plan: str, gcp_resources: str, vertex: str) -> Hyperparameters:
    """The hyperparameters of the best trial of a tuning job. Raises OperationError if no trial reported a metric."""
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "best_trial") as record:
        from orchestration.cloud.vertex_jobs import jobs_of

        best, value = jobs_of(vertex).best_trial(gcp_resources)
        record.said = f"{value:.3f} with {best}"
        return best


def evaluate(plan: str, candidate: str, canary: dict[str, Any], warehouse: str) -> str:
    """Compares candidate and champion on decisions that neither was trained on. Returns a `GateResult` as JSON.

    While the champion is on probation, the candidate is compared with its anchor.

    Args:
      plan: a `Plan` as JSON.
      candidate: version of the policy to judge.
      canary: the fields of a `Canary`. With a share, another algorithm or setting may be tried beside a confirmed champion.
      warehouse: `bigquery:PROJECT.DATASET`, or empty for the embedded one below the root; it knows the viewers.
    """
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "evaluate") as record:
        result = _judge(made, candidate, canary, warehouse)
        record.version, record.said = candidate, result.reason
        return msgspec.json.encode(result).decode()


def _judge(made: Plan, candidate: str, canary: dict[str, Any], warehouse: str) -> GateResult:
    places, current = made.places, policy_store.champion(made.places.policies)
    if candidate == made.champion:
        return _not_promoted("undecided", "nothing new to train on")
    if (why := _withdrawn(places, candidate)) is not None:
        return _not_promoted("worse", why)
    log = probation_tasks.source_of(made, warehouse)
    if current is None:
        return gates.evaluate(places.policies, places.windows, candidate, None, log=log)
    if current.version != made.champion:
        why = f"{current.version} serves since the run began, not {made.champion}: run the pipeline again"
        return _not_promoted("undecided", why)
    return gates.evaluate(
        places.policies,
        places.windows,
        candidate,
        current.version,
        anchor=current.anchor,
        tried=build(Canary, canary).share > 0 and current.anchor is None,
        log=log,
    )


def _not_promoted(verdict: Verdict, reason: str) -> GateResult:
    return GateResult(verdict=verdict, promoted=False, reason=reason, evaluation=None)


def gate(plan: str, candidate: str, result: str) -> str:
    """Whether the candidate goes on: "promote" or "keep" (the champion)."""
    made = decode_plan(plan)
    with runs.step(made.root, made.run_id, "gate") as record:
        judged = msgspec.json.decode(result, type=GateResult)
        record.version, record.said = candidate, judged.reason
        if judged.promoted:
            return "promote"
        record.outcome = "nothing new" if candidate == made.champion else "refused"
        return "keep"


def _with_integers(algorithm: str, hyperparameters: Hyperparameters) -> Hyperparameters:
    """`hyperparameters` with integers where the trainer takes integers: KFP and Vertex AI pass every number as a float."""
    from trainer import agents

    defaults = agents.DEFAULTS.get(algorithm, {})
    return {
        name: int(value)
        if isinstance(defaults.get(name), int) and isinstance(value, float) and value.is_integer()
        else value
        for name, value in hyperparameters.items()
    }


def _withdrawn(places: Places, candidate: str) -> str | None:
    """Why the candidate may not serve again without a person's decision, if it was taken back before."""
    for report in runs.reports(places.root):
        if report.version == candidate and report.outcome == "rolled back":
            return f"rolled back before, by {report.run_id}: {report.reason}"
    if any(past.version == candidate for past in policy_store.history(places.policies)):
        return "it was the champion before, and was rolled back"
    return None
