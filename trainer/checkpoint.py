"""The checkpoint of a linear policy: the sufficient statistics that the next training continues from.

`checkpoint/statistics.npz` holds `a` [K, D, D], `b` [K, D] and `n` [K], float64 (`trainer.linear`).
"""

import io
import zipfile
from pathlib import Path

import numpy as np

from contracts.errors import InputError
from contracts.policies import CHECKPOINT_NAME
from trainer.linear import SufficientStatistics

STATISTICS_NAME = "statistics.npz"


def encode(statistics: SufficientStatistics) -> bytes:
    """The statistics as an npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, a=statistics.a, b=statistics.b, n=statistics.n)
    return buffer.getvalue()


def decode(data: bytes, where: str) -> SufficientStatistics:
    """The inverse of `encode`. Raises InputError that begins with `where`."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return SufficientStatistics(arrays["a"], arrays["b"], arrays["n"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{where}: not a checkpoint of a linear policy: {error}") from None


def write(policy: Path, statistics: SufficientStatistics) -> None:
    """Writes the checkpoint into the folder of a policy."""
    folder = policy / CHECKPOINT_NAME
    folder.mkdir(exist_ok=True)
    (folder / STATISTICS_NAME).write_bytes(encode(statistics))


def read(policy: Path) -> SufficientStatistics:
    """The statistics that a policy was trained from. Raises InputError for a missing or unreadable checkpoint."""
    return read_file(policy / CHECKPOINT_NAME / STATISTICS_NAME)


def read_file(path: Path) -> SufficientStatistics:
    """The statistics in a file. Raises InputError for a missing or unreadable file."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: not a checkpoint of a linear policy: {error.strerror}") from None
