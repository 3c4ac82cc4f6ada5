"""Takes interactions out of policies that were trained on them: exact for linear ones, since their evidence is sums.

A policy's statistics are the weighted sums over its windows (`trainer.linear`). Subtracting the weighted sums of some
interactions gives the statistics of a training without them, but for rounding. The policy keeps its version.
"""

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from contracts import policy_arrays
from contracts.policies import SAVED_MODEL_NAME, PolicyCard
from contracts.trajectories import TrajectoryBatch
from contracts.windows import Split, TrainingWindow
from trainer import agents, arms, artifact, checkpoint, contexts, saved_model, training
from trainer.forgetting import evidence_weight
from trainer.linear import SufficientStatistics

ASIDE = ".erasing."
BEFORE = "before"


class Part(NamedTuple):
    """Interactions to take out, all of one split of one window."""

    window: TrainingWindow
    split: Split
    records: int  # of the split, these included
    batch: TrajectoryBatch
    revision: int = 0  # of the window
    versions: tuple[str, ...] = ()  # that decided in it


def subtract(policies: Path, card: PolicyCard, parts: Sequence[Part]) -> str:
    """Takes `parts` out of the policy of `card`, if it was trained on them.

    Safe to repeat: the number of records in the card tells whether a part was taken out before.

    Returns:
      "subtracted", "not trained on them", or why it can't be done.

    Raises:
      InputError: the policy's checkpoint is missing or unreadable.
      OperationError: the policy could not be written.
    """
    trained = {(one.window, one.split): (one.revision, one.records) for one in card.trained_on}
    mine = [part for part in parts if trained.get((part.window, part.split)) == (part.revision, part.records)]
    if not mine:
        return "not trained on them"
    if card.algorithm not in agents.LINEAR_ALGORITHMS:
        return f"{card.algorithm} is a network, from which nothing can be subtracted: train it afresh"
    statistics = checkpoint.read(policies / card.version)
    gone = SufficientStatistics.zeros(statistics.num_actions, statistics.observation_dim)
    removed: dict[tuple[TrainingWindow, Split], int] = {}
    for part in mine:
        weight = evidence_weight(card, part.window.start)
        own = arms.own(part.batch, card.catalogue, part.window)
        deciding = (artifact.read_card(policies, version) for version in part.versions)
        generation = contexts.of_window(own.observation.shape[1], (one for one in deciding if one is not None))
        batch = contexts.projected(own, generation, contexts.of_card(card))
        gone.add(batch.observation, batch.action, batch.reward, weight)
        removed[part.window, part.split] = len(part.batch.action)
    gone.scale(-1.0)
    statistics.merge(gone)
    after = msgspec.structs.replace(
        card,
        trained_on=[
            msgspec.structs.replace(one, records=one.records - removed.get((one.window, one.split), 0))
            for one in card.trained_on
        ],
    )
    _replace(policies, after, statistics)
    return "subtracted"


def _replace(policies: Path, card: PolicyCard, statistics: SufficientStatistics) -> None:
    """Puts the policy that follows from `statistics` in the place of the one of the same version."""
    arrays = training.solved(statistics, card)

    def write_parts(folder: Path) -> None:
        policy_arrays.write(folder, arrays)
        saved_model.save(folder / SAVED_MODEL_NAME, arrays, card)
        checkpoint.write(folder, statistics)

    # A store of its own, so that the policy is whole before it takes the other's place.
    aside = policies / f"{ASIDE}{uuid.uuid4().hex}"
    try:
        artifact.write(aside, card, write_parts)
        with artifact.writing(policies):
            (aside / BEFORE).mkdir()
            (policies / card.version).rename(aside / BEFORE / card.version)
            (aside / card.version).rename(policies / card.version)
    finally:
        restore(policies)


def restore(policies: Path) -> None:
    """Puts policies back that an erasure which died had moved aside, and removes what it left."""
    for aside in policies.glob(f"{ASIDE}*"):
        for before in aside.glob(f"{BEFORE}/*"):
            if not (policies / before.name).is_dir():
                before.rename(policies / before.name)
        shutil.rmtree(aside, ignore_errors=True)
