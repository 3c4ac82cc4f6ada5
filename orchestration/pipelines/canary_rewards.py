"""The rewards of a canary, read as they become complete: a look costs what came since the last look, not the history.

A decision is complete when its reward window has passed and its events had time to reach the tables
(`canary.watch` waits for that). A look therefore reads the decisions since the last look, and the rewards since the last
look, once each. Rewards that belong to decisions still to come are kept until their decision is read.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from contracts.reward_rules import combine
from contracts.schemas import DECISIONS, REWARDS, Table
from contracts.windows import WindowSettings
from orchestration import ingestion
from orchestration.pipelines.canary import Arm, Trial
from orchestration.places import Places

_TICK = timedelta(microseconds=1)  # the resolution of times in the tables


class CanaryRewards:
    """The trial of a candidate beside the champion, up to any moment; each look continues from the last.

    Rewards count as the export counts them for training: those in time, combined by the settings' rule, and a missing one by the settings. A row that
    reaches the tables after its moment was looked at is not counted.
    """

    def __init__(
        self,
        places: Places,
        warehouse: str,
        versions: tuple[str, str],
        begin: datetime,
        settings: WindowSettings,
    ) -> None:
        """Reads nothing yet.

        Args:
          places: where the embedded event log and warehouse are.
          warehouse: `bigquery:PROJECT.DATASET`. If it is empty, each look ingests the new segments of the event log into
            the embedded warehouse, and reads from there.
          versions: of the candidate and of the champion.
          begin: when the canary started; earlier decisions do not count.
          settings: of the windows.
        """
        self._places = places
        self._warehouse = warehouse
        self._arms = dict.fromkeys(versions, Arm.of([]))
        self._versions = versions
        self._settings = settings
        self._window = timedelta(seconds=settings.reward_window_seconds)
        self._decided_until = self._rewarded_until = begin
        self._seen: set[str] = set()  # decisions that were counted: one may be stored again, at a later time
        self._waiting: dict[str, list[tuple[datetime, float]]] = {}  # rewards by decision

    def trial(self, end: datetime) -> Trial:
        """The trial on the decisions made before `end`. Raises InputError or OperationError if the tables cannot be read."""
        if end > self._decided_until:
            self._read_until(end)
        candidate, champion = self._versions
        return Trial(self._arms[candidate], self._arms[champion])

    def _read_until(self, end: datetime) -> None:
        if not self._warehouse:
            ingestion.ingest(self._places)
        rewarded_until = end + self._window + _TICK
        names = ("decision_id", "decided_at", "policy_version")
        decisions = self._rows(DECISIONS, self._decided_until, end, names)
        for row in self._rows(REWARDS, self._rewarded_until, rewarded_until, None):
            self._waiting.setdefault(row["decision_id"], []).append((row["occurred_at"], row["reward"]))
        found: dict[str, list[float]] = {version: [] for version in self._versions}
        for row in sorted(decisions, key=lambda row: (row["decided_at"], row["decision_id"])):
            if row["policy_version"] in found and row["decision_id"] not in self._seen:
                self._seen.add(row["decision_id"])
                given = self._waiting.pop(row["decision_id"], [])
                found[row["policy_version"]] += self._counted(row["decided_at"], given)
        for version, rewards in found.items():
            self._arms[version] = merged(self._arms[version], Arm.of(rewards))
        self._decided_until, self._rewarded_until = end, rewarded_until
        # What is left belongs to decisions to come, which cannot be rewarded before `end`, or to none.
        kept = {key: [one for one in rewards if one[0] >= end] for key, rewards in self._waiting.items()}
        self._waiting = {key: rewards for key, rewards in kept.items() if rewards}

    def _counted(self, decided_at: datetime, rewards: Iterable[tuple[datetime, float]]) -> list[float]:
        """The reward that training would count, as a list of one; empty if it would drop the decision."""
        in_time = [one for one in rewards if decided_at <= one[0] <= decided_at + self._window]
        if in_time:
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


def merged(one: Arm, other: Arm) -> Arm:
    """The arm that received the rewards of both (Chan, Golub and LeVeque, 1983)."""
    count = one.decisions + other.decisions
    if not one.decisions or not other.decisions:
        return one if one.decisions else other
    apart = other.mean - one.mean
    mean = math.fsum((one.mean, apart * other.decisions / count))
    spread = math.fsum(
        (
            one.variance * (one.decisions - 1),
            other.variance * (other.decisions - 1),
            apart**2 * one.decisions * other.decisions / count,
        )
    )
    return Arm(count, mean, spread / (count - 1))
