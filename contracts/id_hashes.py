"""Two hashes of ids: a fast one for groups within one run, and one for choices that must stay the same for ever."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

ID_BYTES = 36  # a UUID as text


def mixed(ids: np.ndarray) -> np.ndarray:
    """[N, 36] uint8, ids as text -> [N] uint64, evenly spread and the same in every process.

    Each eight bytes are taken in with a multiplication and a shift, and the finalizer of splitmix64 (Steele, Lea and
    Flood, "Fast Splittable Pseudorandom Number Generators", 2014) spreads the result over all bits.
    """
    padded = np.zeros((len(ids), -(-ID_BYTES // 8) * 8), np.uint8)
    padded[:, :ID_BYTES] = ids
    bits = np.zeros(len(ids), np.uint64)
    for word in padded.view("<u8").T:
        bits = (bits ^ word) * np.uint64(0x9E3779B97F4A7C15)
        bits ^= bits >> np.uint64(32)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)))


def lasting(ids: Sequence[bytes]) -> np.ndarray:
    """[N] ids as text -> [N] uint64, evenly spread and the same for ever: what is held back depends on it."""
    return np.frombuffer(b"".join([blake2b(one, digest_size=8).digest() for one in ids]), "<u8")


def held_back(hashes: np.ndarray, share: float) -> np.ndarray:
    """[N] uint64 of `lasting` -> [N] bool: whether each id is in the share that is held back, independent of its bucket."""
    return np.asarray((hashes >> np.uint64(32)) < np.uint64(round(share * 2**32)))
