"""Training windows and their manifests.

A training window is `[start, end)` on `decided_at`. It closes when the watermark (`contracts.watermarks`) has passed
`end + reward_window + settle`: its decisions and their rewards are then all there, so exporting it again gives the same
bytes. Its folder is
`<windows>/window=<start>/` with `part-<split>-*.tfrecord` and `manifest.json`. The manifest is written last: a folder
without a manifest is not a window, and no reader takes it for one.

Rows may come later still. The window can then be exported again, as a revision: `<windows>/window=<start>.r<revision>/`
holds all records of the window, and its manifest names the revision that it replaces. Nothing that was exported changes.
"""

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from contracts import documents
from contracts.event_segments import compact_time, parse_compact_time
from contracts.records import FLOAT32_MAX, Timestamp
from contracts.reward_rules import RewardRule

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
_FOLDER = re.compile(r"window=([0-9TZ.]+Z)(?:\.r\d+)?")
YEAR_SECONDS = 366 * 86_400.0

# "holdback": a share chosen by `decision_id`, or by the `slate_id` of a whole slate, on which a candidate is compared
# with the champion before either has trained on it; the window after next trains on it.
Split = Literal["train", "holdback"]
Count = Annotated[int, Meta(ge=0)]


class TrainingWindow(msgspec.Struct, frozen=True, order=True):
    """`[start, end)` on `decided_at`."""

    start: Timestamp
    end: Timestamp

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"training window must end after its start, got [{self.start}, {self.end})")

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"window={compact_time(self.start)}"

    def closes_at(self, reward_window_seconds: float, settle_seconds: float) -> datetime:
        """The moment that the watermark must have passed before the window may be exported."""
        return self.end + timedelta(seconds=reward_window_seconds + settle_seconds)


class WindowSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How decisions become the records of a training window. The bounds of these settings are declared here alone.

    Raises ValueError for a number that is not finite.
    """

    reward_window_seconds: Annotated[
        float, Meta(gt=0, le=YEAR_SECONDS, description="how long a reward is waited for")
    ] = 2.0
    settle_seconds: Annotated[
        float,
        Meta(ge=0, le=YEAR_SECONDS, description="how long after that an event may still be on its way into the log"),
    ] = 1.0
    missing_reward: Annotated[
        Literal["default", "drop"],
        Meta(
            description="a decision without a reward in time takes the default reward (right where silence means no), or"
            " is dropped from training (right where silence says nothing about taste)"
        ),
    ] = "default"
    default_reward: Annotated[
        float, Meta(ge=-FLOAT32_MAX, le=FLOAT32_MAX, description="reward of silence, with missing_reward default")
    ] = 0.0
    reward_rule: Annotated[
        RewardRule,
        Meta(
            description="how several rewards in time of one decision become one: the first, the last or the largest of"
            " them, or their sum"
        ),
    ] = "first"
    holdback_share: Annotated[
        float,
        Meta(ge=0, lt=1, description="share of a window that judges the new policy before the next one trains on it"),
    ] = 0.1
    late_horizon_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=YEAR_SECONDS,
            description="how far before the window decisions are read, to tell late rewards from orphans",
        ),
    ] = 3600.0

    def __post_init__(self) -> None:
        for name in ("reward_window_seconds", "settle_seconds", "late_horizon_seconds"):
            if not math.isfinite(value := getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {value}")

    @property
    def closing_seconds(self) -> float:
        """How long after its end a window closes: its rewards have arrived, and are in the log."""
        return self.reward_window_seconds + self.settle_seconds


class WindowFile(msgspec.Struct, frozen=True, kw_only=True):
    """One TFRecord file of a window."""

    name: str
    split: Split
    records: Count
    bytes: Count
    sha256: str


class WindowCounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of every decision made, and of every reward that occurred, in a window.

    Decisions made in the window: `decisions = rewards + defaulted + dropped + set_aside + not_activated + cancelled`. A reward that occurred in the
    window is the first in time for its decision (counted in `rewards` of that decision's window), or a repeat, late or
    an orphan (counted here). The rule that combines rewards (`reward_rule`) does not change what is counted.
    """

    decisions: Count
    rewards: Count  # decisions with a reward in time
    defaulted: Count  # decisions that took the default reward
    dropped: Count  # decisions left out for having none
    repeated_rewards: Count  # another reward for a decision that has one
    late_rewards: Count
    orphan_rewards: Count
    duplicate_decisions: Count  # the same decision read again
    duplicate_rewards: Count  # the same reward read again
    # Decisions left out because their observation has another length than the window's. JSON omits the field when it is
    # 0, as in windows exported before the field existed.
    set_aside: Count = 0
    # Deferred decisions that were not activated in time, and decisions that were cancelled in time: they never happened.
    not_activated: Count = 0
    cancelled: Count = 0
    void_rewards: Count = 0  # of these decisions, those with a reward in time
    # Activations and cancellations in time for the window's decisions; and those that occurred in the window without
    # effect, outside of their decision's reward window or for an unknown decision.
    statuses_in_time: Count = 0
    ignored_statuses: Count = 0
    # Rewards in time for the window's decisions, repeated ones included: what later rows are held against. None in
    # windows exported before it was counted.
    rewards_in_time: Count | None = None

    @property
    def accounted(self) -> int:
        """The decisions whose fate is counted: all of them."""
        return self.rewards + self.defaulted + self.dropped + self.set_aside + self.not_activated + self.cancelled


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json` of a window."""

    schema_version: Annotated[int, Meta(ge=1)] = SCHEMA_VERSION
    window: TrainingWindow
    reward_window_seconds: float
    settle_seconds: float
    missing_reward: Literal["default", "drop"]
    default_reward: float
    reward_rule: RewardRule = "first"  # the only one when a manifest did not say it
    holdback_share: float
    late_horizon_seconds: float | None = None  # not in a window that was exported before this was written down
    observation_dim: Annotated[int, Meta(ge=0)]  # 0 only when there are no records
    files: list[WindowFile]
    counts: WindowCounts
    policy_versions: dict[str, Count]  # decisions by version; a live version counts as its base
    revision: Count = 0
    revises: str | None = None  # the folder of the revision before it
    # By the folder of an earlier window: rows of it that had come after its export when this window was exported. This
    # depends on when rows came, unlike everything else in a manifest.
    late_rows: dict[str, Count] = {}

    @property
    def folder(self) -> str:
        """The name of the folder of this revision."""
        return revision_folder(self.window, self.revision)

    @property
    def settings(self) -> WindowSettings:
        """The settings that the window was exported with."""
        recorded = {name: getattr(self, name) for name in WindowSettings.__struct_fields__}
        return WindowSettings(**{name: value for name, value in recorded.items() if value is not None})

    def records(self, *splits: Split) -> int:
        """Number of records in the given splits."""
        return sum(file.records for file in self.files if file.split in splits)


def revision_folder(window: TrainingWindow, revision: int) -> str:
    """The name of the folder of a revision of `window`; 0 is the first export."""
    return f"{window.folder}.r{revision}" if revision else window.folder


def window_start(folder: str) -> datetime | None:
    """The start of the window whose folder, of any revision, has that name; None if it is not a window's folder."""
    match = _FOLDER.fullmatch(folder)
    return parse_compact_time(match[1]) if match else None


def decode_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`. Raises InputError that names `where` and what is wrong."""
    return documents.decode(data, Manifest, "window manifest", where, SCHEMA_VERSION)


def encode_manifest(manifest: Manifest) -> bytes:
    """`manifest` as indented JSON, the same bytes for the same manifest."""
    return documents.encode(manifest)


def window_of(moment: datetime, origin: datetime, window_seconds: float) -> TrainingWindow:
    """The window of length `window_seconds` on the grid from `origin` that holds `moment`."""
    length = timedelta(seconds=window_seconds)
    start = origin.astimezone(UTC) + (moment - origin) // length * length
    return TrainingWindow(start, start + length)
