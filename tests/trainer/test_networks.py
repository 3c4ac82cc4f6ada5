import numpy as np
import pytest
import tensorflow as tf

from contracts.policies import Exploration
from contracts.policy_arrays import Scorer
from trainer import agents, networks

NUM_ACTIONS, DIM = 4, 3


def build(algorithm="neural_epsilon_greedy", **hyperparameters):
    tf.random.set_seed(3)
    given = agents.complete(algorithm, {"layers": "16,8"} | hyperparameters)
    return networks.build(algorithm, DIM, NUM_ACTIONS, given, Exploration())


def scores(network, observations):
    return Scorer(network.arrays(np.zeros(NUM_ACTIONS))).means(observations)


@pytest.mark.parametrize("layers", ["8", "16,8", "8,8,8"])
def test_the_arrays_compute_what_the_network_does(layers):
    network = build(layers=layers)
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 20.0, (500, DIM)).astype(np.float32)
    network.standardise([x[:200], x[200:]])
    for variable in (*network.layers, *network.output):
        variable.assign(rng.normal(size=variable.shape))
    expected, _ = network.agent._reward_network((x - network.moments[0]) / network.moments[1])
    np.testing.assert_allclose(scores(network, x), expected, rtol=1e-4, atol=1e-3)


def test_the_moments_are_those_of_all_parts_and_a_constant_stays_finite():
    network = build()
    x = np.random.default_rng(0).normal(5.0, 2.0, (300, DIM)).astype(np.float32)
    x[:, 2] = 1.0
    network.standardise([x[:10], x[10:]])
    np.testing.assert_allclose(network.moments[0], x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(network.moments[1], [*x[:, :2].std(axis=0), 1.0], rtol=1e-4)
    before = build()
    before.standardise([])
    np.testing.assert_array_equal(before.moments[1], np.ones(DIM))


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-3, 5.0), (1e4, -1e5)])
def test_linear_tastes_are_learned_whatever_the_unit_of_the_observation(scale, shift):
    network = build(learning_rate=0.01)
    rng = np.random.default_rng(1)
    x, tastes = rng.normal(size=(2000, DIM)), rng.normal(size=(NUM_ACTIONS, DIM))
    action = rng.integers(0, NUM_ACTIONS, 2000).astype(np.int32)
    reward = (x @ tastes.T)[np.arange(2000), action].astype(np.float32)
    observed = (scale * x + shift).astype(np.float32)
    network.standardise([observed])
    for _ in range(300):
        rows = rng.integers(0, 2000, 256)
        network.step(observed[rows], action[rows], reward[rows])
    error = scores(network, observed) - x @ tastes.T
    assert np.mean(error**2) < 0.05 * np.mean((x @ tastes.T) ** 2)


def test_an_unknown_algorithm_does_not_become_epsilon_greedy():
    hyperparameters = agents.complete("neural_epsilon_greedy", {})
    with pytest.raises(ValueError, match="algorithm 'oracle'"):
        networks.build("oracle", DIM, NUM_ACTIONS, hyperparameters, Exploration())
