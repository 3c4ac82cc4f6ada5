"""How good a trained policy is on a window that it was not trained on.

The policy judged is the one that takes, for every observation, the action it expects most of: what has been learned,
without the exploration that is added when it serves. The roll-out gate judges what serves, by the explorer that serves
it; here models are compared with each other.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from contracts.errors import InputError
from contracts.policies import PolicyCard
from trainer import dataset, export, off_policy, task
from trainer.export import Model

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch


class Measured(NamedTuple):
    """A policy trained on all windows but the newest, and its estimate on that."""

    card: PolicyCard
    estimates: off_policy.Estimates


def measure(settings: task.Settings) -> Measured:
    """Trains as `task.train` does, but for the newest window, and estimates on that one what the policy would earn.

    Doubly robust, the reward model being a plain linear one trained on the same windows: one and the same for all
    settings, and not the model that is judged, so that none is praised by itself.

    Raises:
      InputError: as `task.train`; there is no window to hold out, or nothing in it.
    """
    ready = task.selected(settings)
    if len(ready) < 2:
        raise InputError(f"windows: at least 2 ready windows are needed, one held out, found {len(ready)}")
    held_out = ready[-1]
    if not held_out.manifest.records(*dataset.SPLITS):
        raise InputError(f"{held_out.folder}: is to be held out, but holds no interactions")
    others = msgspec.structs.replace(settings, only=[window.start for window in ready[:-1]])
    card = task.train(others)
    plain = task.train(msgspec.structs.replace(others, algorithm="lin_ucb", hyperparameters={}, parent=None))
    model, reference = (export.read_model(settings.policies / version) for version in (card.version, plain.version))
    batches = (batch for split in dataset.SPLITS for batch in dataset.read(held_out, split, settings.num_actions))
    return Measured(card, estimate(model, reference, batches))


def estimate(model: Model, reference: Model, batches: "Iterable[TrajectoryBatch]") -> off_policy.Estimates:
    """The reward a decision of always taking what `model` expects most of, with `reference` as the reward model."""
    sums = off_policy.Sums.zeros()
    first = 0
    for batch in batches:
        rows = np.arange(len(batch.action))
        best = model.scores(batch.observation)[0].argmax(axis=1)
        value, _ = reference.scores(batch.observation)
        sums.add(
            (first + rows) % off_policy.GROUPS,
            batch.reward.astype(np.float64),
            batch.propensity.astype(np.float64),
            (best == batch.action).astype(np.float64),
            value[rows, batch.action].astype(np.float64),
            value[rows, best].astype(np.float64),
        )
        first += len(rows)
    return sums.estimates(with_model=True)


def report_metric(path: Path, trial: str, tag: str, value: float, timestamp: float) -> None:
    """Reports a metric the way Vertex AI's hyperparameter tuning reads it: the last of the JSON lines in `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"timestamp": timestamp, "trial": trial, tag: str(value), "global_step": "0", "checkpoint_path": ""}
    with path.open("ab") as file:
        file.write(msgspec.json.encode(line) + b"\n")
