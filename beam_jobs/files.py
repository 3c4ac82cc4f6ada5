"""Files that exist completely or not at all, on this machine or in a bucket."""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from contracts.errors import InputError, OperationError
from contracts.records import one_line


def publish(path: str, chunks: Iterable[bytes]) -> None:
    """Writes `chunks` to `path`, replacing a file of that name.

    On this machine the file has another name until all of it is on the disk. In a bucket an object appears once its
    last byte is written. Raises OperationError when the file cannot be written, such as on a full disk.
    """
    local = path_is_local(path)
    written_to = f"{path}.unfinished" if local else path
    try:
        with FileSystems.create(written_to, "application/octet-stream", CompressionTypes.UNCOMPRESSED) as file:
            for chunk in chunks:
                file.write(chunk)
            if local:
                file.flush()
                os.fsync(file.fileno())
        if local:
            FileSystems.rename([written_to], [path])
    except (OSError, BeamIOError) as error:
        raise OperationError(f"{path}: cannot be written: {one_line(str(error), 200)}") from None


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
def alone(folder: Path | str, flag: str) -> Iterator[None]:
    """Lets one process at a time work in a folder of this machine; creates the folder. Buckets have no lock.

    Raises InputError that begins with `flag` when the folder cannot be written to.
    """
    if not path_is_local(str(folder)):
        yield
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock = (Path(folder) / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{flag}: {str(folder)!r} cannot be written to: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
