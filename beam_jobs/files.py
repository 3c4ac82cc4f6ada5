"""Files that exist completely or not at all, on this machine or in a bucket."""

import contextlib
import fcntl
import glob
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from contracts.errors import InputError, OperationError
from contracts.records import one_line

UNFINISHED_SUFFIX = ".unfinished"


def publish(path: str, chunks: Iterable[bytes]) -> None:
    """Writes `chunks` to `path`, replacing a file of that name.

    On this machine, or on a disk that several machines mount, the file has another name until all of it is on the disk;
    the name differs between attempts, so two workers that write the same file do not write into each other's. In a
    bucket an object appears once its last byte is written. Raises OperationError when the file cannot be written, such
    as on a full disk.
    """
    try:
        if path_is_local(path):
            _publish_on_disk(path, chunks)
            return
        with FileSystems.create(path, "application/octet-stream", CompressionTypes.UNCOMPRESSED) as file:
            for chunk in chunks:
                file.write(chunk)
    except (OSError, BeamIOError) as error:
        raise OperationError(f"{path}: cannot be written: {one_line(str(error), 200)}") from None


def _publish_on_disk(path: str, chunks: Iterable[bytes]) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    written_to = target.with_name(f"{target.name}.{uuid.uuid4().hex}{UNFINISHED_SUFFIX}")
    try:
        with written_to.open("xb") as file:
            _lock(file)  # until it has its name: a free lock means that its writer died
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            written_to.rename(target)
    except BaseException:
        written_to.unlink(missing_ok=True)
        raise
    for abandoned in target.parent.glob(f"{glob.escape(target.name)}.*{UNFINISHED_SUFFIX}"):
        with contextlib.suppress(OSError), abandoned.open("rb") as file:
            if _lock(file):
                abandoned.unlink(missing_ok=True)


def _lock(file: IO[bytes]) -> bool:
    """Locks a file if no other process has; False if one has, or where the disk has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def path_is_local(path: str) -> bool:
    """Whether `path` is on this machine's disk."""
    return "://" not in path


def read(path: str) -> bytes | None:
    """The bytes of `path`; None when the file does not exist."""
    if not FileSystems.exists(path):
        return None
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        data: bytes = file.read()
        return data


def clear(folder: str) -> None:
    """Removes the files of `folder`, if it exists."""
    [matched] = FileSystems.match([FileSystems.join(folder, "*")])
    if leftovers := [found.path for found in matched.metadata_list]:
        FileSystems.delete(leftovers)


@contextmanager
def alone(folder: Path | str, flag: str, *, wait: bool = True) -> Iterator[None]:
    """Lets one process at a time work in a folder of this machine; creates the folder. Buckets have no lock.

    With `wait` it waits while another process has the folder. Raises InputError that begins with `flag` when the folder
    cannot be written to, or when another process has it and `wait` is false.
    """
    if not path_is_local(str(folder)):
        yield
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock = (Path(folder) / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{flag}: {str(folder)!r} cannot be written to: {error.strerror}") from None
    with lock:  # closing the file gives the folder back, as the end of the process does
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{flag}: a folder that no other process writes to expected, got {str(folder)!r}"
            ) from None
        yield
