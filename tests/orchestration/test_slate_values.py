"""Values of whole slates against those that many slates of the target policy earn."""

import numpy as np
import pytest

from contracts.trajectories import TrajectoryBatch
from orchestration.held_back import HeldBack, Judged
from orchestration.slate_values import slate_value

K, PLACES = 4, 2
WORTH = np.array([0.8, 0.6, 0.3, 0.1])
TARGET = np.array([0.55, 0.25, 0.15, 0.05])  # of each item, while it is left
MODEL = WORTH + np.array([0.1, -0.1, 0.0, 0.2])  # wrong


def drawn(rng: np.random.Generator, slates: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items [S, P] that are drawn one after the other without those before, and the rewards of the places.

    The second place earns half as much below an item that is worth more.
    """
    first = rng.choice(K, slates, p=weights / weights.sum())
    left = np.where(np.arange(K) == first[:, np.newaxis], 0.0, weights)
    chance = left / left.sum(axis=1, keepdims=True)
    second = (chance.cumsum(axis=1) > rng.random((slates, 1))).argmax(axis=1)
    items = np.stack([first, second], axis=1)
    worth = WORTH[items]
    worth[:, 1] *= np.where(worth[:, 1] < worth[:, 0], 0.5, 1.0)
    return items, worth + rng.normal(0, 0.3, worth.shape)


def probability(items: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[S, P], of each item given the places before it."""
    weights = weights / weights.sum()
    of_first = weights[items[:, 0]]
    return np.stack([of_first, weights[items[:, 1]] / (1 - of_first)], axis=1)


def logged(rng: np.random.Generator, slates: int) -> tuple[Judged, dict[str, np.ndarray]]:
    """Slates of a uniform policy, their rows shuffled, and what the target would do and the model says."""
    uniform = np.ones(K)
    items, rewards = drawn(rng, slates, uniform)
    ids = np.array([f"018f0000-0000-7000-8000-{number:012x}".encode() for number in range(slates)])
    order = rng.permutation(slates * PLACES)
    batch = TrajectoryBatch(
        observation=np.zeros((slates * PLACES, 1), np.float32),
        action=items.reshape(-1).astype(np.int32),
        reward=rewards.reshape(-1).astype(np.float32),
        propensity=probability(items, uniform).reshape(-1).astype(np.float32),
        defaulted=np.zeros(slates * PLACES, bool),
        slate_id=np.repeat(ids, PLACES),
        place=np.tile(np.arange(PLACES, dtype=np.int32), slates),
    ).take(order)
    left = np.where(np.arange(K) == items[:, :1], 0.0, TARGET)
    expected = np.stack([np.full(slates, TARGET @ MODEL), (left @ MODEL) / left.sum(axis=1)], axis=1)
    policy = {
        "chosen": probability(items, TARGET).reshape(-1)[order],
        "q_logged": MODEL[items].reshape(-1)[order],
        "q_target": expected.reshape(-1)[order],
    }
    return HeldBack(batch, []).judged_by([], K), policy


TRUTH = float(drawn(np.random.default_rng(9), 400_000, TARGET)[1].sum(axis=1).mean())


def test_the_value_of_a_slate_is_that_of_the_target_policys_slates():
    rng = np.random.default_rng(0)
    held, errors = 0, []
    for _ in range(100):
        judged, policy = logged(rng, 300)
        found = slate_value(judged, **policy)
        assert found is not None
        assert (found.estimator, found.slates, found.reliable) == ("cascade_dr", 300, True)
        held += found.low <= TRUTH <= found.high
        errors.append(found.value - TRUTH)
    assert held >= 90
    assert abs(np.mean(errors)) < 3 * np.std(errors) / 10
    # Per decision, each weighted alone, and twice of it: another value.
    judged, policy = logged(rng, 100_000)
    alone = policy["chosen"] / judged.decisions.propensity * judged.decisions.reward
    assert PLACES * alone.mean() > TRUTH + 0.02


def test_slates_without_a_place_and_decisions_outside_slates_are_left_out():
    judged, policy = logged(np.random.default_rng(1), 50)
    every = slate_value(judged, **policy)
    assert every is not None and every.slates == 50
    kept = np.arange(len(policy["chosen"])) != 7
    without = HeldBack(judged.decisions.take(kept), []).judged_by([], K)
    found = slate_value(without, **{name: values[kept] for name, values in policy.items()})
    assert found is not None and found.slates == 49
    outside = judged.decisions._replace(slate_id=np.full(len(kept), b"", "S36"))
    assert slate_value(HeldBack(outside, []).judged_by([], K), **policy) is None
    alone = judged.decisions._replace(slate_id=None, place=None)
    assert slate_value(HeldBack(alone, []).judged_by([], K), **policy) is None


def test_slates_of_different_lengths_count_alike():
    judged, policy = logged(np.random.default_rng(2), 400)
    short = np.flatnonzero(judged.decisions.slate_id < b"018f0000-0000-7000-8000-000000000064")
    kept = np.setdiff1d(np.arange(800), short[judged.decisions.place[short] == 1])
    found = slate_value(
        HeldBack(judged.decisions.take(kept), []).judged_by([], K),
        **{name: values[kept] for name, values in policy.items()},
    )
    assert found is not None and found.slates == 400
    both = slate_value(judged, **policy)
    assert both is not None and found.value < both.value


def test_slates_for_few_viewers_are_not_reliable():
    judged, policy = logged(np.random.default_rng(3), 100)
    few = judged._replace(viewers=np.array([int(one[-2:], 16) % 5 for one in judged.decisions.slate_id.tolist()]))
    found = slate_value(few, **policy)
    assert found is not None and not found.reliable
    assert found.reason == "only 5 independent slates, at least 20 are needed"
    assert found.value == pytest.approx(slate_value(judged, **policy).value)
