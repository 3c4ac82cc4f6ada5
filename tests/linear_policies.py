"""Small linear policies on disk, as the trainer would leave them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from contracts import policies
from contracts.items import Item
from contracts.policies import Champion, Exploration, PolicyCard


def write_policy(
    folder: Path,
    *,
    num_actions: int = 5,
    observation_dim: int = 3,
    seed: int = 0,
    exploration: Exploration | None = None,
    version: str | None = None,
) -> PolicyCard:
    """A policy with random parameters; its version is the folder's name."""
    random = np.random.default_rng(seed)
    half = random.normal(size=(num_actions, observation_dim, observation_dim))
    folder.mkdir(parents=True)
    np.savez(
        folder / policies.LINEAR_NAME,
        theta=random.normal(size=(num_actions, observation_dim)).astype(np.float32),
        covariance=(half @ half.transpose(0, 2, 1) / observation_dim + 0.1 * np.eye(observation_dim)).astype(
            np.float32
        ),
        num_samples=np.full(num_actions, 7.0, np.float32),
    )
    card = PolicyCard(
        version=version or folder.name,
        parent=None,
        algorithm="linucb",
        hyperparameters={"alpha": 0.5},
        observation_dim=observation_dim,
        num_actions=num_actions,
        catalogue=[
            Item(action=i, item_id=str(100 + i), attributes={"title": f"Movie {i}"}) for i in range(num_actions)
        ],
        trained_on=[],
        exploration=exploration or Exploration(),
    )
    (folder / policies.CARD_NAME).write_bytes(policies.encode_json(card))
    return card


def point_at(store: Path, version: str, previous: str | None = None, **roll_out: Any) -> None:
    """Makes `version` the champion of `store`, atomically."""
    champion = Champion(version=version, previous=previous, promoted_at=datetime.now(UTC), reason="test", **roll_out)
    draft = store / ".champion.json"
    draft.write_bytes(policies.encode_json(champion))
    draft.replace(store / policies.CHAMPION_NAME)
