"""Trains the next policy from the training windows that are ready, and adds it to the policy store.

    python -m trainer.task --windows runs/latest/windows --policies runs/latest/policies \
        --algorithm lin_ucb --num-actions 100 --catalogue runs/latest/catalogue.json --parent <version>

The policy continues from its parent and trains on every split of every ready window that neither the parent nor its
ancestors have seen, each once. The holdback split of the newest window is left out: the gate compares the new policy
with the champion on it, and the next training takes it in. The cost is that of the new windows, however long the
history.

The same inputs give the same version, and an existing version is left as it is, so running the command again is safe.

The command keeps to the contract of Vertex AI's custom jobs. It reads `gs://` paths where Vertex mounts them (`/gcs/`).
It copies the policy to AIP_MODEL_DIR and its checkpoint to AIP_CHECKPOINT_DIR, and writes TensorBoard's logs to
AIP_TENSORBOARD_LOG_DIR. As a trial of Vertex AI's hyperparameter tuning, `--report-metric` trains on all windows but
the newest, and reports the off-policy estimate on that one as the metric `reward`. `python -m trainer.tune` runs the
same search on one machine.
"""

import argparse
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from contracts import items, policy_arrays
from contracts.command_line import FlagParser, add_flags, flag_name, from_flags, run_main, time_flag
from contracts.errors import InputError
from contracts.features import read_spec
from contracts.policies import CHECKPOINT_NAME, STRATEGIES, Exploration, PolicyCard
from trainer import agents, artifact, dataset, training
from trainer.mounts import mounted

METRIC = "reward"


def build_parser() -> FlagParser:
    """The flags."""
    parser = FlagParser(documentation=__doc__, prog="python -m trainer.task")
    parser.add_argument("--windows", type=mounted, required=True, help="folder of training windows (window=<start>/)")
    parser.add_argument(
        "--policies", type=mounted, required=True, help="policy store; the new policy becomes <store>/<version>/"
    )
    parser.add_argument("--num-actions", type=int, required=True, help="number of actions K")
    parser.add_argument(
        "--catalogue", type=mounted, required=True, help="JSON list of items, in the order of their actions"
    )
    parser.add_argument(
        "--features",
        type=mounted,
        help="JSON feature spec that the observations were encoded by (default: the parent's)",
    )
    parser.add_argument("--parent", help="version in the store to continue from (default: start afresh)")
    parser.add_argument(
        "--algorithm", default="lin_ucb", help=f"one of {', '.join(sorted(agents.DEFAULTS))} (default: %(default)s)"
    )
    for name, (kind, text) in agents.HYPERPARAMETERS.items():
        parser.add_argument(flag_name(name), type=kind, help=text)
    parser.add_argument(
        "--exploration",
        dest="strategy",
        choices=STRATEGIES,
        default=argparse.SUPPRESS,
        help="how the policy explores when it serves (default: as in the algorithm's paper: "
        + ", ".join(f"{name} {strategy}" for name, strategy in agents.EXPLORATION.items())
        + ")",
    )
    add_flags(parser, Exploration, leave_out=("strategy",))
    parser.add_argument("--until", type=time_flag, metavar="TIME", help="only windows that end by this time (ISO 8601)")
    parser.add_argument(
        "--only", type=time_flag, nargs="+", metavar="START", help="only windows that start at these times (ISO 8601)"
    )
    parser.add_argument("--tensorboard", type=mounted, metavar="FOLDER", help="folder for TensorBoard's logs")
    parser.add_argument(
        "--report-metric",
        action="store_true",
        help="run a trial: hold the newest window out, and report the estimate on it instead of the version",
    )
    parser.add_argument(
        "--beam-options",
        type=shlex.split,
        help='linear: sum the statistics with Beam, with these pipeline options: "--runner=DataflowRunner …"',
    )
    return parser


