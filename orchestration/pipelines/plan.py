"""What one run of a pipeline does: which windows it makes, how, and after which champion.

The first step makes the plan; every later step reads it. The embedded backend keeps everything below one folder, the
root, as a run of the loop does:

events/, warehouse/, windows/, policies/, catalogue.json, and runs/ (what each run of a pipeline did)
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from contracts import policies
from contracts.command_line import owned
from contracts.errors import InputError
from contracts.event_segments import opened_at, sealed_segments
from contracts.watermarks import WaitSettings
from contracts.windows import MANIFEST_NAME, TrainingWindow, WindowSettings, decode_manifest, window_of
from orchestration.places import Places
from orchestration.policy_store import champion

GENERATOR = "generate_movielens"
GRID_ORIGIN = datetime(1970, 1, 1, tzinfo=UTC)


class WindowGrid(WindowSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The windows that a run makes of the log: their length, and how decisions become their records."""

    window_seconds: Annotated[float, Meta(gt=0, description="length of a training window")] = 5.0
    watermark_limit_seconds: Annotated[float, owned(WaitSettings, "watermark_limit_seconds")] = 60.0

    @property
    def record_settings(self) -> WindowSettings:
        """How the decisions of each window become its records, as the export takes it."""
        return WindowSettings(**{name: getattr(self, name) for name in WindowSettings.__struct_fields__})

    @property
    def wait_settings(self) -> WaitSettings:
        """How long a window may wait for its events."""
        return WaitSettings(watermark_limit_seconds=self.watermark_limit_seconds)


class GeneratedLog(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Decisions of a uniform policy, with which a bootstrap starts (`beam_jobs.generate_movielens`)."""

    ratings: Annotated[str, Meta(min_length=1, description="sample, tfds:<name>, or a MovieLens folder")] = "sample"
    num_decisions: Annotated[int, Meta(ge=1, description="decisions of the uniform policy")] = 2000
    num_actions: Annotated[int, Meta(ge=1, description="number of actions K")] = 100
    rank: Annotated[int, Meta(ge=1, description="length of an observation")] = 20
    reward_noise: Annotated[float, Meta(ge=0, description="standard deviation of a reward")] = 0.5
    no_reward_probability: Annotated[
        float, Meta(ge=0, le=1, description="probability that a decision gets no reward")
    ] = 0.05
    seed: Annotated[int, Meta(ge=0, description="of the generator")] = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run does. Without windows it does nothing, for `reason`."""

    root: str
    run_id: str
    champion: str | None
    windows: list[TrainingWindow]
    settings: WindowGrid
    generated: GeneratedLog | None = None  # of a bootstrap alone
    reason: str = ""

    @property
    def places(self) -> Places:
        """The folders below the root."""
        return Places(Path(self.root))


def for_bootstrap(root: Path, run_id: str, settings: WindowGrid, generated: GeneratedLog, now: datetime) -> Plan:
    """One closed window of the generator's decisions, or no window if the store has a champion.

    If an earlier run failed halfway, the plan has the window of that run: the generator then writes the same decisions
    again.
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


def for_retrain(root: Path, run_id: str, settings: WindowGrid, until: datetime) -> Plan:
    """Every window up to `until` that the champion was not trained on, or of which a newer revision was exported since.

    These are the exported windows whose newest revision it has not seen, and one new window. The new window begins where the last
    exported one ended, and ends at the newest multiple of `window_seconds` that has closed. A run that comes late
    therefore makes one longer window of everything it missed.

    Raises InputError if the store has no champion to continue from, or no window was exported yet.
    """
    places = Places(root)
    current = champion(places.policies)
    if current is None:
        raise InputError(f"{places.policies} has no champion: run the bootstrap pipeline first")
    path = places.policies / current.version / policies.CARD_NAME
    if not path.is_file():
        raise InputError(f"{path} is missing, but {current.version} is the champion")
    card = policies.decode_card(path.read_bytes(), str(path))
    # Of a window's splits, the one that was trained on in the earliest revision.
    trained = dict(sorted(((seen.window, seen.revision) for seen in card.trained_on), reverse=True))
    exported = exported_windows(places.windows)
    if not exported:
        raise InputError(f"{places.windows} has no window: run the bootstrap pipeline first")
    windows = [
        window for window, revision in exported.items() if trained.get(window, -1) < revision and window.end <= until
    ]
    begin = max(window.end for window in exported)
    closed = until - timedelta(seconds=settings.closing_seconds)
    end = window_of(closed, GRID_ORIGIN, settings.window_seconds).start
    if end > begin:
        windows.append(TrainingWindow(begin, end))
    reason = "" if windows else f"{current.version} was trained on every window that closed by {until.isoformat()}"
    return Plan(
        root=str(root), run_id=run_id, champion=current.version, windows=windows, settings=settings, reason=reason
    )


def exported_windows(folder: Path) -> dict[TrainingWindow, int]:
    """The windows that have a manifest, oldest first, and the newest revision of each."""
    found = sorted(
        (manifest.window, manifest.revision)
        for path in folder.glob(f"window=*/{MANIFEST_NAME}")
        if (manifest := decode_manifest(path.read_bytes(), str(path)))
    )
    return dict(found)  # the last of several entries of one window stays


def decode_plan(text: str) -> Plan:
    """The plan that the first step of a run made, from its JSON."""
    return msgspec.json.decode(text, type=Plan)
