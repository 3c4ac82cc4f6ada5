"""The figures of a run of the loop, as `report.json` holds them, counted from the data that the run left.

`totals` are made by `orchestration.loop.accounting`.
"""

from datetime import datetime

import msgspec
import numpy as np
import pyarrow as pa

from beam_jobs.movielens import MovieLens
from beam_jobs.reward_join import in_holdback
from contracts.errors import InputError
from contracts.policies import PolicyCard
from contracts.records import utc_microseconds
from contracts.windows import Manifest
from orchestration import live_control, policy_store
from orchestration.gate import GateResult
from orchestration.loop import accounting
from orchestration.loop.accounting import Happened, Stored, Totals, inside
from orchestration.loop.audience import new_movies
from orchestration.loop.live import LOGGED_SECONDS, ServedVersions
from orchestration.loop.run_folder import JournalEntry, RunFolder
from orchestration.loop.settings import LoopSettings
from orchestration.loop.trials import Trials, trials
from orchestration.watch import Look
from predictor import policy as serving
from trainer import dataset


class Seconds(msgspec.Struct, frozen=True):
    """A distribution of durations; null when there is nothing to measure."""

    p50: float | None
    p99: float | None


class OffPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """The candidate's reward per decision on the held-back decisions: the gate's estimate, and the truth."""

    estimate: float
    low: float
    high: float
    effective_sample_size: float
    truth: float | None
    reliable: bool = True


class VersionShare(msgspec.Struct, frozen=True, kw_only=True):
    """The decisions of one policy version in a window."""

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
    policy_versions: dict[str, VersionShare]  # live versions count as their base
    live_decisions: int = 0  # made by live versions
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
    held_by: str = ""  # what held the watermark, if the window waited longer than usual
    overdue: bool = False
    revision: int = 0  # of the window; its counts are those of the newest
    came_late: int = 0  # rows that a revision took in: they came after the first export
    export_seconds: float
    train_seconds: float
    gate_seconds: float
    freshness_seconds: Seconds  # from a reward's being sent to a policy trained on it serving
    live_freshness_seconds: Seconds | None = None  # of the rewards that were sent in the window; see `Report`
    look: Look | None = None  # at the version on probation, after the window


class ReferenceReport(msgspec.Struct, frozen=True):
    """Expected reward per decision when serving begins, over all users uniformly."""

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
    trials: Trials = Trials()
    # From a reward's being sent to the first decision by a live version that learned it; null without live learning.
    live_freshness_seconds: Seconds | None = None
    live_holds: int = 0  # how often live learning was held


def read(folder: RunFolder) -> Report:
    """The report that was written of a run."""
    return msgspec.json.decode(folder.report_json.read_bytes(), type=Report)


def came_late(folder: RunFolder, manifest: Manifest) -> int:
    """How many rows came after the first export of a window: decisions, and what came in time for them."""
    first = dataset.read_window(folder.windows / manifest.window.folder).manifest.counts
    return (
        manifest.counts.decisions
        - first.decisions
        + (manifest.counts.rewards_in_time or 0)
        - (first.rewards_in_time or 0)
        + manifest.counts.statuses_in_time
        - first.statuses_in_time
    )


def waited(window: WindowReport) -> str:
    """That the window waited for its events, and why."""
    return f"window {window.number} waited {window.ingest_seconds:.1f} s for its events: held by {window.held_by}"


def freshness_in_words(report: Report) -> tuple[str, str]:
    """How long a reward takes to serve: the median, and what it is measured to."""
    trained, live = report.freshness_seconds, report.live_freshness_seconds
    to_a_policy = f"serving a policy that was trained on it{_spread(trained, with_median=live is not None)}"
    if live is None:
        title = "freshness unknown" if trained.p50 is None else f"fresh after {trained.p50:.1f} s"
        return title, f"median time from sending a reward to {to_a_policy}"
    title = "live freshness unknown" if live.p50 is None else f"fresh after {live.p50:.2f} s"
    to_a_decision = f"a decision by a live version that learned it{_spread(live)}"
    return title, f"median time from sending a reward to {to_a_decision}. To {to_a_policy}"


