"""The evidence of a window, or of a part of it, from the rows of the tables: whole in memory, or bucket by bucket in Beam."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.reward_join import join_rewards
from contracts.errors import InputError
from contracts.windows import TrainingWindow, WindowSettings
from orchestration.audit import shares
from orchestration.audit.evidence import Evidence, LoadDecider, gather
from orchestration.audit.shares import Period


class Question(NamedTuple):
    """What is asked of the rows."""

    window: TrainingWindow
    settings: WindowSettings
    observation_dim: int | None  # of the decisions to look at; None when the window has none
    pointer: Sequence[Period]


class Gathered(NamedTuple):
    """The evidence, and the joined decisions that it is of (columns of `contracts.records.Interaction`)."""

    evidence: Evidence
    interactions: pa.RecordBatch


def gather_window(tables: Mapping[str, pa.Table], question: Question, load: LoadDecider) -> Gathered:
    """The evidence of rows that belong together: all of a window, or those of some ids.

    Args:
      tables: `decisions`, `earlier`, `rewards` and `statuses`, as `beam_jobs.reward_join` takes them.
      question: the window, and how its decisions are looked at.
      load: what decided under a version.

    Raises InputError for a propensity that is not in (0, 1].
    """
    settings = msgspec.structs.replace(question.settings, missing_reward="default")
    joined, counts = join_rewards(**tables, window=question.window, settings=settings)
    lengths = pc.list_value_length(joined.column("observation"))
    joined = joined.filter(pc.equal(lengths, question.observation_dim or 0))
    _check_propensities(joined)
    silence_counts = question.settings.missing_reward == "default"
    evidence = gather(joined, settings.reward_window_seconds, load, silence_counts)
    evidence.duplicates, evidence.late_rewards = counts.duplicate_decisions, counts.late_rewards
    evidence.early_rewards = _early_rewards(tables["decisions"], tables["rewards"])
    evidence.conflicting = _conflicting(tables["decisions"])
    return Gathered(evidence.merge(shares.count(joined, question.pointer)), joined)


def _check_propensities(joined: pa.RecordBatch) -> None:
    propensity = joined.column("propensity").to_numpy()
    wrong = np.flatnonzero(~((propensity > 0) & (propensity <= 1)))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"decisions: propensity must be in (0, 1], got {propensity[row]}"
            f" (decision_id={joined.column('decision_id')[row]})"
        )


def _early_rewards(decisions: pa.Table, rewards: pa.Table) -> int:
    """How many rewards occurred before their decision."""
    both = rewards.select(["decision_id", "occurred_at"]).join(
        decisions.select(["decision_id", "decided_at"]), "decision_id", join_type="inner"
    )
    return int(pc.sum(pc.less(both["occurred_at"], both["decided_at"])).as_py() or 0)


def _conflicting(decisions: pa.Table) -> int:
    """How many ids have rows that differ."""
    ids = decisions["decision_id"].combine_chunks()
    counts = ids.value_counts()
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if not len(repeated):
        return 0
    rows = decisions.filter(pc.is_in(decisions["decision_id"], repeated)).to_pylist()
    distinct = {(row["decision_id"], repr(row)) for row in rows}
    return int((np.unique([row_id for row_id, _ in distinct], return_counts=True)[1] > 1).sum())
