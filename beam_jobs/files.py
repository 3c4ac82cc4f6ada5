"""Files that are there wholly or not at all, on this machine or in a bucket."""

import os
from collections.abc import Iterable

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems


def publish(path: str, chunks: Iterable[bytes]) -> None:
    """Writes `chunks` to `path`, in place of what was there.

    On this machine under another name first, and on the disk before it is renamed. In a bucket an object is there once
    it has been written to its end.
    """
    local = path_is_local(path)
    written_to = f"{path}.unfinished" if local else path
    with FileSystems.create(written_to, "application/octet-stream", CompressionTypes.UNCOMPRESSED) as file:
        for chunk in chunks:
            file.write(chunk)
        if local:
            file.flush()
            os.fsync(file.fileno())
    if local:
        FileSystems.rename([written_to], [path])


def path_is_local(path: str) -> bool:
    """Whether `path` is on this machine's disk."""
    return "://" not in path


def read(path: str) -> bytes | None:
    """What is in `path`; None when there is no such file."""
    if not FileSystems.exists(path):
        return None
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        data: bytes = file.read()
        return data


def clear(folder: str) -> None:
    """Removes the files of `folder`, if it is there."""
    [matched] = FileSystems.match([FileSystems.join(folder, "*")])
    if leftovers := [found.path for found in matched.metadata_list]:
        FileSystems.delete(leftovers)
