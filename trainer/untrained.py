"""The first policy of a catalogue that has no log yet: it needs no data, and its decisions are the first data.

    uniform     every item that is on offer is as likely as any other
    popularity  an item is chosen in proportion to its count + 1, whatever the context

Its card names no window that it was trained on. A training with it as the parent starts afresh, and the gate lets the
first trained policy serve without a comparison, because there is no model to compare with.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from contracts import items, policy_arrays
from contracts.errors import InputError
from contracts.features import FeatureSpec
from contracts.items import Item
from contracts.policies import Exploration, PolicyCard
from contracts.policy_arrays import PolicyArrays
from trainer import artifact


def write(
    policies: Path, catalogue: list[Item], features: FeatureSpec, counts: Sequence[float] | None = None
) -> PolicyCard:
    """Adds the first policy to the policy store and returns its card.

    Args:
      policies: the policy store.
      catalogue: its items.
      features: of the observations.
      counts: how often each item was chosen before, at least 0; None: unknown, so the policy is uniform.

    Raises InputError when there is nothing to recommend, and for counts without the constant that their scores stand on.
    """
    items.check(catalogue, None)
    theta = np.zeros((len(catalogue), features.dim))
    algorithm: Literal["uniform", "popularity"] = "uniform"
    exploration = Exploration(strategy="uniform")
    if counts is not None:
        if not features.constant:
            raise InputError("features: a popularity policy needs the constant, got constant = false")
        # With softmax at temperature 1, the probability is in proportion to exp(score).
        theta[:, 0] = np.log1p(np.asarray(counts, np.float64))
        algorithm, exploration = "popularity", Exploration(strategy="softmax", temperature=1.0)
    inputs = msgspec.json.encode([catalogue, features, theta[:, 0].tolist()], order="deterministic")
    card = PolicyCard(
        version=f"{algorithm}-{hashlib.sha256(inputs).hexdigest()[:8]}",
        parent=None,
        algorithm=algorithm,
        hyperparameters={},
        observation_dim=features.dim,
        num_actions=len(catalogue),
        catalogue=catalogue,
        trained_on=[],
        exploration=exploration,
        features=features,
    )
    covariance = np.broadcast_to(np.eye(features.dim), (len(catalogue), features.dim, features.dim))
    arrays = PolicyArrays.linear(theta, covariance, np.zeros(len(catalogue)))
    artifact.write(policies, card, lambda folder: policy_arrays.write(folder, arrays))
    return card