def _spread(seconds: Seconds, with_median: bool = False) -> str:
    if seconds.p50 is None or seconds.p99 is None:
        return ": none"
    return (f": {seconds.p50:.1f} s" if with_median else "") + f"; 99%: {seconds.p99:.1f} s"


def noted_manifests(folder: RunFolder, journal: list[JournalEntry]) -> dict[datetime, Manifest]:
    """The manifests of the run's windows by start. Raises InputError that names a finished window without a manifest."""
    manifests = {window.start: window.manifest for window in dataset.ready_windows(folder.windows)}
    for entry in journal:
        if entry.window.start not in manifests:
            raise InputError(f"{folder.windows / entry.window.folder}: no manifest, but the run noted it as trained on")
    return manifests


def build(folder: RunFolder, movielens: MovieLens) -> Report:
    """The report of a run, counted from the files that it left. Raises InputError when a part cannot be read."""
    settings = folder.settings()
    journal = folder.journal()
    manifests = noted_manifests(folder, journal)
    happened = Happened.read(folder, movielens)
    stored = Stored.read(folder, movielens, happened.sessions)
    champion = policy_store.champion(folder.policies)
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
    windows = [
        msgspec.structs.replace(window, came_late=came_late(folder, manifests[window.start])) for window in windows
    ]
    sent_at, lags = _live_freshness(settings, folder, happened, stored)
    if settings.learning == "live":
        windows = [
            msgspec.structs.replace(window, live_freshness_seconds=_percentiles(lags[_sent_in(sent_at, window)]))
            for window in windows
        ]
    reference = movielens.reference
    return Report(
        settings=settings,
        reference=ReferenceReport(reference.oracle, reference.best_fixed_action, reference.uniform),
        bootstrap=windows[0],
        windows=windows[1:],
        totals=accounting.totals(folder, happened, stored, card, movielens),
        champion=champion.version,
        freshness_seconds=_percentiles(np.concatenate([*freshness[1:], np.zeros(0)])),
        trials=trials([entry.look for entry in journal]),
        live_freshness_seconds=_percentiles(lags) if settings.learning == "live" else None,
        live_holds=live_control.holds(folder.live),
    )


def _live_freshness(
    settings: LoopSettings, folder: RunFolder, happened: Happened, stored: Stored
) -> tuple[np.ndarray, np.ndarray]:
    """[M] when rewards were sent, seconds since the epoch, and [M] seconds until a live version that learned them decided.

    Of the rewards in time that are not held back and that a live version learned before the run ended.
    """
    if settings.learning == "windows":
        return np.zeros(0), np.zeros(0)
    decided, began = stored.moments, min((session.start for session in happened.sessions), default=0.0)
    held_back = in_holdback(pa.array([reward.decision_id for reward in happened.rewards]), settings.holdback_share)
    in_time = [
        reward.sent_at
        for reward, is_held_back in zip(happened.rewards, held_back.tolist(), strict=True)
        if not is_held_back
        and reward.sent_at >= began  # not of the bootstrap
        and reward.occurred_at - decided.get(reward.decision_id, reward.occurred_at)
        <= settings.reward_window_seconds * 1e6
    ]
    sent_at = np.array(in_time)
    lags = ServedVersions(folder.live, stored.policy_version, stored.decided_at).lags(
        sent_at, LOGGED_SECONDS[settings.backend]
    )
    learned = ~np.isnan(lags)
    return sent_at[learned], lags[learned]


def _sent_in(sent_at: np.ndarray, window: WindowReport) -> np.ndarray:
    return (sent_at >= window.start.timestamp()) & (sent_at < window.end.timestamp())


