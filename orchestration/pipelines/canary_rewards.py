"""The decisions of a canary and their rewards, read as they become complete: a look costs what came since the last look.

A decision is complete when its reward window has passed and its events had time to reach the tables
(`canary.watch` waits for that). A look therefore reads the decisions since the last look, and the rewards since the last
look, once each. Rewards that belong to decisions still to come are kept until their decision is read.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from contracts.policies import SharedBy
from contracts.records import Status
from contracts.reward_rules import combine, happened
from contracts.schemas import DECISIONS, REWARDS, STATUSES, Table
from contracts.windows import WindowSettings
from orchestration import ingestion
from orchestration.places import Places
from orchestration.probation import Logged, logged
from orchestration.watch import Evidence, Look, take
from predictor import policy as serving

if TYPE_CHECKING:  # Beam: only reading decisions needs it
    import pyarrow as pa

# What is known of a decision when it is compared; `decision_id` finds its rewards.
_COLUMNS = (
    "decision_id",
    "decided_at",
    "policy_version",
    "observation",
    "candidates",
    "action",
    "propensity",
    "place",
    "deferred",
)
T = TypeVar("T")
_TICK = timedelta(microseconds=1)  # the resolution of times in the tables


class CanaryWatch:
    """The evidence about a candidate beside the champion, up to any moment; each look continues from the last."""

    def __init__(
        self,
        rewards: "CanaryRewards",
        places: Places,
        versions: tuple[str, str],
        evidence: Evidence,
        shared_by: SharedBy = "ids",
    ) -> None:
        """Reads nothing yet.

        Args:
          rewards: since the canary began.
          places: where the policy store is.
          versions: of the candidate and of the champion.
          evidence: from before, with the champion as the anchor.
          shared_by: who picks the candidate's decisions.
        """
        self._rewards = rewards
        self._versions = versions
        self._candidate, self._champion = (serving.load(places.policies / version) for version in versions)
        self._shared_by = shared_by
        self._began = False
        self.evidence = evidence
        self.decisions = 0  # of the candidate, since the canary began

    def look(self, end: datetime) -> tuple[Look, int]:
        """What is known from the decisions made before `end`, and how many of them the candidate made.

        They count from the candidate's first decision on: before it, a server may not have read the pointer yet. Raises
        InputError or OperationError if the tables cannot be read.
        """
        candidate, champion = self._versions
        read = self._rewards.read_until(end)
        self.decisions += int((read.version == candidate).sum())
        found = read.shared(self._shared_by)
        own = found.version == candidate
        rows = np.flatnonzero(own | (found.version == champion))
        if not self._began:
            first = np.flatnonzero(own)[:1]
            rows = rows[rows > first[0]] if len(first) else rows[:0]  # whose the first one is, is known beforehand
            self._began = bool(len(first))
        self.evidence = self.evidence.add(take(found.by(champion), rows), self._candidate, self._champion)
        return self.evidence.look(candidate, champion), self.decisions


class CanaryRewards:
    """The decisions since a canary began that have a reward, up to any moment.

    Rewards count as the export counts them for training: those in time, combined by the settings' rule,
    and a missing one by the settings. A decision that was cancelled, or that was deferred and not activated in time, does not
    count. A row that reaches the tables after its moment was looked at is not counted.
    """

    def __init__(self, places: Places, warehouse: str, begin: datetime, settings: WindowSettings) -> None:
        """Reads nothing yet.

        Args:
          places: where the embedded event log and warehouse are.
          warehouse: `bigquery:PROJECT.DATASET`. If it is empty, each look ingests the new segments of the event log into
            the embedded warehouse, and reads from there.
          begin: when the canary started; earlier decisions do not count.
          settings: of the windows.
        """
        self._places = places
        self._warehouse = warehouse
        self._settings = settings
        self._window = timedelta(seconds=settings.reward_window_seconds)
        self._decided_until = self._rewarded_until = begin
        self._seen: set[str] = set()  # decisions that were counted: one may be stored again, at a later time
        self._waiting: dict[str, list[tuple[datetime, float]]] = {}  # rewards by decision
        self._noted: dict[str, list[tuple[datetime, Status]]] = {}  # activations and cancellations by decision

    def read_until(self, end: datetime) -> Logged:
        """The decisions made before `end`, and not before the last call's, in their order.

        Raises InputError or OperationError if the tables cannot be read.
        """
        return logged(self._joined(self._read(end) if end > self._decided_until else []))

    def _read(self, end: datetime) -> list[dict[str, Any]]:
        if not self._warehouse:
            ingestion.ingest(self._places)
        rewarded_until = end + self._window + _TICK
        decisions = self._rows(DECISIONS, self._decided_until, end, _COLUMNS)
        for row in self._rows(REWARDS, self._rewarded_until, rewarded_until, None):
            self._waiting.setdefault(row["decision_id"], []).append((row["occurred_at"], row["reward"]))
        for row in self._rows(STATUSES, self._rewarded_until, rewarded_until, None):
            self._noted.setdefault(row["decision_id"], []).append((row["occurred_at"], row["status"]))
        found: list[dict[str, Any]] = []
        for row in sorted(decisions, key=lambda row: (row["decided_at"], row["decision_id"])):
            if row["decision_id"] not in self._seen:
                self._seen.add(row["decision_id"])
                given = self._waiting.pop(row["decision_id"], [])
                noted = self._in_time(row["decided_at"], self._noted.pop(row["decision_id"], []))
                if happened(row["deferred"], (status for _, status in noted)):
                    found += [row | {"reward": reward} for reward in self._counted(row["decided_at"], given)]
        self._decided_until, self._rewarded_until = end, rewarded_until
        # What is left belongs to decisions to come, which cannot be rewarded before `end`, or to none.
        self._waiting, self._noted = _from(end, self._waiting), _from(end, self._noted)
        return found

    def _in_time(self, decided_at: datetime, events: Iterable[tuple[datetime, T]]) -> list[tuple[datetime, T]]:
        return [one for one in events if decided_at <= one[0] <= decided_at + self._window]

    def _joined(self, rows: list[dict[str, Any]]) -> "pa.RecordBatch":
        import pyarrow as pa

        from beam_jobs.tables import arrow_schema

        schema = arrow_schema(DECISIONS, _COLUMNS).append(pa.field("reward", pa.float64()))
        return pa.RecordBatch.from_pylist(rows, schema)

    def _counted(self, decided_at: datetime, rewards: Iterable[tuple[datetime, float]]) -> list[float]:
        """The reward that training would count, as a list of one; empty if it would drop the decision."""
        if in_time := self._in_time(decided_at, rewards):
            return [combine(self._settings.reward_rule, in_time)[1]]
        return [self._settings.default_reward] if self._settings.missing_reward == "default" else []

    def _rows(self, table: Table, begin: datetime, end: datetime, names: Sequence[str] | None) -> list[dict[str, Any]]:
        if self._warehouse:
            from beam_jobs import bigquery
            from beam_jobs.places import parse_dataset

            found = bigquery.read_all(parse_dataset(self._warehouse), table, begin, end, names)
        else:
            from beam_jobs import warehouse as embedded

            found = embedded.read(self._places.warehouse, table, begin, end, names).rows
        rows: list[dict[str, Any]] = found.to_pylist()
        return rows


def _from(moment: datetime, events: dict[str, list[tuple[datetime, T]]]) -> dict[str, list[tuple[datetime, T]]]:
    """The events at `moment` or later, by decision."""
    kept = {key: [one for one in some if one[0] >= moment] for key, some in events.items()}
    return {key: some for key, some in kept.items() if some}
