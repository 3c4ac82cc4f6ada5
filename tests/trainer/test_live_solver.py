import numpy as np
import pytest

from contracts import live_sums, policy_arrays
from tests.live_learning import DIM, NUM_ACTIONS, WINDOWS, interactions, posterior_of, sums_of, write_base
from trainer import checkpoint
from trainer.linear import SufficientStatistics
from trainer.live_solver import LiveSolver

MODELS = {
    "none": {"arm_features": "none"},
    "shared": {"arm_features": "shared"},
    "hybrid": {"arm_features": "hybrid"},
    "forgetting": {"arm_features": "none", "half_life": 2.0},
    "forgetting hybrid": {"arm_features": "hybrid", "half_life": 2.0},
}


def solver_of(store, **hyperparameters):
    card = write_base(store, "base", WINDOWS[:2], **hyperparameters)
    arrays = policy_arrays.read(store / "base", card)
    return card, arrays, LiveSolver(card, checkpoint.read(store / "base"), arrays)


def trained_on_all(card, seeds):
    """What a training on the base's windows and on those of the seeds would solve."""
    statistics = SufficientStatistics.zeros(NUM_ACTIONS, DIM)
    parts = [interactions(50, 100), interactions(50, 101), *(interactions(40, seed) for seed in seeds)]
    half_life = float(card.hyperparameters["half_life"])
    for later, part in enumerate(reversed(parts)):
        statistics.add(*part, 0.5 ** (later / half_life) if half_life else 1.0)
    posterior = posterior_of(card, statistics)
    return policy_arrays.PolicyArrays.linear(posterior.theta, posterior.covariance, statistics.n)


def assert_alike(found, wanted):
    np.testing.assert_allclose(found.theta, wanted.theta, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.covariance, wanted.covariance, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.num_samples, wanted.num_samples, rtol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_base_and_sums_give_what_a_training_on_the_windows_would(model, tmp_path):
    card, arrays, solver = solver_of(tmp_path, **MODELS[model])
    first, second = sums_of(7), sums_of(8)
    solver.solve({WINDOWS[2]: first}, first.arms)
    solver.solve({WINDOWS[2]: first, WINDOWS[3]: second}, second.arms)
    solver.solve_all()
    assert_alike(arrays.changed(solver.since_base()), trained_on_all(card, [7, 8]))


@pytest.mark.parametrize("model", MODELS)
def test_means_are_exact_whatever_arms_changed(model, tmp_path):
    card, arrays, solver = solver_of(tmp_path, **MODELS[model])
    whole = sums_of(7)
    for count in (10, 25, 40):  # the window grows, and few arms change each time
        part = live_sums.of_interactions(*(column[:count] for column in interactions(40, 7)))
        before = live_sums.of_interactions(*(column[: count - 15] for column in interactions(40, 7)[:]))
        changed = live_sums.differing(part, before) if count > 10 else part.arms
        solver.solve({WINDOWS[2]: part}, changed)
    assert live_sums.equal(part, whole)
    found = arrays.changed(solver.since_base())
    np.testing.assert_allclose(found.theta, trained_on_all(card, [7]).theta, rtol=1e-4, atol=1e-5)


def test_only_what_changed_is_in_the_changes(tmp_path):
    _, arrays, solver = solver_of(tmp_path)
    assert not len(solver.since_published().arms)
    one = live_sums.select(sums_of(7), np.array([4]))
    solver.solve({WINDOWS[2]: one}, one.arms)
    assert solver.since_published().arms.tolist() == solver.since_published().covariance_arms.tolist() == [4]
    solver.publish()
    other = live_sums.add(one, live_sums.select(sums_of(8), np.array([1])))
    solver.solve({WINDOWS[2]: other}, np.array([1]))
    delta, snapshot = solver.since_published(), solver.since_base()
    assert (delta.arms.tolist(), snapshot.arms.tolist()) == ([1], [1, 4])
    solver.solve({}, np.array([1, 4]))  # the window was left out: the base is back
    back = arrays.changed(solver.since_base())
    np.testing.assert_allclose(back.theta, arrays.theta, rtol=1e-5, atol=1e-6)


def test_an_arm_beyond_the_exact_range_stays_the_bases(tmp_path):
    _, _, solver = solver_of(tmp_path)
    observation = np.full((1, DIM), 3000, np.float32)
    sums = live_sums.of_interactions(observation, np.array([2]), np.ones(1, np.float32))
    solver.solve({WINDOWS[2]: sums}, sums.arms)
    np.testing.assert_allclose(solver.since_base().theta, np.zeros((0, DIM)), atol=1e-5)
