"""Trains the next policy from the training windows that are ready, and adds it to the policy store.

Where a window was exported again with late rows, the policy is corrected (`trainer.corrections`).

The policy continues from its parent and trains on every split of every ready window that neither the parent nor its
ancestors have seen, each once. The holdback split of the newest window is left out: the gate compares the new policy
with the champion on it, and the next training takes it in. The cost is that of the new windows, however long the
history.

The same inputs give the same version, and an existing version is left as it is, so training again is safe.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from contracts import items, policy_arrays
from contracts.errors import InputError
from contracts.event_segments import compact_time
from contracts.features import FeatureSpec
from contracts.items import Item
from contracts.policies import CARD_NAME, SAVED_MODEL_NAME, ArmColumn, Exploration, PolicyCard, TrainedWindow
from contracts.policy_arrays import PolicyArrays
from contracts.windows import Split
from trainer import (
    agents,
    arms,
    artifact,
    checkpoint,
    contexts,
    corrections,
    dataset,
    forgetting,
    linear,
    neural,
    saved_model,
    validation,
)
from trainer.contexts import Reader
from trainer.corrections import Correction, signed
from trainer.dataset import ReadyWindow
from trainer.forgetting import evidence_weight
from trainer.linear import SufficientStatistics


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of one training."""

    windows: Path
    policies: Path
    num_actions: int
    catalogue: list[Item]
    parent: str | None = None
    algorithm: str = "lin_ucb"
    hyperparameters: agents.Hyperparameters = {}
    exploration: Exploration = Exploration()
    features: FeatureSpec | None = None  # what the observations were encoded by; None: as in the parent
    # Only windows that end by `until`, and only those whose start is in `only`; None: all windows.
    until: datetime | None = None
    only: list[datetime] | None = None
    # Never the windows with these starts: the guard refused them.
    refused: list[datetime] = []
    # The pipeline options of Beam, which then sums the statistics of linear policies; None: this process sums them.
    beam_options: list[str] | None = None


def train(settings: Settings) -> PolicyCard:
    """The policy that follows from the settings and from the windows that are ready; see the module's docstring.

    Returns:
      the card of the new policy; of the parent when neither the windows nor the settings have anything new.

    Raises:
      InputError: one of the settings cannot be used, no window is ready, or a window cannot be trained on.
      OperationError: the policy could not be written.
    """
    hyperparameters = _check(settings)
    parent = _parent(settings, hyperparameters)
    if settings.features is None and parent is not None:
        settings = msgspec.structs.replace(settings, features=parent.features)
    items.check(settings.catalogue, parent.catalogue if parent is not None else None)
    if parent is not None and not parent.trained_on:
        parent = None  # it has learned nothing to continue from (trainer.untrained)
    ready = selected(settings)
    new = _untrained(ready, parent)
    fixes = corrections.needed(settings.windows, ready, parent)
    if (
        parent is not None
        and not fixes
        and not any(window.manifest.records(split) for window, split in new)
        and (parent.algorithm, parent.hyperparameters) == (settings.algorithm, hyperparameters)
        and (parent.catalogue, parent.exploration) == (settings.catalogue, settings.exploration)
        and parent.features == settings.features
    ):
        return parent
    observation_dim = _observation_dim(settings, parent, new)
    version = _version(settings, hyperparameters, parent, new, fixes)
    if (existing := artifact.read_card(settings.policies, version)) is not None:
        return existing
    card = PolicyCard(
        version=version,
        parent=settings.parent,
        algorithm=settings.algorithm,
        hyperparameters=hyperparameters,
        observation_dim=observation_dim,
        num_actions=settings.num_actions,
        catalogue=settings.catalogue,
        arm_columns=_arm_columns(settings, hyperparameters, parent),
        trained_on=corrections.applied(parent.trained_on if parent is not None else [], fixes)
        + [
            TrainedWindow(
                window=window.manifest.window,
                split=split,
                records=window.manifest.records(split),
                revision=window.manifest.revision,
            )
            for window, split in new
        ],
        exploration=settings.exploration,
        features=settings.features,
    )
    return _learn(settings, card, parent, new, fixes)


def _check(settings: Settings) -> agents.Hyperparameters:
    """All hyperparameters, completed. Raises InputError for settings that are wrong whatever the windows hold."""
    hyperparameters = agents.complete(settings.algorithm, settings.hyperparameters)
    if settings.num_actions < 1:
        raise InputError(f"num_actions must be at least 1, got {settings.num_actions}")
    if len(settings.catalogue) != settings.num_actions:
        raise InputError(f"catalogue has {len(settings.catalogue)} items for {settings.num_actions} actions")
    if settings.beam_options is not None and settings.algorithm not in agents.LINEAR_ALGORITHMS:
        raise InputError(f"beam options: {settings.algorithm} has no statistics to sum up with Beam")
    if settings.beam_options is not None and hyperparameters["half_life"] == agents.AUTO:
        raise InputError("half_life: a number where Beam sums the statistics up, got 'auto'")
    return hyperparameters


