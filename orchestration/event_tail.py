"""Reads the event log while it is written: what is new since the last look, and single decisions found again."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from contracts.event_segments import OPEN_SUFFIX, SEALED_SUFFIX, is_segment, open_segments, opened_at, sealed_segments
from contracts.records import UNREADABLE, Decision, RewardEvent, event_decoder

BYTES_PER_READ = 8 * 2**20
# A decision waits in memory for a moment before it is written, and stands in a segment that was opened before.
_WRITTEN_WITHIN = timedelta(seconds=5)
_SEGMENTS_SEARCHED = 200


class EventTail:
    """Reads what was appended to the segments of a folder since the last call, in whole lines."""

    def __init__(self, folder: Path, since: datetime | None = None) -> None:
        """Begins with the segments that were written to at `since` or later; None: with the oldest."""
        self._folder = folder
        self._since = since.timestamp() if since is not None else 0.0
        self._offsets: dict[str, int] = {}  # of segments that are not read to their sealed end, by name
        self._done: set[str] = set()

    def read(self, limit_bytes: int = BYTES_PER_READ) -> list[bytes]:
        """New lines, oldest segment first; those beyond about `limit_bytes` come with the next call.

        A segment that is published and removed between two calls is not read: with a topic the log is a spool.
        """
        lines: list[bytes] = []
        left = limit_bytes
        for name, sealed in sorted(self._segments()):
            if left <= 0:
                break
            data = self._new_bytes(name, sealed, left)
            if data is None:
                continue  # it was sealed or removed this moment
            complete = data.rfind(b"\n") + 1
            self._offsets[name] = self._offsets.get(name, 0) + complete
            left -= complete
            lines += data[:complete].splitlines()
            if sealed and len(data) < limit_bytes and complete == len(data) and left > 0:
                self._done.add(name)
                self._offsets.pop(name)
        return lines

    def _segments(self) -> list[tuple[str, bool]]:
        """Name without its ending, and whether it is sealed, of each segment that may have something new.

        What is remembered of segments that were removed is forgotten.
        """
        try:
            names = [path.name for path in self._folder.iterdir() if is_segment(path.name)]
        except FileNotFoundError:
            return []
        sealed = {name.removesuffix(SEALED_SUFFIX) for name in names if name.endswith(SEALED_SUFFIX)}
        still_open = {name.removesuffix(OPEN_SUFFIX) for name in names if name.endswith(OPEN_SUFFIX)}
        self._done &= sealed
        self._offsets = {name: at for name, at in self._offsets.items() if name in sealed or name in still_open}
        return [(name, name in sealed) for name in (sealed | still_open) - self._done]

    def _new_bytes(self, name: str, sealed: bool, limit_bytes: int) -> bytes | None:
        path = self._folder / f"{name}{SEALED_SUFFIX if sealed else OPEN_SUFFIX}"
        try:
            with path.open("rb") as file:
                begin = self._offsets.get(name, 0)
                if not begin and os.fstat(file.fileno()).st_mtime < self._since:
                    return b""
                file.seek(begin)
                return file.read(limit_bytes)
        except FileNotFoundError:
            return None


class Logged(NamedTuple):
    """A decision as it was logged, and the rewards that came for it by now."""

    decision: Decision
    rewards: list[RewardEvent]


def find(folder: Path, decision_id: str, moment: datetime, rewards_within: timedelta) -> Logged | None:
    """The decision of that id in the event log, with its rewards; None when the log does not hold it.

    Args:
      folder: the event log.
      decision_id: of the decision.
      moment: when it was made, from its id.
      rewards_within: how long after it rewards are looked for.
    """
    decision: Decision | None = None
    rewards: dict[tuple[datetime, float], RewardEvent] = {}
    needle = decision_id.encode()
    for path in _around(folder, moment, rewards_within):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        for line in data.splitlines() if needle in data else ():
            if needle not in line:
                continue
            try:
                event = event_decoder.decode(line)
            except UNREADABLE:
                continue
            if event.decision_id != decision_id:
                continue
            if isinstance(event, Decision):
                decision = decision or event
            elif isinstance(event, RewardEvent):
                rewards.setdefault((event.occurred_at, event.reward), event)
    if decision is None:
        return None
    return Logged(decision, [rewards[at] for at in sorted(rewards)])


def _around(folder: Path, moment: datetime, rewards_within: timedelta) -> list[Path]:
    """The segments in which a decision of `moment` and its rewards may stand, oldest first."""
    segments = sorted([*sealed_segments(folder), *open_segments(folder)], key=lambda path: path.name)
    until = moment + rewards_within + _WRITTEN_WITHIN
    before = [path for path in segments if opened_at(path) <= moment + _WRITTEN_WITHIN][-_SEGMENTS_SEARCHED:]
    after = [path for path in segments if moment + _WRITTEN_WITHIN < opened_at(path) <= until]
    return [*before, *after]


def moment_of(decision_id: str) -> datetime:
    """When a decision was made: the time part of its UUIDv7."""
    milliseconds = int(decision_id[:8] + decision_id[9:13], 16)
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
