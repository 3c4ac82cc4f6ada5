"""Trains the next policy from the training windows that are ready, and adds it to the policy store.

    python -m trainer.task --windows runs/loop/windows --policies runs/loop/policies \
        --algorithm lin_ucb --num-actions 100 --catalogue runs/loop/catalogue.json --parent <version>

The policy continues from its parent and trains on every split of every ready window that the parent (or its ancestors)
has not seen, each once. The holdback split of the newest window is left out: on it the new policy is compared with the
champion, and the next one trains on it. The cost is that of the new windows, however long the history.

The same inputs give the same version, and a version that is there already is left as it is: run it as often as you
like.

As a Vertex AI custom job it keeps to the contract: `gs://` paths are taken where Vertex mounts them (`/gcs/`), the policy
is copied to AIP_MODEL_DIR and its checkpoint to AIP_CHECKPOINT_DIR, TensorBoard's logs go to AIP_TENSORBOARD_LOG_DIR. As
a trial of its hyperparameter tuning, `--report-metric` trains on all windows but the newest, and reports the off-policy
estimate on that one as the metric `reward`. `python -m trainer.tune` is the same search on one machine.
"""

import argparse
import hashlib
import itertools
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np

from contracts.errors import InputError
from contracts.event_segments import compact_time
from contracts.policies import CARD_NAME, CHECKPOINT_NAME, Exploration, Movie, PolicyCard, TrainedWindow
from contracts.windows import Split
from trainer import agents, arms, dataset, export, linear, neural, validation
from trainer.dataset import ReadyWindow
from trainer.flags import FlagParser, mounted
from trainer.linear import SufficientStatistics

METRIC = "reward"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What one training is told."""

    windows: Path
    policies: Path
    num_actions: int
    catalogue: list[Movie]
    parent: str | None = None
    algorithm: str = "lin_ucb"
    hyperparameters: agents.Hyperparameters = {}
    exploration: Exploration = Exploration()
    # Only windows that end by then, and only those with these starts: as if there were no others.
    until: datetime | None = None
    only: list[datetime] | None = None
    # Sum the statistics of linear policies with Beam, on the runner that these pipeline options name; None: in here.
    beam_options: list[str] | None = None


def train(settings: Settings) -> PolicyCard:
    """The policy that follows from the settings and from the windows that are ready; see the module's docstring.

    Returns:
      the card of the new policy; of the parent when neither the windows nor the settings have anything new.

    Raises:
      InputError: one of the settings cannot be used, no window is ready, or a window cannot be trained on.
    """
    hyperparameters = agents.complete(settings.algorithm, settings.hyperparameters)
    if settings.num_actions < 1:
        raise InputError(f"num_actions must be at least 1, got {settings.num_actions}")
    if len(settings.catalogue) != settings.num_actions:
        raise InputError(f"catalogue has {len(settings.catalogue)} movies for {settings.num_actions} actions")
    agents.check_exploration(settings.exploration)
    if settings.beam_options is not None and settings.algorithm not in agents.LINEAR_ALGORITHMS:
        raise InputError(f"beam options: {settings.algorithm} has no statistics to sum up with Beam")
    parent = _parent(settings, hyperparameters)
    arms.check_catalogue(settings.catalogue, parent.catalogue if parent is not None else None)
    new = _untrained(selected(settings), parent)
    if (
        parent is not None
        and not any(window.manifest.records(split) for window, split in new)
        and (parent.algorithm, parent.hyperparameters) == (settings.algorithm, hyperparameters)
        and (parent.catalogue, parent.exploration) == (settings.catalogue, settings.exploration)
    ):
        return parent
    observation_dim = _observation_dim(settings, parent, new)
    version = _version(settings, hyperparameters, parent, new)
    if (existing := export.read_card(settings.policies, version)) is not None:
        return existing

    card = PolicyCard(
        version=version,
        parent=settings.parent,
        algorithm=settings.algorithm,
        hyperparameters=hyperparameters,
        observation_dim=observation_dim,
        num_actions=settings.num_actions,
        catalogue=settings.catalogue,
        trained_on=(list(parent.trained_on) if parent is not None else [])
        + [
            TrainedWindow(window=window.manifest.window, split=split, records=window.manifest.records(split))
            for window, split in new
        ],
        exploration=settings.exploration,
    )
    for window, splits in itertools.groupby(new, lambda part: part[0]):
        if settings.beam_options is None:
            validation.validate(window, settings.num_actions, tuple(split for _, split in splits))
        else:  # its workers check what they read
            validation.check_counts(window)
    if settings.algorithm in agents.LINEAR_ALGORITHMS:
        write_parts = _learn_linear(settings, card, parent, new)
    else:
        write_parts = neural.learn(settings.policies, card, parent, new)
    export.write(settings.policies, card, write_parts)
    return card


def _learn_linear(
    settings: Settings, card: PolicyCard, parent: PolicyCard | None, new: list[tuple[ReadyWindow, Split]]
) -> Callable[[Path], None]:
    """One pass over the new splits; returns what writes the policy's parts."""
    statistics = (
        export.read_statistics(settings.policies / parent.version).grown(card.num_actions)
        if parent is not None
        else SufficientStatistics.zeros(card.num_actions, card.observation_dim)
    )
    if parent is not None:
        statistics.scale(_weight(card, max(trained.window.start for trained in parent.trained_on)))
    if settings.beam_options is not None:
        statistics.merge(_sum_with_beam(settings.policies, settings.beam_options, card, new))
    else:
        for window, split in new:
            weight = _weight(card, window.start)
            for batch in dataset.read(window, split, card.num_actions):
                statistics.add(batch.observation, batch.action, batch.reward, weight)
    told = card.hyperparameters
    try:
        posterior = linear.posterior(
            statistics,
            str(told["arm_features"]),
            float(told["tikhonov"]),
            float(told["arm_tikhonov"]),
            arms.arm_features(card.catalogue),
        )
    except np.linalg.LinAlgError:
        raise InputError(f"tikhonov: {told['tikhonov']} is too small: the regression has no one solution") from None
    model = export.Model.linear(posterior, statistics.n)

    def write_parts(folder: Path) -> None:
        export.write_model(folder, model, card.algorithm, card.exploration, card.observation_dim)
        export.write_statistics(folder / CHECKPOINT_NAME, statistics)

    return write_parts


