"""Whether anything was lost, counted twice, or paid to another decision: what happened, compared with what was kept.

Every figure of `Totals` compares things that were written independently: what the viewers say happened
(`orchestration.loop.truth`; for the bootstrap, what the generator put into the event log), the tables of the warehouse, the
records in the files of the training windows, and the lineage of the champion.
"""

from collections import Counter
from collections.abc import Iterator, Set
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from beam_jobs import warehouse
from beam_jobs.movielens import MovieLens
from contracts import schemas
from contracts.errors import InputError
from contracts.event_segments import sealed_segments
from contracts.policies import PolicyCard, base_of
from contracts.records import Decision, RewardEvent, event_decoder, utc_microseconds
from contracts.reward_rules import combine
from contracts.windows import Split, TrainingWindow, revision_folder
from orchestration.audit import guard
from orchestration.loop.run_folder import RunFolder
from orchestration.loop.settings import LoopSettings
from orchestration.loop.truth import (
    InjectedFaults,
    OfferedReward,
    RequestFailure,
    SentReward,
    ServedDecision,
    SessionStart,
    TruthReader,
    decided_milliseconds,
    windows_passed,
)
from trainer import dataset

# A record of a training window: observation (its bytes), action, reward as float32; None: there was no answer.
Record = tuple[bytes, int, float | None]


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the run, bootstrap included.

    `lost = lost_decisions + lost_rewards + lost_between_tables_and_windows + lost_between_windows_and_training`. An
    interaction is misattributed when its reward is not one that was sent for its observation and action; duplicated when
    it stands in the windows, or was trained on, more often than it happened. Interactions of others than the viewers
    count as trained, but cannot be judged.
    """

    decisions_served: int
    decisions_stored: int
    decisions_of_others: int  # of the stored ones: no simulated viewer asked for them, so their value is unknown
    decisions_outside_windows: int  # of the stored ones: after the last window; a resumed run trains on them
    rewards_sent: int
    rewards_stored: int
    interactions_exported: int
    interactions_trained: int
    # For the gate, and of windows whose policy was refused: the next update trains on them. Of windows that the guard refused:
    # no update does.
    interactions_held_back: int
    lost: int
    lost_decisions: int  # answered, but not in the tables
    lost_rewards: int  # accepted, but not in the tables
    lost_between_tables_and_windows: int
    lost_between_windows_and_training: int
    duplicated: int
    misattributed_rewards: int
    failed_requests: int
    events_read: int  # lines of the log that were ingested
    dead_letters: int
    faults_injected: dict[str, int]
    faults_found: dict[str, int]


def problems(totals: Totals) -> list[str]:
    """What does not add up, in words; empty when everything does."""
    late = totals.faults_found["late_rewards"] - totals.faults_injected["late_rewards"]
    counted = {
        "decisions were answered, but are not in the tables": totals.lost_decisions,
        "rewards were accepted, but are not in the tables": totals.lost_rewards,
        "interactions are in the tables, but not in the training windows": totals.lost_between_tables_and_windows,
        "records of the windows were never trained on": totals.lost_between_windows_and_training,
        "interactions were counted more than once": totals.duplicated,
        "rewards were paid to another decision": totals.misattributed_rewards,
        "rewards were late that viewers sent in time": late,
    }
    return [f"{count} {fact}" for fact, count in counted.items() if count > 0]


class Happened(NamedTuple):
    """The truth: what the viewers and the generator recorded."""

    sessions: list[SessionStart]
    decisions: dict[str, tuple[bytes, int]]  # decision_id: observation (float32), action
    rewards: list[SentReward]
    offered: dict[str, OfferedReward]  # decision_id: what a viewer that was killed may or may not have sent
    faults: list[InjectedFaults]
    failures: list[RequestFailure]

    @classmethod
    def read(cls, folder: RunFolder, movielens: MovieLens) -> "Happened":
        """Reads the truth. Raises InputError that names a file with a line that cannot be read."""
        decisions: dict[str, tuple[bytes, int]] = {}
        happened = cls([], decisions, [], {}, [], [])
        for segment in sealed_segments(folder.simulated):
            for line in segment.read_bytes().splitlines():
                event = event_decoder.decode(line)
                if isinstance(event, Decision):
                    observation = np.asarray(event.observation, np.float32).tobytes()
                    decisions[event.decision_id] = (observation, event.action)
                elif isinstance(event, RewardEvent):
                    moment = utc_microseconds(event.occurred_at)
                    happened.rewards.append(SentReward(event.decision_id, event.reward, moment, moment / 1e6, ""))
        observations = [row.tobytes() for row in movielens.observations]
        for entry in TruthReader(folder.truth).read():
            match entry:
                case SessionStart():
                    happened.sessions.append(entry)
                case ServedDecision():
                    decisions[entry.decision_id] = (observations[entry.user], entry.action)
                case OfferedReward():
                    happened.offered[entry.decision_id] = entry
                case SentReward():
                    happened.rewards.append(entry)
                    happened.offered.pop(entry.decision_id, None)
                case InjectedFaults():
                    happened.faults.append(entry)
                case RequestFailure():
                    happened.failures.append(entry)
        return happened


class Stored(NamedTuple):
    """The warehouse, read through its deduplicating reader."""

    decision_id: np.ndarray  # [N] str
    decided_at: np.ndarray  # [N] int64, microseconds
    policy_version: np.ndarray  # [N] str
    user: np.ndarray  # [N] int64, index of the viewer; -1: no simulated viewer asked, so no truth is known
    action: np.ndarray  # [N]
    angle: np.ndarray  # [N], how far tastes had turned
    duplicate_decisions: int
    reward_id: np.ndarray  # [M] str
    occurred_at: np.ndarray  # [M] int64, microseconds
    reward: np.ndarray  # [M]
    duplicate_rewards: int
    failed_at: np.ndarray  # [L] int64, microseconds

    @classmethod
    def read(cls, folder: RunFolder, movielens: MovieLens, sessions: list[SessionStart]) -> "Stored":
        """Reads the tables. Raises InputError when they do not exist."""
        always = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
        columns = ["decision_id", "decided_at", "policy_version", "user_id", "action"]
        decisions, duplicate_decisions = warehouse.read(folder.warehouse, schemas.DECISIONS, *always, columns)
        rewards, duplicate_rewards = warehouse.read(folder.warehouse, schemas.REWARDS, *always)
        dead_letters, _ = warehouse.read(folder.warehouse, schemas.DEAD_LETTERS, *always, ["failed_at"])
        index = {str(user_id): row for row, user_id in enumerate(movielens.user_ids)}
        ids = decisions["decision_id"].to_pylist()
        # As the viewers do: by the milliseconds of the id.
        moments = np.array([decided_milliseconds(decision_id) / 1e3 for decision_id in ids])
        settings = folder.settings()
        return cls(
            decision_id=np.array(ids, object),
            decided_at=_microseconds(decisions["decided_at"]),
            policy_version=np.array(decisions["policy_version"].to_pylist(), object),
            user=np.array([index.get(user_id, -1) for user_id in decisions["user_id"].to_pylist()], np.int64),
            action=decisions["action"].to_numpy(),
            angle=settings.drift * windows_passed(sessions, moments, settings.window_seconds),
            duplicate_decisions=duplicate_decisions,
            reward_id=np.array(rewards["decision_id"].to_pylist(), object),
            occurred_at=_microseconds(rewards["occurred_at"]),
            reward=rewards["reward"].to_numpy(),
            duplicate_rewards=duplicate_rewards,
            failed_at=_microseconds(dead_letters["failed_at"]),
        )

    @property
    def base(self) -> np.ndarray:
        """[N] the version that each decision counts for: the base of a live one."""
        return np.array([base_of(version) for version in self.policy_version.tolist()], object)

    @property
    def rewards(self) -> Iterator[tuple[str, int, float]]:
        """Decision, moment and value of each reward."""
        return zip(self.reward_id.tolist(), self.occurred_at.tolist(), self.reward.tolist(), strict=True)

    @property
    def moments(self) -> dict[str, int]:
        """The time of each decision in microseconds since the epoch, by its id."""
        return dict(zip(self.decision_id.tolist(), self.decided_at.tolist(), strict=True))


def totals(folder: RunFolder, happened: Happened, stored: Stored, card: PolicyCard, movielens: MovieLens) -> Totals:
    """The totals of the run; `card` is the champion's. Raises InputError when a window's records cannot be read."""
    settings, decided = folder.settings(), stored.moments
    stored_rewards = set(stored.rewards)
    sent = {(reward.decision_id, reward.occurred_at, reward.reward) for reward in happened.rewards}
    windows = _hold_against_windows(folder, happened, stored, card, movielens)
    lost_decisions = len(happened.decisions.keys() - decided.keys())
    lost_rewards = len(sent - stored_rewards)
    waits = [moment - decided[decision_id] for decision_id, moment, _ in stored_rewards if decision_id in decided]
    rows = len(decided) + len(stored.reward_id) + stored.duplicate_decisions + stored.duplicate_rewards
    return Totals(
        decisions_served=len(happened.decisions),
        decisions_stored=len(decided),
        decisions_of_others=int((stored.user < 0).sum()),
        decisions_outside_windows=windows.decisions_outside,
        rewards_sent=len(sent),
        rewards_stored=len(stored.reward_id),
        interactions_exported=windows.exported,
        interactions_trained=windows.trained,
        interactions_held_back=windows.held_back,
        lost=lost_decisions + lost_rewards + windows.not_exported + windows.passed_over,
        lost_decisions=lost_decisions,
        lost_rewards=lost_rewards,
        lost_between_tables_and_windows=windows.not_exported,
        lost_between_windows_and_training=windows.passed_over,
        duplicated=windows.duplicated,
        misattributed_rewards=windows.misattributed,
        failed_requests=len(happened.failures),
        events_read=rows + len(stored.failed_at),
        dead_letters=len(stored.failed_at),
        faults_injected=_injected(happened),
        faults_found={
            "orphan_rewards": len(stored.reward_id) - len(waits),
            "late_rewards": sum(wait > settings.reward_window_seconds * 1e6 for wait in waits),
            "duplicate_decisions": stored.duplicate_decisions,
            "duplicate_rewards": stored.duplicate_rewards,
            "malformed": len(stored.failed_at),
        },
    )


def inside(moments: np.ndarray, window: TrainingWindow) -> np.ndarray:
    """[N] bool: which of `moments`, [N] microseconds since the epoch, lie in the window."""
    return (moments >= utc_microseconds(window.start)) & (moments < utc_microseconds(window.end))


def _injected(happened: Happened) -> dict[str, int]:
    injected = {
        name: sum(getattr(fault, name) for fault in happened.faults) for name in InjectedFaults.__struct_fields__
    }
    injected["rewards_sent_twice"] = sum(reward.fault == "twice" for reward in happened.rewards)
    injected["late_rewards"] = sum(reward.fault == "late" for reward in happened.rewards)
    return injected


class _Windows(NamedTuple):
    """Counts of the records in the windows' files, and of those that the champion's lineage includes."""

    exported: int
    trained: int
    held_back: int
    decisions_outside: int
    not_exported: int
    passed_over: int
    duplicated: int
    misattributed: int


def _hold_against_windows(
    folder: RunFolder, happened: Happened, stored: Stored, card: PolicyCard, movielens: MovieLens
) -> _Windows:
    """Reads every record of every window, and compares it with what happened."""
    settings = folder.settings()
    own = _own_records(happened, stored, movielens, settings)
    arrived = set(stored.reward_id.tolist())
    takes_default = settings.missing_reward == "default"
    lineage = Counter((part.window.start, part.split) for part in card.trained_on)
    revision = {part.window.start: part.revision for part in card.trained_on}
    newest = max(part.window.start for part in card.trained_on)
    refused = set(guard.refused_windows(folder))
    windows = dataset.ready_windows(folder.windows)
    if gone := {start for start, _ in lineage} - {window.start for window in windows}:
        raise InputError(
            f"{folder.windows} has no window that starts at {min(gone).isoformat()}; {card.version} was trained on it"
        )
    exported: Counter[Record] = Counter()
    trained: Counter[Record] = Counter()
    held_back = not_exported = passed_over = 0
    outside = np.ones(len(stored.decided_at), bool)
    for window in windows:
        in_window: Counter[Record] = Counter()
        for split in ("train", "holdback"):
            times = lineage[window.start, split]
            records = Counter(_records(window, split, card.num_actions))
            in_window += records
            if times:
                learned = _in_revision(window, revision[window.start], split, card.num_actions)
                held_back += (records - learned).total()  # late rows, which a next update trains on
                trained.update({record: times * count for record, count in learned.items()})
            else:
                # Each update trains on all that is older than its newest window, which it judges itself by.
                seen = window.start < newest or (window.start == newest and split == "train")
                passed_over += records.total() if seen and window.start not in refused else 0
                held_back += 0 if seen and window.start not in refused else records.total()
        exported += in_window
        here = inside(stored.decided_at, window.manifest.window)
        outside &= ~here
        wanted = Counter(
            own[decision_id]
            for decision_id in stored.decision_id[here].tolist()
            # A reward that is not in the tables is counted as lost before.
            if decision_id in own and (takes_default if own[decision_id][2] is None else decision_id in arrived)
        )
        counts = window.manifest.counts
        missing = (wanted - in_window).total() - counts.set_aside  # which the manifest accounts for
        not_exported += max(missing, int(here.sum()) - counts.decisions)
    known = {row.tobytes() for row in movielens.observations}
    duplicated, misattributed = _too_often(exported | trained, Counter(own.values()), known)  # of each the larger count
    return _Windows(
        exported=exported.total(),
        trained=trained.total(),
        held_back=held_back,
        decisions_outside=int(outside.sum()),
        not_exported=not_exported,
        passed_over=passed_over,
        duplicated=duplicated,
        misattributed=misattributed,
    )


def _in_revision(window: dataset.ReadyWindow, revision: int, split: Split, num_actions: int) -> Counter[Record]:
    """The records of a split in that revision of the window."""
    folder = window.folder.with_name(revision_folder(window.manifest.window, revision))
    return Counter(_records(dataset.read_window(folder), split, num_actions))


def _too_often(found: Counter[Record], happened: Counter[Record], known: Set[bytes]) -> tuple[int, int]:
    """The number of records found more often than they happened, and of those that never did; of `known` observations."""
    duplicated = misattributed = 0
    for record, count in found.items():
        if record[0] not in known:
            continue
        if happened[record]:
            duplicated += max(0, count - happened[record])
        else:
            misattributed += count
    return duplicated, misattributed


def _own_records(happened: Happened, stored: Stored, movielens: MovieLens, settings: LoopSettings) -> dict[str, Record]:
    """By decision id, the record that a training window should hold, computed from what the viewers did."""
    decided, arrived = stored.moments, set(stored.rewards)
    decisions = dict(happened.decisions)
    for decision_id, user, action in zip(
        stored.decision_id.tolist(), stored.user.tolist(), stored.action.tolist(), strict=True
    ):
        if user >= 0:  # a viewer that was killed may not have noted its last ones
            decisions.setdefault(decision_id, (movielens.observations[user].tobytes(), action))
    sent = [(reward.decision_id, reward.occurred_at, reward.reward) for reward in happened.rewards]
    offered = [(reward.decision_id, reward.occurred_at, reward.reward) for reward in happened.offered.values()]
    in_time: dict[str, list[tuple[int, float]]] = {}
    for decision_id, occurred_at, reward in [*sent, *arrived.intersection(offered)]:
        wait = occurred_at - decided.get(decision_id, 0)
        if 0 <= wait <= settings.reward_window_seconds * 1e6:
            in_time.setdefault(decision_id, []).append((occurred_at, reward))
    counted = {decision_id: combine(settings.reward_rule, rewards)[1] for decision_id, rewards in in_time.items()}
    return {
        decision_id: (*of_whom, float(np.float32(counted[decision_id])) if decision_id in counted else None)
        for decision_id, of_whom in decisions.items()
    }


def _records(window: dataset.ReadyWindow, split: Split, num_actions: int) -> Iterator[Record]:
    for batch in dataset.read(window, split, num_actions):
        for observation, action, reward, defaulted in zip(
            batch.observation, batch.action.tolist(), batch.reward.tolist(), batch.defaulted.tolist(), strict=True
        ):
            yield observation.tobytes(), action, None if defaulted else reward


def _microseconds(column: pa.ChunkedArray) -> np.ndarray:
    moments: np.ndarray = column.cast("int64").to_numpy()
    return moments