def _window_report(
    entry: JournalEntry,
    manifest: Manifest,
    stored: Stored,
    freshness: np.ndarray,
    movielens: MovieLens,
    new: list[int],
) -> WindowReport:
    counts, gate = manifest.counts, entry.gate
    here = inside(stored.decided_at, entry.window) & (stored.user >= 0)
    decided_by, actions = stored.base[here], stored.action[here]
    of_all = movielens.expected_of_all_actions(stored.user[here], stored.angle[here])
    expected, of_all = of_all[np.arange(len(actions)), actions], of_all[:, movielens.on_offer]
    oracle = of_all.max(axis=1)
    versions = {
        version: VersionShare(
            decisions=int((decided_by == version).sum()),
            mean_expected_reward=float(expected[decided_by == version].mean()),
        )
        for version in sorted(set(decided_by.tolist()))
    }
    return WindowReport(
        number=entry.number,
        start=entry.window.start,
        end=entry.window.end,
        interrupted=entry.interrupted,
        policy_version=max(versions, key=lambda version: versions[version].decisions, default=""),
        policy_versions=versions,
        live_decisions=int((stored.policy_version[here] != decided_by).sum()),
        decisions=counts.decisions,
        rewards=counts.rewards,
        defaulted=counts.defaulted,
        dropped=counts.dropped,
        late_rewards=counts.late_rewards,
        orphan_rewards=counts.orphan_rewards,
        duplicates=counts.duplicate_decisions + counts.duplicate_rewards + counts.repeated_rewards,
        dead_letters=int(inside(stored.failed_at, entry.window).sum()),
        mean_expected_reward=_mean(expected),
        oracle_reward=_mean(oracle),
        best_fixed_reward=float(of_all.mean(axis=0).max()) if len(of_all) else 0.0,
        uniform_reward=_mean(of_all),
        new_movie_decisions=int(np.isin(actions, new).sum()),
        masked_movie_decisions=int((~np.isin(actions, movielens.on_offer)).sum()),
        regret=float((oracle - expected).sum()),
        candidate=entry.candidate,
        off_policy=_off_policy(entry),
        gain=_gain(gate),
        promoted=gate.promoted,
        reason=gate.reason,
        ingest_seconds=entry.ingest_seconds,
        held_by=entry.held_by,
        overdue=entry.overdue,
        revision=manifest.revision,
        export_seconds=entry.export_seconds,
        train_seconds=entry.train_seconds,
        gate_seconds=entry.gate_seconds,
        freshness_seconds=_percentiles(freshness),
        look=entry.look,
    )


def _gain(gate: GateResult) -> tuple[float, float, float] | None:
    if gate.gain is None or gate.gain_low is None or gate.gain_high is None:
        return None
    return gate.gain, gate.gain_low, gate.gain_high


def _off_policy(entry: JournalEntry) -> OffPolicy | None:
    """The gate's estimate and the truth; None when the gate had no decisions to judge by."""
    if (judged := entry.gate.evaluation) is None:
        return None
    return OffPolicy(
        estimate=judged.value,
        low=judged.low,
        high=judged.high,
        effective_sample_size=judged.effective_sample_size,
        truth=entry.true_value,
        reliable=judged.reliable,
    )


def _freshness(
    settings: LoopSettings,
    folder: RunFolder,
    happened: Happened,
    stored: Stored,
    journal: list[JournalEntry],
    card: PolicyCard,
) -> list[np.ndarray]:
    """For each journal entry, seconds from sending a reward to serving a policy that was trained on it.

    A reward counts when its decision's split of its window is in the lineage of the policies that served.
    """
    decided = stored.moments
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
        if position < 0 or not inside(np.array([moment]), journal[position].window)[0]:
            continue
        split = "holdback" if is_held_back else "train"
        since = serving_since.get((journal[position].window.start, split))
        if since is not None:
            lags[position].append(since - reward.sent_at)
    return [np.array(seconds) for seconds in lags]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _percentiles(seconds: np.ndarray) -> Seconds:
    if not len(seconds):
        return Seconds(None, None)
    p50, p99 = np.percentile(seconds, [50, 99])
    return Seconds(round(float(p50), 3), round(float(p99), 3))