def _sum_with_beam(
    policies: Path, options: list[str], card: PolicyCard, new: list[tuple[ReadyWindow, Split]]
) -> SufficientStatistics:
    from trainer import combiners

    files = [
        combiners.WeightedFile(
            str(window.folder / file.name),
            file,
            card.observation_dim,
            card.num_actions,
            _weight(card, window.start),
        )
        for window, split in new
        for file in window.files(split)
    ]
    output = policies / f".{card.version}.{export.STATISTICS_NAME}"
    policies.mkdir(parents=True, exist_ok=True)
    try:
        combiners.sum_files(files, card.num_actions, card.observation_dim, str(output), options)
        return export.read_statistics_file(output)
    finally:
        output.unlink(missing_ok=True)


def _weight(card: PolicyCard, start: datetime) -> float:
    """What evidence of the window that starts then counts: half for every half-life of windows trained on since."""
    half_life = float(card.hyperparameters["half_life"])
    later = {trained.window.start for trained in card.trained_on if trained.window.start > start}
    return 0.5 ** (len(later) / half_life) if half_life else 1.0


def _parent(settings: Settings, hyperparameters: agents.Hyperparameters) -> PolicyCard | None:
    if settings.parent is None:
        return None
    card = export.read_card(settings.policies, settings.parent)
    where = settings.policies / settings.parent
    if card is None:
        raise InputError(f"parent: {where} has no {CARD_NAME}")
    if card.num_actions > settings.num_actions:
        raise InputError(f"parent: {where} has {card.num_actions} actions, asked for {settings.num_actions}")
    # Linear policies keep the same statistics, whatever they make of them; networks are made for one algorithm and size.
    fixed: tuple[str, ...]
    if {card.algorithm, settings.algorithm} <= set(agents.LINEAR_ALGORITHMS):
        fixed = ("half_life",)
    elif card.algorithm == settings.algorithm:
        fixed = ("layers",) if card.algorithm == "neural_linucb" else ("layers", "arm_features")
        if card.num_actions != settings.num_actions and hyperparameters.get("arm_features") != "shared":
            raise InputError(f"parent: {where} has {card.num_actions} actions, asked for {settings.num_actions}")
    else:
        raise InputError(f"parent: {where} is a {card.algorithm} policy, asked for {settings.algorithm}")
    for name in fixed:
        if card.hyperparameters.get(name, agents.DEFAULTS[card.algorithm][name]) != hyperparameters[name]:
            raise InputError(
                f"parent: {where} has {name} {card.hyperparameters.get(name)}, asked for {hyperparameters[name]}"
            )
    counted = Counter((trained.window, trained.split) for trained in card.trained_on)
    for (window, split), times in counted.items():
        if times > 1:
            raise InputError(f"parent: {where} was trained twice on {window.folder} ({split})")
    return card


