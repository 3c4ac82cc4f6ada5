"""The frozen network of a policy, under whose output a linear model learns live: what turns observations into sums.

Live sums of such a policy are sums over what the network makes of an observation, not over the observation. The network
of neural_linucb is trained once and stays as it is, so all its later versions have the same encoder.
"""

from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from contracts import policies, policy_arrays
from contracts.errors import InputError
from contracts.policies import CARD_NAME


class Encoder(NamedTuple):
    """The layers of a policy, float32."""

    layers: list[tuple[np.ndarray, np.ndarray]]  # ([in, out], [out]) each, at least one

    @property
    def observation_dim(self) -> int:
        """D, the length of an observation."""
        return len(self.layers[0][0])

    @property
    def width(self) -> int:
        """E, the length of what it makes of one."""
        return len(self.layers[-1][1])

    @property
    def digest(self) -> str:
        """A hash of the layers: 16 hexadecimal digits."""
        return digest(self.layers)

    def encode(self, observations: np.ndarray) -> np.ndarray:
        """[N, D] -> [N, E] float32. The same observation gives the same numbers in every batch, bit for bit."""
        blocks = policy_arrays.encoded_blocks(
            [(weights.astype(np.float64), bias.astype(np.float64)) for weights, bias in self.layers], observations
        )
        return blocks.reshape(-1, self.width)[: len(observations)].astype(np.float32)


def digest(layers: list[tuple[np.ndarray, np.ndarray]]) -> str:
    """A hash of layers; empty where there are none, as in a linear policy."""
    if not layers:
        return ""
    found = blake2b(digest_size=8)
    for weights, bias in layers:
        for array in (weights, bias):
            found.update(f"{array.shape}".encode())
            found.update(array.astype("<f4").tobytes())
    return found.hexdigest()


def read(folder: Path) -> Encoder:
    """The encoder of the policy in `folder`. Raises InputError if it is no policy, or has no network."""
    path = folder / CARD_NAME
    try:
        card = policies.decode_card(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    arrays = policy_arrays.read(folder, card)
    if not arrays.layers:
        raise InputError(f"{folder}: must be a policy with a network, got {card.algorithm}, which needs no encoder")
    return Encoder([(weights.astype(np.float32), bias.astype(np.float32)) for weights, bias in arrays.layers])
