"""What one run of a pipeline is to do: which windows, made how, after which champion. Made once, passed on by the steps.

Everything that the embedded backend keeps is below one folder, the root, as in a run of the loop:

events/, warehouse/, windows/, policies/, catalogue.json, and runs/ (what each run of a pipeline did)
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from contracts import policies
from contracts.errors import InputError
from contracts.event_segments import opened_at, sealed_segments
from contracts.windows import MANIFEST_NAME, TrainingWindow, decode_manifest, window_of
from orchestration.places import Places
from orchestration.policy_store import champion

GENERATOR = "generate_movielens"
GRID_ORIGIN = datetime(1970, 1, 1, tzinfo=UTC)


class WindowSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a run makes training windows of the log. The export checks the values (`contracts.windows.WindowSettings`)."""

    window_seconds: float
    reward_window_seconds: float
    settle_seconds: float
    missing_reward: str  # default or drop
    default_reward: float
    holdback_share: float

    @property
    def closing_seconds(self) -> float:
        """How long after its end a window has closed: its rewards are in, and in the log."""
        return self.reward_window_seconds + self.settle_seconds


class GeneratedLog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Decisions of a uniform policy, for a bootstrap to start from (`beam_jobs.generate_movielens`)."""

    ratings: str
    num_decisions: int
    num_actions: int
    rank: int
    reward_noise: float
    no_reward_probability: float
    seed: int


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run is to do. Without windows there is nothing to do, for `reason`."""

    root: str
    run_id: str
    champion: str | None
    windows: list[TrainingWindow]
    settings: WindowSettings
    generated: GeneratedLog | None = None  # of a bootstrap alone
    reason: str = ""

    @property
    def places(self) -> Places:
        """Where things are."""
        return Places(Path(self.root))


def for_bootstrap(root: Path, run_id: str, settings: WindowSettings, generated: GeneratedLog, now: datetime) -> Plan:
    """One window of the generator's decisions that has closed, unless there is a champion.

    An earlier run that failed halfway is taken up: its decisions are generated again, the same ones, not others beside.
    """
    places = Places(root)
    plan = Plan(root=str(root), run_id=run_id, champion=None, windows=[], settings=settings, generated=generated)
    if (current := champion(places.policies)) is not None:
        reason = f"{current.version} is the champion already"
        return msgspec.structs.replace(plan, champion=current.version, reason=reason)
    length = timedelta(seconds=settings.window_seconds)
    begun = [segment for segment in sealed_segments(places.events) if GENERATOR in segment.name]
    if begun:
        start = opened_at(begun[0])
    else:
        closed = now - timedelta(seconds=settings.closing_seconds)
        start = window_of(closed, GRID_ORIGIN, settings.window_seconds).start - length
    return msgspec.structs.replace(plan, windows=[TrainingWindow(start, start + length)])


def for_retrain(root: Path, run_id: str, settings: WindowSettings, until: datetime) -> Plan:
    """Every window up to `until` that the champion was not trained on.

    Those are the exported ones it has not seen, and one that begins where the last one exported ended and ends at the
    newest multiple of `window_seconds` that has closed: a run that comes late makes one longer window of what it missed.

    Raises InputError when there is no champion to continue from.
    """
    places = Places(root)
    current = champion(places.policies)
    if current is None:
        raise InputError(f"{places.policies} has no champion: run the bootstrap pipeline first")
    path = places.policies / current.version / policies.CARD_NAME
    if not path.is_file():
        raise InputError(f"{path} is missing, but {current.version} is the champion")
    trained = {seen.window for seen in policies.decode_card(path.read_bytes(), str(path)).trained_on}
    exported = exported_windows(places.windows)
    if not exported:
        raise InputError(f"{places.windows} has no window: run the bootstrap pipeline first")
    windows = [window for window in exported if window not in trained and window.end <= until]
    begin = max(window.end for window in exported)
    closed = until - timedelta(seconds=settings.closing_seconds)
    end = window_of(closed, GRID_ORIGIN, settings.window_seconds).start
    if end > begin:
        windows.append(TrainingWindow(begin, end))
    reason = "" if windows else f"{current.version} was trained on every window that closed by {until.isoformat()}"
    return Plan(
        root=str(root), run_id=run_id, champion=current.version, windows=windows, settings=settings, reason=reason
    )


def exported_windows(folder: Path) -> list[TrainingWindow]:
    """The windows that have a manifest, oldest first."""
    return sorted(
        decode_manifest(path.read_bytes(), str(path)).window for path in folder.glob(f"window=*/{MANIFEST_NAME}")
    )
