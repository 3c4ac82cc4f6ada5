"""Live versions: a base policy with the coefficients of some arms replaced; their codec and the names of their files.

A live version `<base>+<sequence>` is an audited policy of the policy store, its base, plus what was learned from
training windows that are still open. `<live>/versions/` holds its files:

    <sequence>.delta      what changed since the version before, of the same base
    <sequence>.snapshot   everything in which the version differs from its base

Every version but the first over a base has a delta, and every few seconds one has a snapshot as well. A reader that has
the version before applies the delta; any other begins with the newest snapshot. Both give the same numbers, bit for
bit. Sequence numbers have twelve digits and are never used again, so a version's name identifies what decided.

`<live>/control.json` says whether live versions may serve, see `Control`.
"""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from contracts.errors import InputError
from contracts.policies import live_version
from contracts.policy_arrays import ArmChanges
from contracts.records import PolicyVersion, Timestamp

VERSIONS_NAME = "versions"
CONTROL_NAME = "control.json"
SCHEMA_VERSION = 1

Kind = Literal["delta", "snapshot"]


class LiveVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One file: the changes that lead to the version, from the version before (delta) or from the base (snapshot)."""

    schema_version: Annotated[int, Meta(ge=1)] = SCHEMA_VERSION
    kind: Kind
    base: PolicyVersion
    sequence: Annotated[int, Meta(ge=1)]
    published_at: Timestamp
    complete_until: Timestamp | None  # every event before it is in the sums; None: not known yet
    sums_digest: str  # of the provisional sums that it was solved from
    interactions: Annotated[int, Meta(ge=0)]  # in those sums
    num_actions: Annotated[int, Meta(ge=1)]
    width: Annotated[int, Meta(ge=1)]  # E, the number of coefficients of an arm
    changes: ArmChanges

    @property
    def version(self) -> str:
        """`<base>+<sequence>`."""
        return live_version(self.base, self.sequence)


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """Whether live versions may serve, and which windows must not be learned from; written by the guard alone.

    While it is held the predictor serves the base, or the anchor alone, and the live trainer publishes nothing.
    """

    held: bool = False
    reason: str = ""
    changed_at: Timestamp
    anchor_alone: bool = False  # while it is held: the base gives way to the anchor, where there is one
    refused: list[Timestamp] = []  # the starts of refused windows


class _File(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The MessagePack form: the fields of `LiveVersion`, the arrays as little-endian bytes."""

    schema_version: int
    kind: Kind
    base: PolicyVersion
    sequence: Annotated[int, Meta(ge=1)]
    published_at: Timestamp
    complete_until: Timestamp | None
    sums_digest: str
    interactions: Annotated[int, Meta(ge=0)]
    num_actions: Annotated[int, Meta(ge=1)]
    width: Annotated[int, Meta(ge=1)]
    arrays: list[bytes]


def file_name(sequence: int, kind: Kind) -> str:
    """The name of the file in `<live>/versions/`."""
    return f"{sequence:012d}.{kind}"


def parse_file_name(name: str) -> tuple[int, Kind] | None:
    """Sequence number and kind; None for a file of another name."""
    digits, _, kind = name.partition(".")
    if len(digits) != 12 or not digits.isdecimal() or kind not in ("delta", "snapshot"):
        return None
    return int(digits), "delta" if kind == "delta" else "snapshot"


def listed(names: list[str]) -> list[tuple[int, Kind]]:
    """The files of versions among `names`, oldest first."""
    return sorted(parsed for name in names if (parsed := parse_file_name(name)) is not None)


def encode(version: LiveVersion) -> bytes:
    """The version as MessagePack, the same bytes for the same version."""
    fields = {name: getattr(version, name) for name in _File.__struct_fields__ if name != "arrays"}
    changes = version.changes
    arrays = [
        array.astype(kind).tobytes() for array, kind in zip(changes, ("<i4", "<f4", "<f4", "<i4", "<f4"), strict=True)
    ]
    return msgspec.msgpack.encode(_File(**fields, arrays=arrays))


def decode(data: bytes, where: str) -> LiveVersion:
    """The inverse of `encode`.

    Raises InputError that begins with `where`: it is no live version or a newer one than this code knows, an array has
    another length, arms are not ascending or not below the number of actions, or a number is not finite.
    """
    try:
        file = msgspec.msgpack.decode(data, type=_File)
    except msgspec.DecodeError as error:
        raise InputError(f"{where}: not a live version: {error}") from None
    if file.schema_version > SCHEMA_VERSION:
        raise InputError(f"{where}: schema_version {file.schema_version} is newer than this code's {SCHEMA_VERSION}")
    fields = {name: getattr(file, name) for name in _File.__struct_fields__ if name != "arrays"}
    return LiveVersion(**fields, changes=_changes(file, where))


def _changes(file: _File, where: str) -> ArmChanges:
    try:
        arms, covariance_arms = (np.frombuffer(file.arrays[i], "<i4") for i in (0, 3))
        theta = np.frombuffer(file.arrays[1], "<f4").reshape(len(arms), file.width)
        num_samples = np.frombuffer(file.arrays[2], "<f4").reshape(len(arms))
        triangle = file.width * (file.width + 1) // 2
        covariance = np.frombuffer(file.arrays[4], "<f4").reshape(len(covariance_arms), triangle)
    except (ValueError, IndexError) as error:
        raise InputError(f"{where}: not a live version: {error}") from None
    for name, indexes in (("arms", arms), ("covariance_arms", covariance_arms)):
        if len(indexes) and (indexes[0] < 0 or indexes[-1] >= file.num_actions or (np.diff(indexes) <= 0).any()):
            raise InputError(f"{where}: {name} must ascend from 0 and be below {file.num_actions}")
    for name, numbers in (("theta", theta), ("num_samples", num_samples), ("covariance", covariance)):
        if not np.isfinite(numbers).all():
            raise InputError(f"{where}: {name} must be finite numbers")
    return ArmChanges(arms, theta, num_samples, covariance_arms, covariance)


def decode_control(data: bytes, where: str) -> Control:
    """The control file in `data`. Raises InputError."""
    try:
        return msgspec.json.decode(data, type=Control)
    except msgspec.DecodeError as error:
        raise InputError(f"{where}: not a control file of live versions: {error}") from None


def read(path: Path) -> LiveVersion:
    """The version in a file. Raises InputError."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def publish(folder: Path, version: LiveVersion) -> None:
    """Writes the version's file into `<live>/versions/`: a reader finds all of it or nothing."""
    path = folder / file_name(version.sequence, version.kind)
    draft = path.with_name(f".{path.name}")
    draft.write_bytes(encode(version))
    draft.replace(path)


def remove_before(folder: Path, moment: datetime) -> int:
    """Removes the files that no version published from `moment` on needs, and returns how many.

    The newest snapshot before `moment` and everything after it stays, so a version that still decides can be replayed.
    """
    files = [
        (path.stat().st_mtime, sequence, kind, path)
        for path in folder.iterdir()
        if (parsed := parse_file_name(path.name)) is not None
        for sequence, kind in [parsed]
    ]
    before = moment.timestamp()
    kept_from = max((sequence for at, sequence, kind, _ in files if kind == "snapshot" and at < before), default=0)
    gone = [path for _, sequence, _, path in files if sequence < kept_from]
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)
