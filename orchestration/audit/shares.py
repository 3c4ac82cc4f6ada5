"""How decisions were shared between the champion and what stood beside it, as the history of the pointer says.

The id of a decision (in a slate, of its first place) decides who makes it: `predictor.line_up.takes`. So the shares can be
computed again from the log alone, decision by decision.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, assert_never

import numpy as np
import pyarrow as pa

from contracts.policies import Champion, base_of
from contracts.records import utc_microseconds
from orchestration import policy_store
from orchestration.audit.evidence import Evidence, ShareEvidence
from predictor.line_up import takes

# A server reads the pointer some time after it has changed, and its clock differs: until then either line-up is right.
SLACK_MICROSECONDS = (60_000_000, 1_000_000)  # after a change, and before it


class Period(NamedTuple):
    """A time in which the pointer did not change, in microseconds since the epoch."""

    start: int
    end: float  # not in it; infinite for the last one
    serving: str | None  # None where the baseline serves
    beside: str | None
    role: str
    share: float

    @property
    def name(self) -> str:
        """The two versions, in words."""
        return f"{self.role} {self.beside} beside {self.serving}"


def periods(store: Path) -> list[Period]:
    """What the pointer of `store` said, oldest first. Raises InputError when its history cannot be read."""
    changes = policy_store.pointers(store)
    starts = [utc_microseconds(change.at) for change in changes]
    ends = [*starts, np.inf][1:]
    return [_period(start, end, change.pointer) for start, end, change in zip(starts, ends, changes, strict=True)]


def _period(start: int, end: float, pointer: Champion) -> Period:
    if pointer.shared_by == "traffic":  # by chance: the ids say nothing
        return Period(start, end, pointer.version, None, "", 0.0)
    match pointer.mode:
        case "canary":
            return Period(start, end, pointer.version, pointer.candidate, "candidate", pointer.candidate_share)
        case "probation":
            return Period(start, end, pointer.version, pointer.anchor, "anchor", pointer.anchor_share)
        case "shadow":
            return Period(start, end, pointer.version, None, "", 0.0)
        case "apprentice":
            return Period(start, end, None, None, "", 0.0)
        case unknown:
            assert_never(unknown)


def count(interactions: pa.RecordBatch, known: Sequence[Period]) -> Evidence:
    """The evidence of decisions (columns of `contracts.records.Interaction`) on how they were shared."""
    found = Evidence()
    decided = interactions.column("decided_at").cast(pa.int64()).to_numpy()
    if not len(decided):
        return found
    versions = np.array([base_of(version) for version in interactions.column("policy_version").to_pylist()])
    ids = _deciding_ids(interactions)
    after, before = SLACK_MICROSECONDS
    near = [one for one in known if one.start <= decided.max() + before and one.end > decided.min() - after]
    right, shared = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
    for period in near:
        mine = takes(period.role, period.share, ids) if period.beside is not None else np.zeros(len(ids), bool)
        possible = (decided >= period.start - before) & (decided < period.end + after)
        shared |= possible & np.isin(versions, [str(period.serving), str(period.beside)])
        right |= possible & (versions == np.where(mine, str(period.beside), str(period.serving)))
    for period in near:
        inside = (decided >= period.start) & (decided < period.end)
        if period.beside is None or not inside.any():
            continue
        wrong = inside & shared & ~right
        mine = takes(period.role, period.share, ids)
        found.shares[period.name] = ShareEvidence(
            decisions=int(inside.sum()),
            taken=int((inside & mine).sum()),
            expected=float(inside.sum() * period.share),
            compared=int((inside & shared).sum()),
            wrong_beside=int((wrong & (versions == period.beside)).sum()),
            wrong_serving=int((wrong & (versions == period.serving)).sum()),
        ).merge(found.shares.get(period.name, ShareEvidence()))
    return found


def _deciding_ids(interactions: pa.RecordBatch) -> list[str]:
    ids: list[str] = interactions.column("decision_id").to_pylist()
    if "slate_id" not in interactions.schema.names:
        return ids
    slates = interactions.column("slate_id").to_pylist()
    return [slate or own for slate, own in zip(slates, ids, strict=True)]