def _learn(
    settings: Settings,
    card: PolicyCard,
    parent: PolicyCard | None,
    new: list[tuple[ReadyWindow, Split]],
    fixes: list[Correction],
) -> PolicyCard:
    """Validates the new splits, trains on them, makes the corrections and adds the policy to the store.

    Returns the card that the store has.
    """
    read = sorted([*new, *((fix.after, fix.split) for fix in fixes)], key=lambda part: part[0].start)
    for window, splits in itertools.groupby(read, lambda part: part[0]):
        if settings.beam_options is None:
            validation.validate(window, settings.num_actions, tuple(split for _, split in splits))
        else:  # Beam's workers check the files that they read
            validation.check_counts(window)
    if settings.algorithm in agents.LINEAR_ALGORITHMS:
        if card.hyperparameters["half_life"] == agents.AUTO:
            reader, before = Reader(settings.policies, card), _evidence(settings, card, parent)
            records = ((window, reader.read(window, split)) for window, split in new)
            card = forgetting.with_shares_kept(card, parent, before, records, lambda sums: solved(sums, card).theta)
        arrays, write_checkpoint = _learn_linear(settings, card, parent, new, fixes)
    else:
        past = neural.Past(parent, _past(settings, parent)) if parent is not None else None
        arrays, write_checkpoint = neural.learn(settings.policies, card, past, new, fixes)

    def write_parts(folder: Path) -> None:
        policy_arrays.write(folder, arrays)
        saved_model.save(folder / SAVED_MODEL_NAME, arrays, learned)
        write_checkpoint(folder)

    new_actions = arms.new_actions(card.catalogue, arrays.num_samples, card.exploration)
    learned = msgspec.structs.replace(card, new_actions=new_actions)
    artifact.write(settings.policies, learned, write_parts)
    return learned


def _learn_linear(
    settings: Settings,
    card: PolicyCard,
    parent: PolicyCard | None,
    new: list[tuple[ReadyWindow, Split]],
    fixes: list[Correction],
) -> tuple[PolicyArrays, Callable[[Path], None]]:
    """One pass over the new splits. Returns the policy's arrays, and the function that writes its checkpoint."""
    statistics = _evidence(settings, card, parent)
    parts = [(window, split, evidence_weight(card, window.start)) for window, split in new]
    if parent is not None:
        scale = evidence_weight(card, max(trained.window.start for trained in parent.trained_on))
        statistics.scale(scale)
        # With the weight that the window's evidence has in the sums.
        parts += [
            (window, split, sign * scale * evidence_weight(parent, start))
            for window, split, start, sign in signed(fixes)
        ]
    if settings.beam_options is not None:
        statistics.merge(_sum_with_beam(settings.policies, settings.beam_options, card, parts))
    else:
        reader = Reader(settings.policies, card)
        for window, split, weight in parts:
            for batch in reader.read(window, split):
                statistics.add(batch.observation, batch.action, batch.reward, weight)
    np.maximum(statistics.n, 0.0, out=statistics.n)  # weights that were rounded may leave just below 0
    arrays = solved(statistics, card)
    return arrays, lambda folder: checkpoint.write(folder, statistics)


def _evidence(settings: Settings, card: PolicyCard, parent: PolicyCard | None) -> SufficientStatistics:
    """The parent's evidence for the items and the context of `card`; none without a parent."""
    if parent is None:
        return SufficientStatistics.zeros(card.num_actions, card.observation_dim)
    statistics = checkpoint.read(settings.policies / parent.version).grown(card.num_actions)
    own = statistics.without(items.renewed(card.catalogue, parent.catalogue))
    return contexts.carried_over(own, contexts.of_card(parent), contexts.of_card(card))


def solved(statistics: SufficientStatistics, card: PolicyCard) -> PolicyArrays:
    """The arrays of a linear policy with this evidence. Raises InputError if the regression has no unique solution."""
    hyperparameters = card.hyperparameters
    try:
        posterior = linear.posterior(
            statistics,
            str(hyperparameters["arm_features"]),
            float(hyperparameters["tikhonov"]),
            float(hyperparameters["arm_tikhonov"]),
            arms.arm_features(card.catalogue, card.arm_columns),
        )
    except np.linalg.LinAlgError:
        tikhonov = hyperparameters["tikhonov"]
        raise InputError(f"tikhonov: {tikhonov} is too small: the regression has no unique solution") from None
    return PolicyArrays.linear(posterior.theta, posterior.covariance, statistics.n)


def _sum_with_beam(
    policies: Path, options: list[str], card: PolicyCard, parts: list[tuple[ReadyWindow, Split, float]]
) -> SufficientStatistics:
    from trainer import combiners

    reader, new = Reader(policies, card), contexts.of_card(card)
    files = [
        combiners.WeightedFile(
            str(window.folder / file.name),
            file,
            window.manifest.observation_dim,
            card.num_actions,
            weight,
            tuple(arms.of_others(card.catalogue, window.manifest.window)),
            tuple(contexts.places(reader.generation(window), new).tolist()),
        )
        for window, split, weight in parts
        for file in window.files(split)
    ]
    output = policies / f".{card.version}.{checkpoint.STATISTICS_NAME}"
    policies.mkdir(parents=True, exist_ok=True)
    try:
        combiners.sum_files(files, card.num_actions, card.observation_dim, str(output), options)
        return checkpoint.read_file(output)
    finally:
        output.unlink(missing_ok=True)


