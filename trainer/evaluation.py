"""How good a trained policy is on a window that it was not trained on.

The policy is judged by the actions with its highest expected reward, so what it has learned is judged, without the
exploration that the predictor adds when it serves. Models are compared with each other here. The roll-out gate judges
policies as they serve, exploration included.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from contracts import policy_arrays
from contracts.errors import InputError
from contracts.items import Item
from contracts.policies import PolicyCard
from contracts.policy_arrays import Scorer
from trainer import dataset, off_policy, training

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch


class Measured(NamedTuple):
    """A policy trained on all windows but the newest, and its estimate on that."""

    card: PolicyCard
    estimates: off_policy.Estimates


def measure(settings: training.Settings) -> Measured:
    """Trains as `training.train` does, but without the newest window, and estimates the policy's reward on that one.

    The estimate is doubly robust. Its reward model is a plain linear one trained on the same windows: the same model
    for all settings, and not the one that is judged, so that no policy is judged by its own predictions.

    Raises:
      InputError: as `training.train`; there is no window to hold out, or it is empty.
    """
    ready = training.selected(settings)
    if len(ready) < 2:
        raise InputError(f"windows: at least 2 ready windows are needed, one held out, found {len(ready)}")
    held_out = ready[-1]
    if not held_out.manifest.records(*dataset.SPLITS):
        raise InputError(f"{held_out.folder}: is to be held out, but holds no interactions")
    others = msgspec.structs.replace(settings, only=[window.start for window in ready[:-1]])
    card = training.train(others)
    plain = training.train(msgspec.structs.replace(others, algorithm="lin_ucb", hyperparameters={}, parent=None))
    policy, reward_model = (Scorer(policy_arrays.read(settings.policies / one.version, one)) for one in (card, plain))
    batches = (batch for split in dataset.SPLITS for batch in dataset.read(held_out, split, settings.num_actions))
    return Measured(card, estimate(policy, reward_model, batches, settings.catalogue))


def estimate(
    policy: Scorer, reward_model: Scorer, batches: "Iterable[TrajectoryBatch]", catalogue: Sequence[Item]
) -> off_policy.Estimates:
    """The reward per decision of always taking the action with the policy's highest mean among those on offer.

    Masked and retired items of the catalogue are not on offer. A decision for which nothing else was is left out. Raises
    InputError if that leaves none.
    """
    sums = off_policy.Sums.zeros()
    active = np.array([item.status == "active" for item in catalogue], bool)
    first = 0
    for logged in batches:
        offered = logged.offers.mask(len(active)) & active
        some = offered.any(axis=1)
        batch, offered = (logged, offered) if some.all() else (logged.take(some), offered[some])
        rows = np.arange(len(batch.action))
        best = np.where(offered, policy.means(batch.observation), -np.inf).argmax(axis=1)
        value = reward_model.means(batch.observation)
        sums.add(
            dataset.clusters(batch, first) % off_policy.GROUPS,
            batch.reward.astype(np.float64),
            batch.propensity.astype(np.float64),
            (best == batch.action).astype(np.float64),
            value[rows, batch.action],
            value[rows, best],
        )
        first += len(rows)
    if not sums.decisions:
        raise InputError("catalogue: an item that was on offer must be active, got none in any decision")
    return sums.estimates(with_model=True)


def report_metric(path: Path, trial: str, tag: str, value: float, timestamp: float) -> None:
    """Reports a metric to Vertex AI's hyperparameter tuning, which reads the last of the JSON lines in `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"timestamp": timestamp, "trial": trial, tag: str(value), "global_step": "0", "checkpoint_path": ""}
    with path.open("ab") as file:
        file.write(msgspec.json.encode(line) + b"\n")
