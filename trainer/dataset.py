"""Training windows on disk: finds the ready ones, checks them, and reads them in batches.

A window is ready when its folder holds a manifest. Each file must have the checksum and the number of records that the
manifest lists, and values that a policy of the given shape can be trained on. Anything else is an InputError that names
the file; no record is skipped. Files that the manifest does not list are ignored: a killed export may leave some.
"""

import hashlib
import itertools
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from contracts.errors import InputError
from contracts.id_hashes import mixed
from contracts.windows import (
    MANIFEST_NAME,
    Manifest,
    Split,
    WindowFile,
    decode_manifest,
)

if TYPE_CHECKING:
    from contracts.trajectories import TrajectoryBatch

SPLITS: tuple[Split, ...] = ("train", "holdback")
BATCH_BYTES = 1 << 20
_LENGTH = struct.Struct("<Q")
_FRAME_BYTES = 16


class ReadyWindow(NamedTuple):
    """A window's folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def start(self) -> datetime:
        """The start of the window, which identifies it."""
        return self.manifest.window.start

    def files(self, split: Split) -> list[WindowFile]:
        """The files of one split, in the manifest's order."""
        return [file for file in self.manifest.files if file.split == split]


def ready_windows(windows: Path) -> list[ReadyWindow]:
    """The newest revision of each window under `windows` that has a manifest, by start.

    Raises:
      InputError: the folder is missing; a manifest cannot be read or belongs to another folder; two windows overlap, so
        that decisions in both would be trained on twice.
    """
    if not windows.is_dir():
        raise InputError(f"windows: no such folder: {windows}")
    newest: dict[datetime, ReadyWindow] = {}
    for path in windows.glob(f"window=*/{MANIFEST_NAME}"):
        window = read_window(path.parent)
        known = newest.get(window.start)
        if known is None or known.manifest.revision < window.manifest.revision:
            newest[window.start] = window
    ready = [newest[start] for start in sorted(newest)]
    for earlier, later in itertools.pairwise(ready):
        if later.start < earlier.manifest.window.end:
            raise InputError(f"{later.folder}: overlaps {earlier.folder.name}: its decisions would be trained on twice")
    return ready


def read_window(folder: Path) -> ReadyWindow:
    """The window in `folder`. Raises InputError when its manifest cannot be read or belongs to another folder."""
    path = folder / MANIFEST_NAME
    try:
        manifest = decode_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if folder.name != manifest.folder:
        raise InputError(f"{path}: is the manifest of {manifest.folder}, not of this folder")
    names: set[str] = set()
    for file in manifest.files:
        if file.name in names:
            raise InputError(f"{path}: lists {file.name} twice: its interactions would be trained on twice")
        if file.name != Path(file.name).name:
            raise InputError(f"{path}: lists {file.name!r}, which is not the name of a file in this folder")
        names.add(file.name)
    return ReadyWindow(folder, manifest)


def read(
    window: ReadyWindow, split: Split, num_actions: int, batch_bytes: int = BATCH_BYTES
) -> "Iterator[TrajectoryBatch]":
    """The records of one split, file by file; see `read_file`."""
    for file in window.files(split):
        path = str(window.folder / file.name)
        yield from read_file(path, file, window.manifest.observation_dim, num_actions, batch_bytes)


def constant_columns(window: ReadyWindow, num_actions: int) -> list[int]:
    """The places of an observation that hold the same number, not 0, in all training records of the window."""
    first: np.ndarray | None = None
    same = np.zeros(window.manifest.observation_dim, bool)
    for batch in read(window, "train", num_actions):
        if first is None:
            first = batch.observation[0]
            same = first != 0
        same &= (batch.observation == first).all(axis=0)
    found: list[int] = np.flatnonzero(same).tolist()
    return found


def _open_local(path: str) -> BinaryIO:
    return Path(path).open("rb")