def _parent(settings: Settings, hyperparameters: agents.Hyperparameters) -> PolicyCard | None:
    if settings.parent is None:
        return None
    card = artifact.read_card(settings.policies, settings.parent)
    where = settings.policies / settings.parent
    if card is None:
        raise InputError(f"parent: {where} has no {CARD_NAME}")
    if not card.trained_on:
        return card
    if card.num_actions > settings.num_actions:
        raise InputError(f"parent: {where} has {card.num_actions} actions, asked for {settings.num_actions}")
    # All linear policies keep the same statistics. A network belongs to one algorithm and size.
    fixed: tuple[str, ...]
    if {card.algorithm, settings.algorithm} <= set(agents.LINEAR_ALGORITHMS):
        fixed = ("half_life",)
    elif card.algorithm == settings.algorithm:
        fixed = ("layers",) if card.algorithm == "neural_linucb" else ("layers", "arm_features")
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
    """The ready windows that the settings select, by start. Raises InputError where there are none."""
    ready = dataset.ready_windows(settings.windows)
    if settings.only is not None:
        missing = set(settings.only) - {window.start for window in ready}
        if missing:
            raise InputError(f"windows: no ready window starts at {min(missing).isoformat()} in {settings.windows}")
        ready = [window for window in ready if window.start in settings.only]
    if settings.until is not None:
        ready = [window for window in ready if window.manifest.window.end <= settings.until]
    ready = [window for window in ready if window.start not in settings.refused]
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


def _past(settings: Settings, parent: PolicyCard) -> list[tuple[ReadyWindow, Split]]:
    """What the parent was trained on and is still there, by start, without the windows that are refused now."""
    seen = {(trained.window.start, trained.split) for trained in parent.trained_on}
    splits: tuple[Split, ...] = ("train", "holdback")
    return [
        (window, split)
        for window in dataset.ready_windows(settings.windows)
        if window.start not in settings.refused
        for split in splits
        if (window.start, split) in seen
    ]


def _observation_dim(settings: Settings, parent: PolicyCard | None, new: list[tuple[ReadyWindow, Split]]) -> int:
    """The length of observation that the policy takes: the spec's, or that of the newest window.

    Another length or another spec than the parent's begins a new generation of the context (`trainer.contexts`).
    """
    filled = [window for window, _ in new if window.manifest.observation_dim]
    if parent is None and not filled:
        raise InputError(f"windows: the ready windows in {settings.windows} hold no interactions")
    expected = filled[-1].manifest.observation_dim if filled else parent.observation_dim if parent is not None else 0
    if settings.features is None:
        return expected
    source = filled[-1].folder.name if filled else f"policy {settings.parent}"
    before = parent.features if parent is not None else None
    if before is None and settings.features.dim != expected:
        # Nothing says what the numbers of the observations are.
        raise InputError(
            f"features: the spec must take the {expected} numbers of {source}, got {settings.features.dim}"
        )
    return settings.features.dim


def _arm_columns(
    settings: Settings, hyperparameters: agents.Hyperparameters, parent: PolicyCard | None
) -> list[ArmColumn]:
    """The columns by which the policy knows its arms. A network keeps its parent's, because its weights belong to them."""
    if hyperparameters.get("arm_features", "none") == "none":
        return []
    keeps = parent is not None and settings.algorithm not in agents.LINEAR_ALGORITHMS
    return arms.columns(settings.catalogue, parent.arm_columns if parent is not None and keeps else ())


def _version(
    settings: Settings,
    hyperparameters: agents.Hyperparameters,
    parent: PolicyCard | None,
    new: list[tuple[ReadyWindow, Split]],
    fixes: list[Correction],
) -> str:
    """A name that is a digest of the inputs, so that the same inputs give the same version."""
    inputs: dict[str, Any] = {
        "parent": settings.parent,
        "algorithm": settings.algorithm,
        "hyperparameters": hyperparameters,
        "num_actions": settings.num_actions,
        "catalogue": settings.catalogue,
        "exploration": settings.exploration,
        "files": [[window.manifest.window, split, [f.sha256 for f in window.files(split)]] for window, split in new],
    }
    if settings.features is not None:
        inputs["features"] = settings.features
    if fixes:
        inputs["corrected"] = [
            [fix.before.manifest.folder, fix.after.manifest.folder, fix.split, fix.after.manifest.files]
            for fix in fixes
        ]
    digest = hashlib.sha256(msgspec.json.encode(inputs, order="deterministic")).hexdigest()
    starts = [window.start for window, _ in new]
    newest = max(starts + [trained.window.start for trained in (parent.trained_on if parent is not None else [])])
    return f"{settings.algorithm}-{compact_time(newest)}-{digest[:8]}"
