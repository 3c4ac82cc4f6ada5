"""Taking interactions out of a policy gives the policy that was trained without them."""

from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from contracts import policies
from contracts.items import Item
from contracts.trajectories import TrajectoryBatch
from tests.windows import consecutive_windows, write_window
from trainer import artifact, checkpoint, erasure, training
from trainer.erasure import Part

WINDOWS = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 2)
CATALOGUE = [Item(action=k, item_id=f"m{k}", attributes={"title": f"Movie {k}"}) for k in range(4)]


def trajectories(count: int, seed: int) -> TrajectoryBatch:
    rng = np.random.default_rng(seed)
    return TrajectoryBatch(
        observation=rng.normal(size=(count, 3)).astype(np.float32),
        action=rng.integers(0, 4, count).astype(np.int32),
        reward=rng.normal(size=count).astype(np.float32),
        propensity=np.full(count, 0.25, np.float32),
        defaulted=np.zeros(count, bool),
    )


def trained(folder, gone: int) -> list[policies.PolicyCard]:
    """Two policies, each the other's parent; the first `gone` interactions of each window are not there."""
    cards: list[policies.PolicyCard] = []
    for index, window in enumerate(WINDOWS):
        write_window(folder / "windows", window, trajectories(100, index).take(slice(gone, None)))
        settings = training.Settings(
            windows=folder / "windows",
            policies=folder / "policies",
            num_actions=4,
            catalogue=CATALOGUE,
            parent=cards[-1].version if cards else None,
            hyperparameters={"half_life": 1.0},
        )
        cards.append(training.train(settings))
    return cards


def parts() -> list[Part]:
    return [
        Part(window, "train", 100, trajectories(100, index).take(slice(0, 7))) for index, window in enumerate(WINDOWS)
    ]


def test_a_policy_without_some_interactions_is_the_one_trained_without_them(tmp_path):
    whole, reduced = trained(tmp_path / "whole", 0), trained(tmp_path / "reduced", 7)
    store = tmp_path / "whole" / "policies"
    for card, other in zip(whole, reduced, strict=True):
        assert erasure.subtract(store, card, parts()) == "subtracted"
        mine = checkpoint.read(store / card.version)
        theirs = checkpoint.read(tmp_path / "reduced" / "policies" / other.version)
        for name in ("a", "b", "n"):
            np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=0, atol=1e-9)
        after = artifact.read_card(store, card.version)
        assert after is not None
        assert {one.records for one in after.trained_on} <= {93, 0}  # nothing is held back in these windows
        # Again, with the card as it is now: nothing is taken out twice.
        assert erasure.subtract(store, after, parts()) == "not trained on them"
    assert not list(store.glob(".*"))


def test_a_policy_that_died_on_its_way_is_put_back(tmp_path):
    (card, _) = trained(tmp_path, 0)
    store = tmp_path / "policies"
    aside = store / f"{erasure.ASIDE}1" / erasure.BEFORE
    aside.mkdir(parents=True)
    (store / card.version).rename(aside / card.version)
    assert artifact.read_card(store, card.version) is None
    erasure.restore(store)
    assert artifact.read_card(store, card.version) == card
    assert not list(store.glob(".*"))


@pytest.mark.parametrize("algorithm", ["neural_linucb", "neural_softmax"])
def test_nothing_can_be_subtracted_from_a_network(tmp_path, algorithm):
    (card, _) = trained(tmp_path, 0)
    network = msgspec.structs.replace(card, algorithm=algorithm)
    assert "train it afresh" in erasure.subtract(tmp_path / "policies", network, parts())
