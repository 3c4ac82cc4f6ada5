"""Searches hyperparameters on this machine, in the search space that the pipelines give to Vertex AI as well.

    python -m trainer.tune --windows runs/latest/windows --num-actions 100 --catalogue runs/latest/catalogue.json \
        --algorithm lin_ucb --study runs/study --trials 30 --workers 2

Every trial trains on all ready windows but the newest. Its metric is the off-policy estimate of its policy on that one
(trainer.evaluation), which comes from the log and not from the model that is judged. The study is kept under `--study`,
and running the command again continues it. The best settings are printed as JSON and written to `best.json` in it.
"""

import multiprocessing
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, assert_never

import msgspec

from contracts import items
from contracts.command_line import FlagParser, run_main
from contracts.errors import InputError, OperationError
from contracts.items import Item
from trainer import agents, arms, artifact, evaluation, training
from trainer.mounts import mounted
from trainer.search_space import Choices, FloatRange, Parameter, search_space

PROGRAM = "trainer.tune"


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of one search."""

    windows: Path
    study: Path
    num_actions: int
    catalogue: list[Item]
    algorithm: str = "lin_ucb"
    trials: int = 30  # in total, those of earlier runs included
    workers: int = 1
    seed: int = 0
    refused: list[datetime] = []  # starts of windows that the guard refused


class Best(msgspec.Struct, frozen=True, kw_only=True):
    """The best hyperparameters of a search, and the estimate of their reward per decision."""

    algorithm: str
    hyperparameters: agents.Hyperparameters
    value: float
    low: float
    high: float
    effective_sample_size: float
    trials: int


def search(settings: Search) -> Best:
    """Runs the trials that the study still lacks, and returns the best of all.

    Raises:
      InputError: one of the settings or windows cannot be used.
      OperationError: a worker failed, or the study could not be written.
    """
    agents.complete(settings.algorithm, {})
    for name in ("trials", "workers"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(settings, name)}")
    evaluation.measure(_training(settings, {}))  # finds faults of the windows before it starts workers
    with artifact.writing(settings.study):
        if settings.workers == 1:
            _work(settings, 0)
        else:
            _work_together(settings)
        study = _study(settings, settings.seed)
        best = Best(
            algorithm=settings.algorithm,
            hyperparameters=study.best_trial.user_attrs["hyperparameters"],
            value=study.best_value,
            low=study.best_trial.user_attrs["low"],
            high=study.best_trial.user_attrs["high"],
            effective_sample_size=study.best_trial.user_attrs["effective_sample_size"],
            trials=_finished(study),
        )
        (settings.study / "best.json").write_bytes(msgspec.json.format(msgspec.json.encode(best)) + b"\n")
    return best


def suggest(trial: Any, space: Sequence[Parameter]) -> agents.Hyperparameters:
    """Hyperparameters to try, drawn by an Optuna trial from the search space."""
    suggested: agents.Hyperparameters = {}
    for parameter in space:
        condition = parameter.condition
        if condition is not None and suggested.get(condition.name) != condition.value:
            continue
        match parameter:
            case FloatRange():
                value = trial.suggest_float(parameter.name, parameter.low, parameter.high, log=parameter.log)
            case Choices():
                value = trial.suggest_categorical(parameter.name, parameter.values)
            case _:
                assert_never(parameter)
        suggested[parameter.name] = value
    return suggested


def _work_together(settings: Search) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(settings, number)) for number in range(settings.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed := [worker.exitcode for worker in workers if worker.exitcode]:
        raise OperationError(
            f"{len(failed)} of {settings.workers} workers failed, with the exit codes {', '.join(map(str, failed))};"
            " run the search again to go on with the study"
        )


def _worker(settings: Search, number: int) -> None:
    """The program of a worker process."""
    sys.exit(run_main(f"{PROGRAM}: worker {number}", lambda _: _work(settings, number), None))


def _work(settings: Search, worker: int) -> None:
    import optuna

    study = _study(settings, settings.seed + worker)

    space = search_space(settings.algorithm, arms.has_features(settings.catalogue))

    def objective(trial: Any) -> float:
        hyperparameters = suggest(trial, space)
        card, estimates = evaluation.measure(_training(settings, hyperparameters))
        assert estimates.dr is not None  # there is a reward model
        trial.set_user_attr("hyperparameters", card.hyperparameters)
        trial.set_user_attr("low", estimates.dr.low)
        trial.set_user_attr("high", estimates.dr.high)
        trial.set_user_attr("reliable", estimates.dr.reliable)
        trial.set_user_attr("effective_sample_size", estimates.effective_sample_size)
        return estimates.dr.value

    enough = optuna.study.MaxTrialsCallback(settings.trials, states=(optuna.trial.TrialState.COMPLETE,))
    if _finished(study) < settings.trials:
        study.optimize(objective, callbacks=[enough])


def _study(settings: Search, seed: int) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings.study.mkdir(parents=True, exist_ok=True)
    journal = JournalFileBackend(str(settings.study / "trials.jsonl"))
    return optuna.create_study(
        study_name=f"{settings.algorithm}, {settings.num_actions} actions",
        storage=optuna.storages.JournalStorage(journal),
        sampler=optuna.samplers.TPESampler(seed=seed),
        direction="maximize",
        load_if_exists=True,
    )


def _finished(study: Any) -> int:
    import optuna

    return len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))


def _training(settings: Search, hyperparameters: agents.Hyperparameters) -> training.Settings:
    return training.Settings(
        windows=settings.windows,
        policies=settings.study / "policies",
        num_actions=settings.num_actions,
        catalogue=settings.catalogue,
        algorithm=settings.algorithm,
        hyperparameters=hyperparameters,
        refused=settings.refused,
    )


def build_parser() -> FlagParser:
    """The flags."""
    parser = FlagParser(documentation=__doc__, prog=f"python -m {PROGRAM}")
    parser.add_argument("--windows", type=mounted, required=True, help="folder of training windows (window=<start>/)")
    parser.add_argument("--study", type=mounted, required=True, help="folder of the study; it is made where missing")
    parser.add_argument("--num-actions", type=int, required=True, help="number of actions K")
    parser.add_argument(
        "--catalogue", type=mounted, required=True, help="JSON list of items, in the order of their actions"
    )
    parser.add_argument(
        "--algorithm", default="lin_ucb", help=f"one of {', '.join(sorted(agents.DEFAULTS))} (default: %(default)s)"
    )
    parser.add_argument(
        "--trials", type=int, default=30, help="number of trials, earlier runs included (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=1, help="number of processes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line, prints the best settings, and returns the exit code."""
    return run_main(PROGRAM, _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    arguments = build_parser().parse_args(argv)
    best = search(Search(**vars(arguments) | {"catalogue": items.read(arguments.catalogue)}))
    print(msgspec.json.format(msgspec.json.encode(best)).decode())


if __name__ == "__main__":
    sys.exit(main())