def selected(settings: Settings) -> list[ReadyWindow]:
    """The ready windows that the settings are about, by start. Raises InputError when there is none."""
    ready = dataset.ready_windows(settings.windows)
    if settings.only is not None:
        missing = set(settings.only) - {window.start for window in ready}
        if missing:
            raise InputError(f"windows: no ready window starts at {min(missing).isoformat()} in {settings.windows}")
        ready = [window for window in ready if window.start in settings.only]
    if settings.until is not None:
        ready = [window for window in ready if window.manifest.window.end <= settings.until]
    if not ready:
        raise InputError(f"windows: no ready window (a folder window=<start> with a manifest) in {settings.windows}")
    return ready


def _untrained(ready: list[ReadyWindow], parent: PolicyCard | None) -> list[tuple[ReadyWindow, Split]]:
    seen = {(trained.window.start, trained.split) for trained in parent.trained_on} if parent is not None else set()
    splits: list[tuple[ReadyWindow, Split]] = []
    for window in ready:
        splits.append((window, "train"))
        if window is not ready[-1]:
            splits.append((window, "holdback"))
    return [(window, split) for window, split in splits if (window.start, split) not in seen]


def _observation_dim(settings: Settings, parent: PolicyCard | None, new: list[tuple[ReadyWindow, Split]]) -> int:
    filled = [window for window, _ in new if window.manifest.observation_dim]
    if parent is None and not filled:
        raise InputError(f"windows: the ready windows in {settings.windows} hold no interactions")
    expected = parent.observation_dim if parent is not None else filled[0].manifest.observation_dim
    source = f"policy {parent.version}" if parent is not None else filled[0].folder.name
    for window in filled:
        if (found := window.manifest.observation_dim) != expected:
            raise InputError(f"{window.folder}: observation_dim is {found}, but {expected} in {source}")
    return expected


def _version(
    settings: Settings,
    hyperparameters: agents.Hyperparameters,
    parent: PolicyCard | None,
    new: list[tuple[ReadyWindow, Split]],
) -> str:
    """Names what went in, so that the same inputs give the same name."""
    inputs = {
        "parent": settings.parent,
        "algorithm": settings.algorithm,
        "hyperparameters": hyperparameters,
        "num_actions": settings.num_actions,
        "catalogue": settings.catalogue,
        "exploration": settings.exploration,
        "files": [[window.manifest.window, split, [f.sha256 for f in window.files(split)]] for window, split in new],
    }
    digest = hashlib.sha256(msgspec.json.encode(inputs, order="deterministic")).hexdigest()
    starts = [window.start for window, _ in new]
    newest = max(starts + [trained.window.start for trained in (parent.trained_on if parent is not None else [])])
    return f"{settings.algorithm}-{compact_time(newest)}-{digest[:8]}"


