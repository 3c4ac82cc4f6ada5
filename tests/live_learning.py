"""A base on disk with the statistics that it was trained from, and the sums of open windows beside it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from contracts import live_emissions, live_sums, policies, policy_arrays
from contracts.items import Item
from contracts.live_emissions import Emission, LiveCounts, WindowSums
from contracts.live_sums import ArmSums
from contracts.policies import Exploration, PolicyCard, TrainedWindow
from contracts.policy_arrays import PolicyArrays
from contracts.windows import TrainingWindow
from tests.windows import consecutive_windows
from trainer import agents, arms, checkpoint, linear
from trainer.linear import SufficientStatistics

NUM_ACTIONS, DIM = 6, 3
WINDOWS = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 6)


def interactions(count: int, seed: int, num_actions: int = NUM_ACTIONS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observation [count, DIM], action and reward, on the grid of the fixed-point sums, so that both sums are equal."""
    random = np.random.default_rng(seed)
    observation = np.round(random.normal(size=(count, DIM)) * 1024) / 1024
    reward = np.round(random.normal(size=count) * 1024) / 1024
    return observation.astype(np.float32), random.integers(0, num_actions, count), reward.astype(np.float32)


def sums_of(seed: int, count: int = 40, num_actions: int = NUM_ACTIONS) -> ArmSums:
    """The sums of `interactions`."""
    return live_sums.of_interactions(*interactions(count, seed, num_actions))


def write_base(store: Path, version: str, trained: list[TrainingWindow], **hyperparameters: Any) -> PolicyCard:
    """A linear policy that was trained on the windows, each with 50 interactions of its own seed."""
    chosen = agents.complete("lin_ucb", hyperparameters)
    catalogue = [
        Item(action=k, item_id=f"m{k}", attributes={"year": 1990 + k, "genres": ["Drama"] if k % 2 else ["Comedy"]})
        for k in range(NUM_ACTIONS)
    ]
    statistics = SufficientStatistics.zeros(NUM_ACTIONS, DIM)
    for window in trained:
        observation, action, reward = interactions(50, 100 + WINDOWS.index(window))
        later = sum(other > window for other in trained)
        half_life = float(chosen["half_life"])
        statistics.add(observation, action, reward, 0.5 ** (later / half_life) if half_life else 1.0)
    card = PolicyCard(
        version=version,
        parent=None,
        algorithm="lin_ucb",
        hyperparameters=chosen,
        observation_dim=DIM,
        num_actions=NUM_ACTIONS,
        catalogue=catalogue,
        arm_columns=arms.columns(catalogue),
        trained_on=[TrainedWindow(window=window, split="train", records=50) for window in trained],
        exploration=Exploration(),
    )
    folder = store / version
    folder.mkdir(parents=True)
    posterior = posterior_of(card, statistics)
    policy_arrays.write(folder, PolicyArrays.linear(posterior.theta, posterior.covariance, statistics.n))
    checkpoint.write(folder, statistics)
    (folder / policies.CARD_NAME).write_bytes(policies.encode_json(card))
    return card


def posterior_of(card: PolicyCard, statistics: SufficientStatistics) -> linear.Posterior:
    """What a training would solve."""
    settings = card.hyperparameters
    return linear.posterior(
        statistics,
        str(settings["arm_features"]),
        float(settings["tikhonov"]),
        float(settings["arm_tikhonov"]),
        arms.arm_features(card.catalogue, card.arm_columns),
    )


class Emitter:
    """Writes emissions into `<live>/sums/`, as the streaming job does."""

    def __init__(self, live: Path) -> None:
        self._folder = live / live_emissions.SUMS_FOLDER
        self._folder.mkdir(parents=True)
        self._sequence = 0

    def emit(
        self,
        windows: dict[TrainingWindow, ArmSums],
        snapshot: bool = True,
        observation_dim: int = DIM,
        encoder: str = "",
    ) -> None:
        """Writes one file; without `snapshot`, `windows` holds the changed arms alone."""
        self._sequence += 1
        now = datetime.now(UTC)
        emission = Emission(
            sequence=self._sequence,
            snapshot=snapshot,
            emitted_at=now,
            complete_until=now - timedelta(seconds=1),
            observation_dim=observation_dim,
            num_actions=NUM_ACTIONS,
            encoder=encoder,
            events=0,
            dead_letters=0,
            healed=0,
            windows=[
                WindowSums(window=window, state="open", counts=LiveCounts(), columns=live_sums.encode(sums))
                for window, sums in windows.items()
            ],
        )
        draft = self._folder / ".draft"
        draft.write_bytes(live_emissions.encode(emission))
        draft.rename(self._folder / live_emissions.file_name(self._sequence))
