from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest

from contracts.errors import InputError
from contracts.items import Item
from contracts.policies import Exploration, PolicyCard, TrainedWindow
from contracts.trajectories import TrajectoryBatch
from tests.windows import consecutive_windows, write_window
from trainer import checkpoint, forgetting, linear, training
from trainer.linear import SufficientStatistics

NUM_ACTIONS, DIM, COUNT = 4, 3, 400
WINDOWS = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 5)
TASTES = np.random.default_rng(7).normal(size=(NUM_ACTIONS, DIM))


def batch(tastes: np.ndarray, seed: int, count: int = COUNT) -> TrajectoryBatch:
    """Uniform decisions, and rewards of these tastes [K, D] with noise."""
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(count, DIM)).astype(np.float32)
    action = rng.integers(0, NUM_ACTIONS, count).astype(np.int32)
    reward = np.einsum("nd,nd->n", observation, tastes[action]) + rng.normal(0, 0.5, count)
    return TrajectoryBatch(
        observation=observation,
        action=action,
        reward=reward.astype(np.float32),
        propensity=np.full(count, 1 / NUM_ACTIONS, np.float32),
        defaulted=np.zeros(count, bool),
    )


def summed(*batches: TrajectoryBatch) -> SufficientStatistics:
    statistics = SufficientStatistics.zeros(NUM_ACTIONS, DIM)
    for one in batches:
        statistics.add(one.observation, one.action, one.reward)
    return statistics


def share(earlier: np.ndarray, now: np.ndarray, seed: int = 0) -> float:
    """Of evidence by tastes `earlier`, in a window with tastes `now`."""
    halves = summed(batch(now, 3 * seed + 1)), summed(batch(now, 3 * seed + 2))
    before = summed(batch(earlier, 3 * seed, 4 * COUNT))
    return forgetting.share_kept(before, halves, lambda s: linear.disjoint(s, 0.1).theta)


def test_evidence_is_kept_where_tastes_stay_and_forgotten_where_they_turn() -> None:
    assert share(-TASTES, TASTES) == 0.5  # the shortest half-life there is
    stays, moves, turns = (
        np.mean([share(TASTES + shift, TASTES, seed) for seed in range(30)]) for shift in (0.0, 0.05, 0.3)
    )
    assert stays > moves > turns
    assert stays > 0.85 and turns < 0.55


def test_of_equal_errors_everything_is_kept() -> None:
    nothing = SufficientStatistics.zeros(NUM_ACTIONS, DIM)
    halves = nothing, SufficientStatistics.zeros(NUM_ACTIONS, DIM)
    assert forgetting.share_kept(summed(batch(TASTES, 0)), halves, lambda s: linear.disjoint(s, 0.1).theta) == 1.0


def test_the_error_is_that_of_the_predictions() -> None:
    rows, theta = batch(TASTES, 3), TASTES + 0.1
    predicted = np.einsum("nd,nd->n", rows.observation, theta[rows.action])
    squares = ((rows.reward - predicted) ** 2).sum() - (rows.reward.astype(np.float64) ** 2).sum()
    assert forgetting._squared_error(theta, summed(rows)) == pytest.approx(squares, rel=1e-5)


def settings(tmp_path, **changes) -> training.Settings:
    given = training.Settings(
        windows=tmp_path / "windows",
        policies=tmp_path / "policies",
        num_actions=NUM_ACTIONS,
        catalogue=[Item(action=k, item_id=str(k)) for k in range(NUM_ACTIONS)],
        hyperparameters={"half_life": "auto"},
    )
    return msgspec.structs.replace(given, **changes)


def trained(tmp_path, tastes: list[np.ndarray]) -> list[PolicyCard]:
    """A policy for each window, each from the one before."""
    cards: list[PolicyCard] = []
    for number, now in enumerate(tastes):
        held_back = batch(now, 100 + number, 40)
        write_window(tmp_path / "windows", WINDOWS[number], batch(now, number), held_back)
        parent = cards[-1].version if cards else None
        cards.append(training.train(settings(tmp_path, parent=parent)))
    return cards


def test_a_policy_says_what_it_kept_and_its_evidence_is_weighted_by_it(tmp_path) -> None:
    *_, card = trained(tmp_path, [TASTES, TASTES, -TASTES, -TASTES])
    kept = [one.kept for one in card.trained_on if one.split == "train"]
    assert kept[0] == 1.0  # there was nothing to keep
    assert kept[1] > kept[2] == 0.5
    assert {one.kept for one in card.trained_on if one.split == "holdback"} == {1.0}
    weights = [np.prod(kept[number + 1 :]) for number in range(4)]
    for window, weight in zip(WINDOWS, weights, strict=False):
        assert forgetting.evidence_weight(card, window.start) == pytest.approx(weight)
    expected = SufficientStatistics.zeros(NUM_ACTIONS, DIM)
    for number, weight in enumerate(weights):
        now = TASTES if number < 2 else -TASTES
        parts = [batch(now, number)] + [batch(now, 100 + number, 40)] * (number < 3)
        for one in parts:
            expected.add(one.observation, one.action, one.reward, weight)
    found = checkpoint.read(tmp_path / "policies" / card.version)
    np.testing.assert_allclose(found.a, expected.a, rtol=1e-9)
    np.testing.assert_allclose(found.b, expected.b, rtol=1e-9, atol=1e-9)
    assert forgetting.weight(card, 2) == pytest.approx(kept[-1] ** 2)


def test_the_same_windows_give_the_same_policy(tmp_path) -> None:
    tastes = [TASTES, -TASTES]
    first, second = trained(tmp_path / "a", tastes), trained(tmp_path / "b", tastes)
    assert first == second
    read = [checkpoint.read(tmp_path / name / "policies" / first[-1].version) for name in "ab"]
    np.testing.assert_array_equal(read[0].b, read[1].b)


def test_windows_that_are_trained_on_at_once_are_weighted_one_by_one(tmp_path) -> None:
    for number, now in enumerate([TASTES, TASTES, -TASTES]):
        write_window(tmp_path / "windows", WINDOWS[number], batch(now, number), batch(now, 100 + number, 40))
    card = training.train(settings(tmp_path))
    kept = [one.kept for one in card.trained_on if one.split == "train"]
    assert kept[0] == 1.0 and kept[1] > kept[2] == 0.5


def test_a_half_life_that_is_given_weighs_as_before() -> None:
    card = PolicyCard(
        version="v",
        parent=None,
        algorithm="lin_ucb",
        hyperparameters={"half_life": 2.0},
        observation_dim=DIM,
        num_actions=NUM_ACTIONS,
        catalogue=[],
        trained_on=[TrainedWindow(window=window, split="train", records=1) for window in WINDOWS],
        exploration=Exploration(),
    )
    assert forgetting.evidence_weight(card, WINDOWS[0].start) == 0.25
    assert forgetting.weight(card, 1) == 0.5**0.5
    forever = msgspec.structs.replace(card, hyperparameters={"half_life": 0.0})
    assert forgetting.evidence_weight(forever, WINDOWS[0].start) == forgetting.weight(forever, 9) == 1.0


def test_beam_sums_no_evidence_whose_weight_is_not_known(tmp_path) -> None:
    with pytest.raises(InputError, match="half_life: a number where Beam sums the statistics up, got 'auto'"):
        training.train(settings(tmp_path, beam_options=[]))