def settings_from(arguments: argparse.Namespace) -> training.Settings:
    """The settings in parsed flags. Raises InputError."""
    hyperparameters = {
        name: value for name in agents.HYPERPARAMETERS if (value := getattr(arguments, name)) is not None
    }
    agents.complete(arguments.algorithm, hyperparameters)
    return training.Settings(
        windows=arguments.windows,
        policies=arguments.policies,
        num_actions=arguments.num_actions,
        catalogue=items.read(arguments.catalogue),
        parent=arguments.parent,
        algorithm=arguments.algorithm,
        hyperparameters=hyperparameters,
        exploration=from_flags(arguments, Exploration, Exploration(strategy=agents.EXPLORATION[arguments.algorithm])),
        until=arguments.until,
        only=arguments.only,
        features=read_spec(arguments.features) if arguments.features else None,
        beam_options=arguments.beam_options,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line, prints the version, and returns the exit code."""
    return run_main("trainer.task", _run, argv)


def _run(argv: Sequence[str] | None) -> None:
    arguments = build_parser().parse_args(argv)
    settings = settings_from(arguments)
    if arguments.report_metric:
        _report_metric(settings, os.environ)
        return
    logs = _tensorboard_folder(arguments.tensorboard, os.environ)
    card = training.train(settings)
    _warn_without_constant(card, settings)
    if logs:
        _write_board(logs, card, settings)
    policy = settings.policies / card.version
    if folder := os.environ.get("AIP_MODEL_DIR"):
        artifact.copy(policy, mounted(folder))
    if folder := os.environ.get("AIP_CHECKPOINT_DIR"):
        with artifact.writing(mounted(folder)):
            shutil.copytree(policy / CHECKPOINT_NAME, mounted(folder), dirs_exist_ok=True)
    print(card.version)


def _warn_without_constant(card: PolicyCard, settings: training.Settings) -> None:
    """Writes one line where a first linear policy was trained on observations none of whose numbers is constant."""
    if card.parent is not None or card.algorithm not in agents.LINEAR_ALGORITHMS:
        return
    trained = {trained.window for trained in card.trained_on if trained.records}
    windows = [window for window in training.selected(settings) if window.manifest.window in trained]
    if not any(dataset.constant_columns(window, card.num_actions) for window in windows[-1:]):
        sys.stderr.write(
            f"trainer.task: warning: observation: none of its {card.observation_dim} numbers is constant. A linear model"
            " then expects a reward of 0 for an observation of zeros; unless that is right, add a 1 to it (a feature spec"
            " does)\n"
        )


def _tensorboard_folder(given: Path | None, environment: Mapping[str, str]) -> Path | None:
    """The folder of TensorBoard's logs, which it makes. Raises InputError, before anything is trained."""
    name, folder = "--tensorboard", given
    if folder is None and (vertex := environment.get("AIP_TENSORBOARD_LOG_DIR")):
        name, folder = "AIP_TENSORBOARD_LOG_DIR", mounted(vertex)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{name}: cannot make the folder {folder}: {error.strerror}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{name}: the folder {folder} cannot be written to")
    return folder


def _write_board(logs: Path, card: PolicyCard, settings: training.Settings) -> None:
    from trainer import board

    newest = max(trained.window for trained in card.trained_on)
    window = next(window for window in training.selected(settings) if window.manifest.window == newest)
    with artifact.writing(logs):
        board.write(logs, card, policy_arrays.read(settings.policies / card.version, card), window)


def _report_metric(settings: training.Settings, environment: Mapping[str, str]) -> None:
    from trainer import evaluation

    card, estimates = evaluation.measure(settings)
    assert estimates.dr is not None  # there is a reward model
    path = Path(environment.get("CLOUD_ML_HP_METRIC_FILE", "/tmp/hypertune/output.metrics"))
    with artifact.writing(path):
        evaluation.report_metric(
            path, environment.get("CLOUD_ML_TRIAL_ID", "0"), METRIC, estimates.dr.value, time.time()
        )
    found = estimates.dr
    doubt = "" if found.reliable else f", not reliable: {found.reason}"
    print(f"{card.version} {METRIC} {found.value:.4f} [{found.low:.4f}, {found.high:.4f}]{doubt}")


if __name__ == "__main__":
    sys.exit(main())