def read_file(
    path: str,
    file: WindowFile,
    observation_dim: int,
    num_actions: int,
    batch_bytes: int = BATCH_BYTES,
    open_file: Callable[[str], BinaryIO] = _open_local,
) -> "Iterator[TrajectoryBatch]":
    """The records of one file of a window, about `batch_bytes` at a time, so that memory does not grow with the file.

    They come in the order of the file, except that records of one batch are grouped by their length.

    The checksum and the number of records are compared with the manifest, and the values are checked. The checksum is
    known only at the end of the file: use the batches only if the iteration ends without an error.

    Raises:
      InputError: the file is missing, differs from its checksum or count, holds a corrupt record (with its offset), a
        record of another dimension, an action that is not in [0, num_actions) or was not on offer, or a value that is
        not finite.
    """
    import tensorflow as tf

    from contracts.trajectories import decode_rows

    records = 0
    for data, starts, lengths in _chunks(path, file, batch_bytes, open_file):
        frames = np.frombuffer(data, np.uint8)
        for length in np.unique(lengths):
            mine = np.flatnonzero(lengths == length)
            rows = np.lib.stride_tricks.sliding_window_view(frames, length)[starts[mine]]
            try:
                batch = decode_rows(rows, observation_dim)
            except (tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:  # TensorFlow quotes the bytes
                raise InputError(f"{path}: {_why_unreadable(path, error, records, observation_dim)}") from None
            _check_values(batch, num_actions, path, records + mine)
            yield batch
        records += len(starts)
    if records != file.records:
        raise InputError(f"{path}: manifest says {file.records} records, found {records}")


def clusters(batch: "TrajectoryBatch", first: int = 0) -> np.ndarray:
    """[N] int64: the same number for decisions of one slate, which depend on each other, and no other.

    `first`: how many decisions came before this batch; a decision outside a slate has its position as its number.
    """
    numbers = first + np.arange(len(batch.action))
    if batch.slate_id is None:
        return numbers
    slates = mixed(np.ascontiguousarray(batch.slate_id).view(np.uint8).reshape(len(numbers), -1)) >> np.uint64(2)
    return np.where(batch.slate_id == b"", numbers, slates.astype(np.int64))


def read_serialized(path: str, file: WindowFile, batch_bytes: int = BATCH_BYTES) -> Iterator[list[bytes]]:
    """The serialized records of one file, in batches. Raises InputError for a missing file or another checksum."""
    for data, starts, lengths in _chunks(path, file, batch_bytes, _open_local):
        yield [data[start : start + length] for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]


def _chunks(
    path: str, file: WindowFile, batch_bytes: int, open_file: Callable[[str], BinaryIO]
) -> Iterator[tuple[bytes, np.ndarray, np.ndarray]]:
    """The chunks of a TFRecord file, each with the starts and lengths of the data of its whole records.

    It parses with numpy, because a TFRecordDataset returns records one by one, which takes longer than decoding them.
    It ignores the checksums around each record, because the manifest has a stronger one of the whole file.
    """
    digest = hashlib.sha256()
    size = 0
    rest = b""
    try:
        stream = open_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, but the manifest lists it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    with stream:
        while read := stream.read(batch_bytes):
            digest.update(read)
            size += len(read)
            data = rest + read
            starts, lengths, end = _records(data)
            if len(starts):
                yield data, starts, lengths
            rest = data[end:]
    if size != file.bytes:
        raise InputError(f"{path}: manifest says {file.bytes} bytes, found {size}{first_corruption(path)}")
    if digest.hexdigest() != file.sha256:
        raise InputError(
            f"{path}: manifest says sha256 {file.sha256}, found {digest.hexdigest()}{first_corruption(path)}"
        )
    if rest:
        raise InputError(f"{path}: ends within a record{first_corruption(path)}")


def _records(data: bytes) -> tuple[np.ndarray, np.ndarray, int]:
    """The start and length of the data of each whole record in `data`, and the end of the last whole record.

    A record is its length (8 bytes, little endian), a checksum of that (4 bytes), its data, and a checksum of that.
    """
    starts: list[int] = []
    lengths: list[int] = []
    if len(data) >= _FRAME_BYTES:
        # The common case is fast: all records have one length.
        (length,) = _LENGTH.unpack_from(data)
        size = length + _FRAME_BYTES
        count = len(data) // size
        end = count * size
        # A shorter record may stand whole behind them.
        rest = len(data) - end
        short = rest >= _FRAME_BYTES and _LENGTH.unpack_from(data, end)[0] + _FRAME_BYTES <= rest
        if count and not short and (np.ndarray(count, "<u8", data, strides=(size,)) == length).all():
            return np.arange(count) * size + _FRAME_BYTES - 4, np.full(count, length), end
    begin = 0
    while begin + _FRAME_BYTES <= len(data):
        (length,) = _LENGTH.unpack_from(data, begin)
        if begin + length + _FRAME_BYTES > len(data):
            break
        starts.append(begin + _FRAME_BYTES - 4)
        lengths.append(length)
        begin += length + _FRAME_BYTES
    return np.array(starts, np.int64), np.array(lengths, np.int64), begin


def _why_unreadable(path: str, error: Exception, first_record: int, observation_dim: int) -> str:
    corruption = first_corruption(path).removeprefix(": ")
    reason = re.search(r"Key: [^\n]*", str(error))
    fact = f"a record from {first_record} on is not a trajectory of dimension {observation_dim}"
    return corruption or (f"{fact}: {reason[0]}" if reason else fact)


def first_corruption(path: str) -> str:
    """The first wrong checksum around a record, as ": corrupted record at byte …"; "" if all are right."""
    import tensorflow as tf

    try:
        for _ in tf.data.TFRecordDataset(path).batch(1024):
            pass
    except tf.errors.DataLossError as error:
        # TensorFlow's messages are "corrupted record at 4711 (…)" and "truncated record at 4711' failed …".
        match = re.search(r"(\w+) record at (\d+)", str(error))
        return f": {match[1]} record at byte {match[2]}" if match else ": corrupted record"
    return ""


def _check_values(batch: "TrajectoryBatch", num_actions: int, path: str, positions: np.ndarray) -> None:
    actions, propensities = batch.action, batch.propensity
    wrong_values: Sequence[tuple[str, np.ndarray, np.ndarray]] = (
        (f"action must be in [0, {num_actions})", (actions < 0) | (actions >= num_actions), actions),
        ("reward must be finite", ~np.isfinite(batch.reward), batch.reward),
        ("propensity must be in (0, 1]", ~((propensities > 0) & (propensities <= 1)), propensities),
        ("action must be one of candidates", ~batch.offers.include(actions), actions),
        ("observation must be finite", ~np.isfinite(batch.observation).all(axis=1), batch.observation),
    )
    for fact, wrong, values in wrong_values:
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(f"{path}: {fact}, got {values[row]} (record {positions[row]})")
