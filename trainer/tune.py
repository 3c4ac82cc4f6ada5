"""Searches hyperparameters on this machine, as Vertex AI's hyperparameter tuning does with the same trainer.

    python -m trainer.tune --windows runs/loop/windows --num-actions 100 --catalogue runs/loop/catalogue.json \
        --algorithm lin_ucb --study runs/study --trials 30 --workers 2

Every trial trains on all ready windows but the newest, and its metric is the off-policy estimate of its policy on that
one (trainer.evaluation): what the log says, not what the model thinks of itself. The study is kept under `--study`, and
goes on from there when started again; the best settings found are printed as JSON and written to `best.json` in it.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_never

import msgspec

from contracts.errors import InputError
from contracts.policies import Movie
from trainer import agents, arms, evaluation, task
from trainer.flags import FlagParser, mounted
from trainer.search_space import Choices, FloatRange, Parameter, search_space


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What one search is told."""

    windows: Path
    study: Path
    num_actions: int
    catalogue: list[Movie]
    algorithm: str = "lin_ucb"
    trials: int = 30  # in all, those of earlier starts included
    workers: int = 1
    seed: int = 0


class Best(msgspec.Struct, frozen=True, kw_only=True):
    """What a search found."""

    algorithm: str
    hyperparameters: agents.Hyperparameters
    value: float
    low: float
    high: float
    effective_sample_size: float
    trials: int


def search(told: Search) -> Best:
    """Runs the trials that the study still lacks, and returns the best of all.

    Raises:
      InputError: one of the settings or windows cannot be used.
    """
    agents.complete(told.algorithm, {})
    for name in ("trials", "workers"):
        if getattr(told, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(told, name)}")
    evaluation.measure(_settings(told, {}))  # what is wrong with the windows is found before workers are started
    if told.workers == 1:
        _work(told, 0)
    else:
        processes = [
            multiprocessing.get_context("spawn").Process(target=_work, args=(told, worker))
            for worker in range(told.workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if failed := [process.exitcode for process in processes if process.exitcode]:
            raise RuntimeError(f"{len(failed)} of {told.workers} workers failed, exit codes {failed}")
    study = _study(told, told.seed)
    best = Best(
        algorithm=told.algorithm,
        hyperparameters=study.best_trial.user_attrs["hyperparameters"],
        value=study.best_value,
        low=study.best_trial.user_attrs["low"],
        high=study.best_trial.user_attrs["high"],
        effective_sample_size=study.best_trial.user_attrs["effective_sample_size"],
        trials=_finished(study),
    )
    (told.study / "best.json").write_bytes(msgspec.json.format(msgspec.json.encode(best)) + b"\n")
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


def _work(told: Search, worker: int) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _study(told, told.seed + worker)

    space = search_space(told.algorithm, arms.has_features(told.catalogue))

    def objective(trial: Any) -> float:
        hyperparameters = suggest(trial, space)
        card, estimates = evaluation.measure(_settings(told, hyperparameters))
        assert estimates.dr is not None  # there is a reward model
        trial.set_user_attr("hyperparameters", card.hyperparameters)
        trial.set_user_attr("low", estimates.dr.low)
        trial.set_user_attr("high", estimates.dr.high)
        trial.set_user_attr("effective_sample_size", estimates.effective_sample_size)
        return estimates.dr.value

    enough = optuna.study.MaxTrialsCallback(told.trials, states=(optuna.trial.TrialState.COMPLETE,))
    if _finished(study) < told.trials:
        study.optimize(objective, callbacks=[enough])


def _study(told: Search, seed: int) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    told.study.mkdir(parents=True, exist_ok=True)
    journal = JournalFileBackend(str(told.study / "trials.jsonl"))
    return optuna.create_study(
        study_name=f"{told.algorithm}, {told.num_actions} actions",
        storage=optuna.storages.JournalStorage(journal),
        sampler=optuna.samplers.TPESampler(seed=seed),
        direction="maximize",
        load_if_exists=True,
    )


def _finished(study: Any) -> int:
    import optuna

    return len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))


def _settings(told: Search, hyperparameters: agents.Hyperparameters) -> task.Settings:
    return task.Settings(
        windows=told.windows,
        policies=told.study / "policies",
        num_actions=told.num_actions,
        catalogue=told.catalogue,
        algorithm=told.algorithm,
        hyperparameters=hyperparameters,
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and prints the best settings."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = FlagParser(
        prog="python -m trainer.tune",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--windows", type=mounted, required=True, help="folder of training windows (window=<start>/)")
    parser.add_argument("--study", type=mounted, required=True, help="folder of the study, made when it is not there")
    parser.add_argument("--num-actions", type=int, required=True, help="number of actions K")
    parser.add_argument("--catalogue", type=mounted, required=True, help="JSON list of movies, one for each action")
    parser.add_argument("--algorithm", default="lin_ucb", help=f"one of {', '.join(sorted(agents.DEFAULTS))}")
    parser.add_argument("--trials", type=int, default=30, help="in all, earlier ones included (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the search (default: %(default)s)")
    try:
        args = parser.parse_args(argv)
        told = Search(**vars(args) | {"catalogue": task.read_catalogue(args.catalogue)})
        best = search(told)
    except InputError as error:
        print(f"trainer.tune: error: {error}", file=sys.stderr)
        return 2
    print(msgspec.json.format(msgspec.json.encode(best)).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