def read_catalogue(path: Path) -> list[Movie]:
    """The movies in a JSON list, one for each action in order. Raises InputError that says what is wrong with it."""
    try:
        movies = msgspec.json.decode(path.read_bytes(), type=list[Movie])
    except OSError as error:
        raise InputError(f"catalogue: {path}: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise InputError(f"catalogue: {path}: {error}") from None
    for action, movie in enumerate(movies):
        if movie.action != action:
            raise InputError(f"catalogue: {path}: must list actions in order from 0, got {movie.action} at {action}")
    return movies


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = FlagParser(
        prog="python -m trainer.task",
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    exploration = Exploration()
    parser.add_argument("--windows", type=mounted, required=True, help="folder of training windows (window=<start>/)")
    parser.add_argument(
        "--policies",
        type=mounted,
        required=True,
        help="policy store: the new policy goes to <store>/<version>/",
    )
    parser.add_argument("--num-actions", type=int, required=True, help="number of actions K")
    parser.add_argument(
        "--catalogue", type=mounted, required=True, help="JSON list of movies, one for each action in order"
    )
    parser.add_argument("--parent", help="version in the store to continue from (default: start afresh)")
    parser.add_argument(
        "--algorithm", default="lin_ucb", help=f"one of {', '.join(sorted(agents.DEFAULTS))} (default: %(default)s)"
    )
    for name, (kind, text) in agents.HYPERPARAMETERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument(
        "--exploration",
        help="how the policy explores when it serves (default: as the algorithm does: "
        + ", ".join(f"{name} {strategy}" for name, strategy in agents.EXPLORATION.items())
        + ")",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        default=exploration.alpha,
        help="width of the confidence bound, in standard deviations (default: %(default)s)",
    )
    parser.add_argument(
        "--epsilon",
        type=float,
        default=exploration.epsilon,
        help="share of decisions drawn uniformly (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature", type=float, default=exploration.temperature, help="of softmax (default: %(default)s)"
    )
    parser.add_argument("--gamma", type=float, default=exploration.gamma, help="of inverse_gap (default: %(default)s)")
    parser.add_argument(
        "--until",
        type=datetime.fromisoformat,
        metavar="TIME",
        help="only windows that end by then (ISO 8601, with time zone)",
    )
    parser.add_argument(
        "--only", type=datetime.fromisoformat, nargs="+", metavar="START", help="only windows with these starts"
    )
    parser.add_argument("--tensorboard", type=mounted, help="folder for TensorBoard's logs")
    parser.add_argument(
        "--report-metric",
        action="store_true",
        help="a trial: hold the newest window out and report the estimate on it, instead of the version",
    )
    parser.add_argument(
        "--beam-options",
        type=shlex.split,
        help='linear: sum up with Beam, given its pipeline options (--beam-options="--runner=DataflowRunner …")',
    )
    return parser.parse_args(argv)


def settings_from(args: argparse.Namespace) -> Settings:
    """The settings that a command line stands for. Raises InputError."""
    for moment in [args.until, *(args.only or [])]:
        if moment is not None and moment.tzinfo is None:
            raise InputError(f"time must carry a time zone, got {moment.isoformat()}")
    hyperparameters = {name: value for name in agents.HYPERPARAMETERS if (value := getattr(args, name)) is not None}
    strategy = args.exploration or agents.EXPLORATION.get(args.algorithm, "ucb")
    try:
        exploration = msgspec.convert(
            {
                "strategy": strategy,
                "alpha": args.alpha,
                "epsilon": args.epsilon,
                "temperature": args.temperature,
                "gamma": args.gamma,
            },
            Exploration,
        )
    except msgspec.ValidationError as error:
        raise InputError(f"exploration: {error}") from None
    return Settings(
        windows=args.windows,
        policies=args.policies,
        num_actions=args.num_actions,
        catalogue=read_catalogue(args.catalogue),
        parent=args.parent,
        algorithm=args.algorithm,
        hyperparameters=hyperparameters,
        exploration=exploration,
        until=args.until,
        only=args.only,
        beam_options=args.beam_options,
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and prints the version."""
    environment = os.environ
    try:
        args = parse_args(argv)
        settings = settings_from(args)
        if args.report_metric:
            return _report_metric(settings, environment)
        logs = _tensorboard_folder(args.tensorboard, environment)
        card = train(settings)
        if logs:
            from trainer import board

            newest = max(trained.window for trained in card.trained_on)
            window = next(window for window in selected(settings) if window.manifest.window == newest)
            board.write(logs, card, export.read_model(settings.policies / card.version), window)
        if folder := environment.get("AIP_MODEL_DIR"):
            export.copy(settings.policies / card.version, mounted(folder))
        if folder := environment.get("AIP_CHECKPOINT_DIR"):
            shutil.copytree(settings.policies / card.version / CHECKPOINT_NAME, mounted(folder), dirs_exist_ok=True)
    except InputError as error:
        print(f"trainer.task: error: {error}", file=sys.stderr)
        return 2
    print(card.version)
    return 0


def _tensorboard_folder(given: Path | None, environment: Mapping[str, str]) -> Path | None:
    """Where TensorBoard's logs go, made if need be. Raises InputError, before anything is trained."""
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


def _report_metric(settings: Settings, environment: Mapping[str, str]) -> int:
    from trainer import evaluation

    card, estimates = evaluation.measure(settings)
    assert estimates.dr is not None  # there is a reward model
    evaluation.report_metric(
        Path(environment.get("CLOUD_ML_HP_METRIC_FILE", "/tmp/hypertune/output.metrics")),
        environment.get("CLOUD_ML_TRIAL_ID", "0"),
        METRIC,
        estimates.dr.value,
        time.time(),
    )
    value, low, high = estimates.dr
    print(f"{card.version} {METRIC} {value:.4f} [{low:.4f}, {high:.4f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
