"""What a run of the loop shows: `report.json`, counted from the data, and `report.html` for people.

Every figure in `totals` compares two things that were written independently: what the viewers say happened
(`orchestration.truth`; for the bootstrap, what the generator put into the event log) and what is in the warehouse, in the
training windows and in the lineage of the champion.
"""

from collections import Counter
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from beam_jobs import warehouse
from beam_jobs.movielens import MovieLens
from beam_jobs.reward_join import in_holdback
from contracts import schemas
from contracts.errors import InputError
from contracts.event_segments import sealed_segments
from contracts.policies import PolicyCard
from contracts.records import Decision, event_decoder, utc_microseconds
from contracts.windows import Manifest, TrainingWindow
from orchestration import plan, report_page, steps
from orchestration.run_folder import JournalEntry, RunFolder
from orchestration.settings import LoopSettings
from orchestration.simulator import new_movies
from orchestration.truth import (
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
from predictor import policy as serving
from trainer import dataset


class Seconds(msgspec.Struct, frozen=True):
    """A distribution of durations; null when there is nothing to measure."""

    p50: float | None
    p99: float | None


class OffPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The candidate's estimated reward a decision on the held-back decisions, and what it really is there."""

    estimate: float
    low: float
    high: float
    effective_sample_size: float
    truth: float | None


class VersionShare(msgspec.Struct, frozen=True, kw_only=True):
    """What one policy version did in a window."""

    decisions: int
    mean_expected_reward: float


class WindowReport(msgspec.Struct, frozen=True, kw_only=True):
    """One training window. `policy_version` is the one that made most of its decisions.

    Rewards are expected ones, at the moment of each decision: where tastes drift, what to compare with drifts too.
    """

    number: int
    start: datetime
    end: datetime
    interrupted: bool
    policy_version: str
    policy_versions: dict[str, VersionShare]
    decisions: int
    rewards: int
    defaulted: int
    dropped: int
    late_rewards: int
    orphan_rewards: int
    duplicates: int
    dead_letters: int
    mean_expected_reward: float
    oracle_reward: float
    best_fixed_reward: float  # of the one movie that would have been best for all of the window's decisions
    uniform_reward: float
    new_movie_decisions: int  # that showed a movie that came out when serving began
    masked_movie_decisions: int  # that showed one that was not on offer
    regret: float  # summed over the window's decisions
    candidate: str
    off_policy: OffPolicy | None
    gain: tuple[float, float, float] | None  # value, low, high
    promoted: bool
    reason: str
    ingest_seconds: float
    export_seconds: float
    train_seconds: float
    gate_seconds: float
    freshness_seconds: Seconds  # from a reward's being sent to a policy trained on it serving


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the run, bootstrap included.

    `lost = lost_decisions + lost_rewards + lost_between_tables_and_windows`. A trained interaction is misattributed when
    its reward is not one that was sent for its observation and action; duplicated when it was trained more often than
    it happened. Interactions of others than the viewers count as trained, but cannot be judged.
    """

    decisions_served: int
    decisions_stored: int
    decisions_of_others: int  # of the stored ones: nobody of the simulated viewers asked, so their worth is unknown
    decisions_outside_windows: int  # of the stored ones: after the last window; a resumed run trains on them
    rewards_sent: int
    rewards_stored: int
    interactions_exported: int
    interactions_trained: int
    interactions_held_back: int  # of the last window, for the gate; the next update would train on them
    lost: int
    lost_decisions: int
    lost_rewards: int
    lost_between_tables_and_windows: int
    duplicated: int
    misattributed_rewards: int
    failed_requests: int
    events_read: int  # lines of the log that were ingested
    dead_letters: int
    faults_injected: dict[str, int]
    faults_found: dict[str, int]


class ReferenceReport(msgspec.Struct, frozen=True):
    """Expected reward a decision when serving begins, over all users uniformly."""

    oracle: float
    best_fixed_action: float
    uniform: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`report.json`."""

    settings: LoopSettings
    reference: ReferenceReport
    bootstrap: WindowReport
    windows: list[WindowReport]
    totals: Totals
    champion: str
    freshness_seconds: Seconds


class Progress:
    """The line that is printed for each window."""

    def __init__(self, folder: RunFolder, movielens: MovieLens, settings: LoopSettings) -> None:
        self._folder = folder
        self._movielens = movielens
        self._settings = settings
        self._truth = TruthReader(folder.truth)
        self._sessions: list[SessionStart] = []
        self._served: list[tuple[int, float, float]] = []  # milliseconds, expected reward, oracle's
        self._users = {row.tobytes(): user for user, row in enumerate(movielens.observations)}

    def decisions_between(self, begin: datetime, end: datetime) -> int:
        """How many decisions the warehouse holds for `[begin, end)`."""
        rows, _ = warehouse.read(self._folder.warehouse, schemas.DECISIONS, begin, end, ["decision_id"])
        count: int = rows.num_rows
        return count

    def true_value(self, card: PolicyCard) -> float | None:
        """The expected reward of the policy on the decisions on which the gate judges it; None when there are none.

        Where tastes drift, with those in the middle of the window.
        """
        self._read()
        held_back = steps.held_back(self._folder.windows, card).observation
        users = np.array([self._users.get(row.tobytes(), -1) for row in held_back], np.int64)
        observations, users = held_back[users >= 0], users[users >= 0]
        if not len(observations):
            return None
        probabilities = serving.load(self._folder.policies / card.version).probabilities(observations)
        window = max((trained.window for trained in card.trained_on), key=lambda window: window.start)
        middle = (window.start + (window.end - window.start) / 2).timestamp()
        passed = windows_passed(self._sessions, np.array([middle]), self._settings.window_seconds)
        expected = self._movielens.expected_of_all_actions(users, self._settings.drift * passed)
        return float((probabilities * expected).sum(axis=1).mean())

    def line(self, entry: JournalEntry) -> str:
        """How the window went, in one line."""
        self._read()
        begin, end = (utc_microseconds(moment) // 1000 for moment in (entry.window.start, entry.window.end))
        inside = [(reward, oracle) for moment, reward, oracle in self._served if begin <= moment < end]
        self._served = [decision for decision in self._served if decision[0] >= end]
        name = "bootstrap" if entry.number == 0 else f"window {entry.number:>2}/{self._settings.windows}"
        parts = [f"{name + (' (interrupted)' if entry.interrupted else ''):<12}"]
        if inside:
            rewards, oracle = np.array(inside).T
            parts.append(
                f"{len(inside):>5} decisions, reward {rewards.mean():.3f} = {rewards.sum() / oracle.sum():.1%} of oracle"
            )
        if (evaluation := entry.gate.evaluation) is not None:
            parts.append(
                f"next policy {evaluation.value:.2f} [{evaluation.low:.2f}, {evaluation.high:.2f}]"
                + (f", truth {entry.true_value:.2f}" if entry.true_value is not None else "")
            )
        outcome = "promoted" if entry.gate.promoted else f"not promoted: {entry.gate.reason}"
        after = (
            f" {(entry.serving_at - entry.window.end).total_seconds():.1f} s after the window"
            if entry.serving_at and entry.number
            else ""
        )
        parts.append(f"{outcome}{after} (train {entry.train_seconds:.2f} s)")
        return "  ".join(parts)

    def _read(self) -> None:
        for entry in self._truth.read():
            if isinstance(entry, SessionStart):
                self._sessions.append(entry)
            elif isinstance(entry, ServedDecision):
                moment = decided_milliseconds(entry.decision_id)
                self._served.append((moment, entry.expected_reward, entry.oracle_reward))


def write(folder: RunFolder, movielens: MovieLens) -> Report:
    """Makes both reports of the run in `folder` and returns what is in them."""
    report = build(folder, movielens)
    plan.replace_file(folder.report_json, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    plan.replace_file(folder.report_html, report_page.render(report, movielens.catalogue).encode())
    return report


def build(folder: RunFolder, movielens: MovieLens) -> Report:
    """Counts everything anew from what the run left. Raises InputError when a part of it cannot be read."""
    settings = folder.settings()
    journal = folder.journal()
    manifests = {window.start: window.manifest for window in dataset.ready_windows(folder.windows)}
    happened = _what_happened(folder, movielens)
    stored = _Stored.read(folder, movielens, happened.sessions)
    champion = plan.champion(folder.policies)
    if champion is None or not journal:
        raise InputError(f"{folder.root} holds no finished training window to report on")
    card = serving.read_card(folder.policies / champion.version)
    freshness = _freshness(settings, folder, happened, stored, journal, card)
    new = new_movies(settings, movielens)
    windows = [
        _window_report(
            entry,
            manifests[entry.window.start],
            stored,
            freshness[position],
            movielens if position else movielens.masking(new),  # the bootstrap comes first, and they come after it
            new,
        )
        for position, entry in enumerate(journal)
    ]
    observations = [row.tobytes() for row in movielens.observations]
    reference = movielens.reference
    return Report(
        settings=settings,
        reference=ReferenceReport(reference.oracle, reference.best_fixed_action, reference.uniform),
        bootstrap=windows[0],
        windows=windows[1:],
        totals=_totals(folder, happened, stored, list(manifests.values()), card, observations),
        champion=champion.version,
        freshness_seconds=_percentiles(np.concatenate([*freshness[1:], np.zeros(0)])),
    )


class _Happened(NamedTuple):
    """What the viewers and the generator say."""

    sessions: list[SessionStart]
    decisions: dict[str, tuple[bytes, int]]  # decision_id: observation (float32), action
    rewards: list[SentReward]
    offered: dict[str, OfferedReward]  # decision_id: what a viewer that was killed may or may not have sent
    faults: list[InjectedFaults]
    failures: list[RequestFailure]


def _what_happened(folder: RunFolder, movielens: MovieLens) -> _Happened:
    decisions: dict[str, tuple[bytes, int]] = {}
    happened = _Happened([], decisions, [], {}, [], [])
    for segment in sealed_segments(folder.simulated):
        for line in segment.read_bytes().splitlines():
            event = event_decoder.decode(line)
            if isinstance(event, Decision):
                observation = np.asarray(event.observation, np.float32).tobytes()
                decisions[event.decision_id] = (observation, event.action)
            else:
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


class _Stored(NamedTuple):
    """The warehouse, read through its deduplicating reader."""

    decision_id: np.ndarray  # [N] str
    decided_at: np.ndarray  # [N] int64, microseconds
    policy_version: np.ndarray  # [N] str
    user: np.ndarray  # [N] int64, index of the viewer; -1: somebody else asked, of whom no truth is known
    action: np.ndarray  # [N]
    angle: np.ndarray  # [N], how far tastes had turned
    duplicate_decisions: int
    reward_id: np.ndarray  # [M] str
    occurred_at: np.ndarray  # [M] int64, microseconds
    reward: np.ndarray  # [M]
    duplicate_rewards: int
    failed_at: np.ndarray  # [L] int64, microseconds

    @classmethod
    def read(cls, folder: RunFolder, movielens: MovieLens, sessions: list[SessionStart]) -> "_Stored":
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


def _window_report(
    entry: JournalEntry,
    manifest: Manifest,
    stored: _Stored,
    freshness: np.ndarray,
    movielens: MovieLens,
    new: list[int],
) -> WindowReport:
    counts, gate = manifest.counts, entry.gate
    inside = _inside(stored.decided_at, entry.window) & (stored.user >= 0)
    decided_by, actions = stored.policy_version[inside], stored.action[inside]
    of_all = movielens.expected_of_all_actions(stored.user[inside], stored.angle[inside])
    expected, of_all = of_all[np.arange(len(actions)), actions], of_all[:, movielens.on_offer]
    oracle = of_all.max(axis=1)
    versions = {
        version: VersionShare(
            decisions=int((decided_by == version).sum()),
            mean_expected_reward=float(expected[decided_by == version].mean()),
        )
        for version in sorted(set(decided_by.tolist()))
    }
    off_policy = None
    if (judged := gate.evaluation) is not None:
        off_policy = OffPolicy(
            estimate=judged.value,
            low=judged.low,
            high=judged.high,
            effective_sample_size=judged.effective_sample_size,
            truth=entry.true_value,
        )
    return WindowReport(
        number=entry.number,
        start=entry.window.start,
        end=entry.window.end,
        interrupted=entry.interrupted,
        policy_version=max(versions, key=lambda version: versions[version].decisions, default=""),
        policy_versions=versions,
        decisions=counts.decisions,
        rewards=counts.rewards,
        defaulted=counts.defaulted,
        dropped=counts.dropped,
        late_rewards=counts.late_rewards,
        orphan_rewards=counts.orphan_rewards,
        duplicates=counts.duplicate_decisions + counts.duplicate_rewards + counts.repeated_rewards,
        dead_letters=int(_inside(stored.failed_at, entry.window).sum()),
        mean_expected_reward=_mean(expected),
        oracle_reward=_mean(oracle),
        best_fixed_reward=float(of_all.mean(axis=0).max()) if len(of_all) else 0.0,
        uniform_reward=_mean(of_all),
        new_movie_decisions=int(np.isin(actions, new).sum()),
        masked_movie_decisions=int((~np.isin(actions, movielens.on_offer)).sum()),
        regret=float((oracle - expected).sum()),
        candidate=entry.candidate,
        off_policy=off_policy,
        gain=None
        if gate.gain is None or gate.gain_low is None or gate.gain_high is None
        else (gate.gain, gate.gain_low, gate.gain_high),
        promoted=gate.promoted,
        reason=gate.reason,
        ingest_seconds=entry.ingest_seconds,
        export_seconds=entry.export_seconds,
        train_seconds=entry.train_seconds,
        gate_seconds=entry.gate_seconds,
        freshness_seconds=_percentiles(freshness),
    )


def _freshness(
    settings: LoopSettings,
    folder: RunFolder,
    happened: _Happened,
    stored: _Stored,
    journal: list[JournalEntry],
    card: PolicyCard,
) -> list[np.ndarray]:
    """For each journal entry, seconds from a reward's being sent to a policy trained on it serving.

    A reward counts when its decision's split of its window is in the lineage of the policies that served.
    """
    decided = dict(zip(stored.decision_id.tolist(), stored.decided_at.tolist(), strict=True))
    serving_since: dict[tuple[datetime, str], float] = {}
    for entry in journal:
        if entry.serving_at is not None:
            promoted = serving.read_card(folder.policies / entry.candidate)
            for trained in promoted.trained_on:
                serving_since.setdefault((trained.window.start, trained.split), entry.serving_at.timestamp())
    lags: list[list[float]] = [[] for _ in journal]
    bounds = np.array([utc_microseconds(entry.window.start) for entry in journal])
    reward_window = settings.reward_window_seconds * 1e6
    held_back = in_holdback(pa.array([reward.decision_id for reward in happened.rewards]), settings.holdback_share)
    for reward, is_held_back in zip(happened.rewards, held_back.tolist(), strict=True):
        moment = decided.get(reward.decision_id)
        if moment is None or reward.occurred_at - moment > reward_window:
            continue
        position = int(np.searchsorted(bounds, moment, side="right")) - 1
        if position < 0 or not _inside(np.array([moment]), journal[position].window)[0]:
            continue
        split = "holdback" if is_held_back else "train"
        since = serving_since.get((journal[position].window.start, split))
        if since is not None:
            lags[position].append(since - reward.sent_at)
    return [np.array(seconds) for seconds in lags]


def _totals(
    folder: RunFolder,
    happened: _Happened,
    stored: _Stored,
    manifests: list[Manifest],
    card: PolicyCard,
    observations: list[bytes],  # of each viewer
) -> Totals:
    stored_ids = set(stored.decision_id.tolist())
    stored_rewards = set(
        zip(stored.reward_id.tolist(), stored.occurred_at.tolist(), stored.reward.tolist(), strict=True)
    )
    sent = {(reward.decision_id, reward.occurred_at, reward.reward): reward for reward in happened.rewards}
    covered = np.zeros(len(stored.decided_at), bool)
    for manifest in manifests:
        covered |= _inside(stored.decided_at, manifest.window)
    lost_decisions = len(happened.decisions.keys() - stored_ids)
    lost_rewards = len(sent.keys() - stored_rewards)
    exported = sum(manifest.counts.decisions for manifest in manifests)
    not_exported = max(0, int(covered.sum()) - exported)
    trained, duplicated, misattributed = _check_trained(folder, happened, stored, card, observations)
    records = sum(manifest.records("train", "holdback") for manifest in manifests)

    injected = {
        name: sum(getattr(fault, name) for fault in happened.faults) for name in InjectedFaults.__struct_fields__
    }
    injected["rewards_sent_twice"] = sum(reward.fault == "twice" for reward in happened.rewards)
    injected["late_rewards"] = sum(reward.fault == "late" for reward in happened.rewards)
    known = dict(zip(stored.decision_id.tolist(), stored.decided_at.tolist(), strict=True))
    rewards = zip(stored.reward_id.tolist(), stored.occurred_at.tolist(), strict=True)
    waits = [moment - known[decision_id] for decision_id, moment in rewards if decision_id in known]
    settings = folder.settings()
    found = {
        "orphan_rewards": len(stored.reward_id) - len(waits),
        "late_rewards": sum(wait > settings.reward_window_seconds * 1e6 for wait in waits),
        "duplicate_decisions": stored.duplicate_decisions,
        "duplicate_rewards": stored.duplicate_rewards,
        "malformed": len(stored.failed_at),
    }
    rows = len(stored_ids) + len(stored.reward_id) + stored.duplicate_decisions + stored.duplicate_rewards
    return Totals(
        decisions_served=len(happened.decisions),
        decisions_stored=len(stored_ids),
        decisions_of_others=int((stored.user < 0).sum()),
        decisions_outside_windows=int((~covered).sum()),
        rewards_sent=len(sent),
        rewards_stored=len(stored.reward_id),
        interactions_exported=records,
        interactions_trained=trained,
        interactions_held_back=records - trained,
        lost=lost_decisions + lost_rewards + not_exported,
        lost_decisions=lost_decisions,
        lost_rewards=lost_rewards,
        lost_between_tables_and_windows=not_exported,
        duplicated=duplicated,
        misattributed_rewards=misattributed,
        failed_requests=len(happened.failures),
        events_read=rows + len(stored.failed_at),
        dead_letters=len(stored.failed_at),
        faults_injected=injected,
        faults_found=found,
    )


def _check_trained(
    folder: RunFolder, happened: _Happened, stored: _Stored, card: PolicyCard, observations: list[bytes]
) -> tuple[int, int, int]:
    """Reads every record that the champion's lineage was trained on, and holds it against what happened.

    Returns:
      interactions trained, those trained more often than they happened, and those with a reward that is not their own.
    """
    settings = folder.settings()
    decided = dict(zip(stored.decision_id.tolist(), stored.decided_at.tolist(), strict=True))
    own: Counter[tuple[bytes, int, float]] = Counter()
    answered = set()
    decisions = dict(happened.decisions)
    for decision_id, user, action in zip(
        stored.decision_id.tolist(), stored.user.tolist(), stored.action.tolist(), strict=True
    ):
        if user >= 0:  # a viewer that was killed may not have noted its last ones
            decisions.setdefault(decision_id, (observations[user], action))
    rewards: list[SentReward | OfferedReward] = [*happened.rewards, *happened.offered.values()]
    for reward in rewards:
        served = decisions.get(reward.decision_id)
        in_time = reward.occurred_at - decided.get(reward.decision_id, 0) <= settings.reward_window_seconds * 1e6
        if served is not None and in_time and reward.decision_id not in answered:
            answered.add(reward.decision_id)
            own[(*served, float(np.float32(reward.reward)))] += 1
    unanswered = Counter(served for decision_id, served in decisions.items() if decision_id not in answered)
    known = set(observations)
    trained = duplicated = misattributed = 0
    seen: Counter[Any] = Counter()
    windows = {window.start: window for window in dataset.ready_windows(folder.windows)}
    for part in card.trained_on:
        for batch in dataset.read(windows[part.window.start], part.split, card.num_actions):
            for observation, action, reward, defaulted in zip(
                batch.observation, batch.action.tolist(), batch.reward.tolist(), batch.defaulted.tolist(), strict=True
            ):
                trained += 1
                if observation.tobytes() not in known:
                    continue
                key = (observation.tobytes(), action, reward)
                happened_often = unanswered[key[:2]] if defaulted else own[key]
                seen[key] += 1
                if not happened_often:
                    misattributed += 1
                elif seen[key] > happened_often:
                    duplicated += 1
    return trained, duplicated, misattributed


def _inside(moments: np.ndarray, window: TrainingWindow) -> np.ndarray:
    return (moments >= utc_microseconds(window.start)) & (moments < utc_microseconds(window.end))


def _microseconds(column: Any) -> np.ndarray:
    moments: np.ndarray = column.cast("int64").to_numpy()
    return moments


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _percentiles(seconds: np.ndarray) -> Seconds:
    if not len(seconds):
        return Seconds(None, None)
    p50, p99 = np.percentile(seconds, [50, 99])
    return Seconds(round(float(p50), 3), round(float(p99), 3))
