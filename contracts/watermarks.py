"""Up to when a log is complete in the tables, and what holds it back.

An event reaches the log when its predictor takes it. It is complete when its row is in a table. A `Watermark` is a
statement about all events before a moment, so it stays true when its author stops. A window may be exported when the
watermark has passed its closing time (`contracts.windows`); the clock alone never closes a window.
"""

from collections import deque
from collections.abc import Callable, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from contracts.errors import InputError
from contracts.event_segments import OPEN_SUFFIX, open_segments, opened_at, sealed_segments, stem
from contracts.records import Timestamp

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)  # the watermark of an author that knows nothing yet
LONGEST_LIMIT_SECONDS = 30 * 86_400.0


class Watermark(msgspec.Struct, frozen=True, kw_only=True):
    """Every event that reached the log before `complete_until` is in the tables.

    `held_by` names what keeps `complete_until` from being `at`, the moment at which this was found; empty: nothing.
    """

    complete_until: Timestamp
    at: Timestamp
    held_by: str = ""


class WaitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a window may wait for its events."""

    watermark_limit_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=LONGEST_LIMIT_SECONDS,
            description="how long a window may wait for events that are on their way before this is an alarm; it is never"
            " exported without them",
        ),
    ] = 60.0


def encode(mark: Watermark) -> bytes:
    """The watermark as a line of JSON."""
    return msgspec.json.encode(mark) + b"\n"


def decode(data: bytes, where: str) -> Watermark:
    """The inverse of `encode`. Raises InputError that begins with `where`."""
    try:
        return msgspec.json.decode(data, type=Watermark)
    except msgspec.DecodeError as error:
        raise InputError(f"{where}: not a watermark: {error}") from None


def of_segments(folder: Path, stored: Callable[[], Set[str]]) -> Watermark:
    """The watermark of the event log in `folder`: the time at which its oldest segment that is not stored was opened.

    An open segment counts even if it is empty: a writer opens one only when it has an event to write. In an idle system
    no segment is open, and the watermark is the time of the call.

    Args:
      folder: the event log.
      stored: the names of the segments, without their ending, whose events are stored; called after the segments are
        listed.
    """
    begin = datetime.now(UTC)
    # Open ones first: a segment that is sealed between the two calls is then in both.
    segments = [*open_segments(folder), *sealed_segments(folder)]
    done = stored()
    waiting = [path for path in segments if stem(path.name) not in done]
    at = datetime.now(UTC)
    if not waiting:
        return Watermark(complete_until=begin, at=at)
    oldest = min(waiting, key=opened_at)
    state = "still open" if oldest.name.endswith(OPEN_SUFFIX) else "not stored yet"
    more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
    return Watermark(
        complete_until=min(begin, opened_at(oldest)), at=at, held_by=f"segment {stem(oldest.name)}, {state}{more}"
    )


class TwoStages:
    """The watermark of two stages that events pass one after the other, such as a spool and the queue behind it.

    Each stage has a watermark of its own: of the first by the time at which events reached the log, of the second by the
    time at which they came to it. What the first stage had passed on when it was looked at is stored when the watermark
    of the second has passed that moment.
    """

    def __init__(self) -> None:
        self._passed_on: deque[Watermark] = deque()
        self._reached = BEGINNING

    def add(self, first: Watermark, second: Watermark) -> Watermark:
        """The watermark of both stages, after one more look at each: at the first, then at the second."""
        self._passed_on.append(first)
        while self._passed_on and self._passed_on[0].at <= second.complete_until:
            self._reached = max(self._reached, self._passed_on.popleft().complete_until)
        held_by = first.held_by if first.complete_until <= self._reached else second.held_by or first.held_by
        return Watermark(complete_until=self._reached, at=second.at, held_by=held_by)
