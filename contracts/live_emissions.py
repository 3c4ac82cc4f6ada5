"""The folder through which provisional sums travel: one file per emission, `<live>/sums/<sequence>.msgpack`.

`beam_jobs.learn_live` writes an emission about each second, under a new name with the next sequence number of 12 digits.
A file appears under its name complete (a temporary name, then a rename), and never changes. Each holds, for every window
that has not been dropped, the *cumulative* sums (`contracts.live_sums`) of the arms that changed since the emission
before. Every n-th emission is a snapshot, with all arms of all those windows. A reader that starts, or that misses a file,
begins with the newest snapshot. Files older than a stated age are removed.

The first emission of a job is a snapshot: a job that was restarted continues with the next sequence number, and has read
everything again. It replaces what a reader holds.

A window is `open` while its events arrive, `closed` once the log is complete up to the time at which it closes, and
`recorded` when its exported window is there. A recorded window holds the sums of the record: the job replaces its own sums
by them, and counts a difference. Held-back decisions are not in the sums. A window that an emission does not list has been
dropped: what is trained from here on uses the exported window.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from contracts import live_sums
from contracts.errors import InputError
from contracts.live_sums import ArmSums
from contracts.records import Timestamp
from contracts.windows import Count, TrainingWindow

SUMS_FOLDER = "sums"
SUFFIX = ".msgpack"
SCHEMA_VERSION = 1
_NAME = re.compile(rf"(\d{{12}}){re.escape(SUFFIX)}")

State = Literal["open", "closed", "recorded"]


class LiveCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What the job has joined of a window so far: `decisions = rewards + defaulted + waiting + cancelled`.

    Decisions are counted once, as the manifest does. `waiting`: without a reward yet, where silence is dropped, or not
    activated yet.
    """

    decisions: Count = 0
    rewards: Count = 0
    defaulted: Count = 0
    waiting: Count = 0
    cancelled: Count = 0


class WindowSums(msgspec.Struct, frozen=True, kw_only=True):
    """One window in an emission. Its sums are those of the `train` split."""

    window: TrainingWindow
    state: State
    counts: LiveCounts
    columns: list[bytes]  # of the arms that changed; of all arms in a snapshot

    def sums(self, observation_dim: int) -> ArmSums:
        """The cumulative sums of the arms listed. Raises ValueError when the bytes do not fit."""
        return live_sums.decode(self.columns, observation_dim)


class Emission(msgspec.Struct, frozen=True, kw_only=True):
    """One file of provisional sums."""

    schema_version: Annotated[int, Meta(ge=1)] = SCHEMA_VERSION
    sequence: Annotated[int, Meta(ge=1, lt=10**12)]
    snapshot: bool
    emitted_at: Timestamp
    complete_until: Timestamp | None  # events up to this time have been read; None: not known yet
    observation_dim: Annotated[int, Meta(ge=1)]  # of what the sums are over
    num_actions: Annotated[int, Meta(ge=1)]
    encoder: str = (
        ""  # digest of what turned observations into what the sums are over; empty: they are over observations
    )
    events: Count  # read since the job started
    dead_letters: Count  # of those, unreadable
    healed: Count  # windows whose sums differed from the record's, since the job started
    windows: list[WindowSums]


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Emission)


def encode(emission: Emission) -> bytes:
    """The bytes of a file; the same emission gives the same bytes."""
    return _encoder.encode(emission)


def decode(data: bytes, where: str) -> Emission:
    """The emission in `data`. Raises InputError that names `where` and what is wrong."""
    try:
        emission = _decoder.decode(data)
        for window in emission.windows:
            window.sums(emission.observation_dim)
    except (msgspec.DecodeError, ValueError) as error:
        raise InputError(f"{where}: not an emission of provisional sums: {error}") from None
    if emission.schema_version > SCHEMA_VERSION:
        raise InputError(
            f"{where}: schema_version {emission.schema_version} is newer than this code's {SCHEMA_VERSION}"
        )
    return emission


def file_name(sequence: int) -> str:
    """The name of an emission's file."""
    return f"{sequence:012d}{SUFFIX}"


def sequence_of(name: str) -> int | None:
    """The sequence number in the name of a file; None for any other file."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def sequences(sums: Path) -> list[int]:
    """The sequence numbers of the emissions in the folder `<live>/sums`, ascending; none when there is no folder."""
    if not sums.is_dir():
        return []
    return sorted(number for path in sums.iterdir() if (number := sequence_of(path.name)) is not None)


class Reader:
    """Follows a folder of emissions; holds the newest sums of every window that has not been dropped."""

    def __init__(self, sums: Path) -> None:
        """Follows `<live>/sums`, which may not be there yet."""
        self._folder = sums
        self._seen = 0  # the newest sequence number applied
        self.latest: Emission | None = None
        self.windows: dict[TrainingWindow, ArmSums] = {}

    def read(self) -> Iterator[Emission]:
        """Applies the emissions that came since the last call, and yields each once `windows` holds it.

        After a gap it continues with the newest snapshot, and yields nothing while there is none. Raises InputError for a
        file that is not an emission.
        """
        new = [number for number in sequences(self._folder) if number > self._seen]
        if not new:
            return
        if self.latest is None or new != list(range(self._seen + 1, new[-1] + 1)):
            start = self._newest_snapshot(new)
            new = [number for number in new if start is not None and number >= start]
        for number in new:
            emission = self._load(number)
            if emission is None or (number != self._seen + 1 and not emission.snapshot):
                return  # removed since it was listed: the next call finds a snapshot
            self._apply(emission)
            yield emission

    def _newest_snapshot(self, numbers: list[int]) -> int | None:
        for number in reversed(numbers):
            emission = self._load(number)
            if emission is not None and emission.snapshot:
                return number
        return None

    def _load(self, number: int) -> Emission | None:
        path = self._folder / file_name(number)
        try:
            return decode(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None

    def _apply(self, emission: Emission) -> None:
        dim = emission.observation_dim
        before = {} if emission.snapshot else self.windows
        self.windows = {
            one.window: live_sums.replace(before.get(one.window, live_sums.empty(dim)), one.sums(dim))
            for one in emission.windows
        }
        self._seen = emission.sequence
        self.latest = emission
