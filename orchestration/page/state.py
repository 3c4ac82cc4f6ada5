"""The document that the page shows: what each section holds, as the server sends it."""

from datetime import datetime
from typing import Literal

import msgspec

from orchestration.page.slots import Streamed

Colour = Literal["ok", "warning", "bad", "unknown"]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One slot of what was served. Rewards are per decision; null where nothing is known."""

    number: int
    decisions: int
    reward: float | None  # mean of the rewards that came
    expected: float | None  # by the viewers' own taste
    oracle: float | None  # of the best choice, by the same taste
    explored: float  # share
    rare: float  # share of decisions for items that had hardly been shown
    freshness_seconds: float | None  # mean time from a reward to a policy trained on it serving


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """Expected reward per decision of policies to compare with, known where viewers are simulated."""

    oracle: float
    best_fixed: float
    uniform: float


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """The version that serves, and what it was trained on."""

    version: str
    since: datetime
    reason: str
    algorithm: str
    exploration: str
    windows: int
    records: int
    trained_until: datetime | None  # end of the newest window it was trained on
    beside: str | None  # another version that takes a share of the decisions, and which


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """Is it learning?"""

    points: list[Point]
    reference: Reference | None
    serving: Serving | None


class Light(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that may be wrong: its colour, the figures in words, what they mean, and what to do."""

    name: str
    colour: Colour
    fact: str
    meaning: str = ""
    advice: str = ""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What the event log held: `events = decisions + rewards + statuses + unreadable`."""

    events: int
    decisions: int
    rewards: int
    unreadable: int
    orphans: int  # rewards for decisions that are unknown or long past
    statuses: int = 0  # activations and cancellations


class Wrong(msgspec.Struct, frozen=True, kw_only=True):
    """Is anything wrong?"""

    held: bool
    lights: list[Light]
    counts: Counts


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """How often an item was chosen: its share of the decisions of each of the latest slots, the last one still open."""

    action: int
    item: str
    shares: list[float]


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """What does it choose?"""

    slots: list[int]
    items: list[Choice]
    others: list[float]  # share of all other items
    propensities: list[int]  # decisions by propensity, in the latest slots
    edges: list[float]  # upper edges of those bins


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the stream."""

    item: str
    decision: Streamed


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the timeline."""

    at: datetime
    what: Literal["promoted", "rolled back", "not promoted", "hold", "release", "accept"]
    version: str
    reason: str


class Rewarded(msgspec.Struct, frozen=True, kw_only=True):
    """A reward that was given on this page, and what became of it."""

    decision_id: str
    item: str
    reward: float
    sent_at: datetime
    status: Literal["waiting", "held back", "late", "refused", "learned"]
    words: str
    seconds: float | None = None  # from sending it to a policy trained on it serving
    version: str | None = None


class State(msgspec.Struct, frozen=True, kw_only=True):
    """All of the page."""

    root: str
    now: datetime
    settings: str  # in a line, for the head of the page
    slot: str  # what a slot is called
    reward_window_seconds: float | None
    predictor: str | None  # its address
    learning: Learning
    wrong: Wrong
    choices: Choices
    stream: list[Decided]
    timeline: list[Event]
    rewarded: list[Rewarded]
