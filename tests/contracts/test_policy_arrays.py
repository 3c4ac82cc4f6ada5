import itertools

import numpy as np
import pytest

from contracts import policies, policy_arrays
from contracts.errors import InputError
from contracts.policies import Exploration, PolicyCard
from contracts.policy_arrays import PolicyArrays, Scorer

K, D = 6, 4


def linear(seed=0):
    random = np.random.default_rng(seed)
    half = random.normal(size=(K, D, D))
    covariance = half @ half.transpose(0, 2, 1) + 0.1 * np.eye(D)
    return PolicyArrays.linear(random.normal(size=(K, D)), covariance, np.arange(K, dtype=np.float64))


def network(has_covariance=True, seed=3):
    random = np.random.default_rng(seed)
    sizes = (D, 7, 5)
    layers = [
        (random.normal(size=(i, o)).astype(np.float32), random.normal(size=o).astype(np.float32))
        for i, o in itertools.pairwise(sizes)
    ]
    half = random.normal(size=(K, 5, 5))
    covariance = (half @ half.transpose(0, 2, 1) + 0.1 * np.eye(5)).astype(np.float32) if has_covariance else None
    theta, bias = random.normal(size=(K, 5)).astype(np.float32), random.normal(size=K).astype(np.float32)
    return PolicyArrays(layers, theta, bias, covariance, np.ones(K, np.float32))


KINDS = {"linear": linear, "network": lambda: network(False), "network with covariance": network}


def card(**changes):
    fields = {"version": "v1", "parent": None, "algorithm": "lin_ucb", "hyperparameters": {}, "catalogue": []}
    shape = {"observation_dim": D, "num_actions": K}
    return PolicyCard(**fields | shape | {"trained_on": [], "exploration": Exploration()} | changes)


def observations(count):
    return np.random.default_rng(1).normal(size=(count, D)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_bit_for_bit(kind, tmp_path):
    arrays = KINDS[kind]()
    assert not policy_arrays.exist(tmp_path)
    policy_arrays.write(tmp_path, arrays)
    assert policy_arrays.exist(tmp_path)
    name = policies.LINEAR_NAME if kind == "linear" else policies.NETWORK_NAME
    assert [path.name for path in tmp_path.iterdir()] == [name]
    read = policy_arrays.read(tmp_path, card())
    for found, expected in zip(read[1:], arrays[1:], strict=True):
        np.testing.assert_array_equal(found, expected)
    for found, expected in zip(sum(read.layers, ()), sum(arrays.layers, ()), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_formula(kind):
    arrays = KINDS[kind]()
    mean, std = Scorer(arrays).scores(observations(21))
    assert mean.dtype == std.dtype == np.float64
    for row, x in enumerate(observations(21).astype(float)):
        e = x
        for weights, bias in arrays.layers:
            e = np.maximum(e @ weights.astype(float) + bias.astype(float), 0)
        np.testing.assert_allclose(mean[row], arrays.theta.astype(float) @ e + arrays.bias, rtol=1e-9, atol=1e-12)
        if arrays.covariance is None:
            assert (std[row] == 0).all()
        else:
            variance = np.einsum("d,kde,e->k", e, arrays.covariance.astype(float), e)
            np.testing.assert_allclose(std[row], np.sqrt(variance), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_scores_to_the_last_bit_in_every_batch(kind):
    scorer = Scorer(KINDS[kind]())
    whole = scorer.scores(observations(100))
    np.testing.assert_array_equal(scorer.means(observations(100)), whole[0])
    for first, last in ((0, 1), (3, 12), (99, 100), (0, 8)):
        for found, expected in zip(scorer.scores(observations(100)[first:last]), whole, strict=True):
            np.testing.assert_array_equal(found, expected[first:last])
    mean, std = scorer.scores(observations(0))
    assert mean.shape == std.shape == (0, K)


def test_the_encoding_of_an_observation_is_what_the_output_is_linear_in():
    arrays = network()
    encoded = Scorer(arrays).encode(observations(9))
    assert encoded.shape == (9, 5) and (encoded >= 0).all() and (encoded > 0).any()
    np.testing.assert_allclose(encoded @ arrays.theta.T + arrays.bias, Scorer(arrays).means(observations(9)))
    np.testing.assert_array_equal(Scorer(linear()).encode(observations(9)), observations(9))


def test_a_posterior_replaces_the_output_and_keeps_the_layers():
    arrays, posterior = network(False), linear()
    changed = arrays.with_posterior(np.ones((K, 5)), np.tile(np.eye(5), (K, 1, 1)))
    assert changed.layers is arrays.layers and changed.theta.dtype == changed.covariance.dtype == np.float32
    _, std = Scorer(changed).scores(observations(3))
    np.testing.assert_allclose(std[:, 0], np.linalg.norm(Scorer(arrays).encode(observations(3)), axis=1))
    assert posterior.bias.shape == (K,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"theta": np.full((K, D), 1e39)}, "theta must be finite numbers"),
        ({"covariance": np.full((K, D, D), np.inf)}, "covariance must be finite numbers"),
        ({"num_samples": np.full(K, np.nan)}, "num_samples must be finite numbers"),
        ({"covariance": np.zeros((K, D, D))}, "covariance must have a positive diagonal"),
    ],
)
def test_what_the_reader_would_refuse_is_not_written(changes, message, tmp_path):
    arrays = linear()
    given = {"theta": arrays.theta, "covariance": arrays.covariance, "num_samples": arrays.num_samples} | changes
    with pytest.raises(InputError, match=rf"^trained policy: {message}: rewards or observations are too large"):
        policy_arrays.write(tmp_path, PolicyArrays.linear(**given))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_actions": 5}, r"theta must have shape \[5, 4\], got \[6, 4\]"),
        ({"observation_dim": 3}, r"theta must have shape \[6, 3\], got \[6, 4\]"),
    ],
)
def test_arrays_of_another_policy_are_refused(other, message, tmp_path):
    policy_arrays.write(tmp_path, linear())
    with pytest.raises(InputError, match=rf"linear.npz: {message}$"):
        policy_arrays.read(tmp_path, card(**other))


def test_a_folder_without_arrays_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"linear.npz: is missing$"):
        policy_arrays.read(tmp_path, card())


def test_a_changed_scorer_scores_as_the_changed_arrays_bit_for_bit():
    random = np.random.default_rng(3)

    def covariances(count):
        half = random.normal(size=(count, 4, 4)).astype(np.float32)
        return (half @ half.transpose(0, 2, 1) + np.eye(4, dtype=np.float32)).astype(np.float32)

    base = PolicyArrays.linear(random.normal(size=(9, 4)), covariances(9), np.ones(9, np.float32))
    changes = policy_arrays.ArmChanges(
        np.array([1, 4], np.int32),
        random.normal(size=(2, 4)).astype(np.float32),
        np.array([5, 6], np.float32),
        np.array([4, 8], np.int32),
        covariances(2)[:, *np.triu_indices(4)],
    )
    observations = random.normal(size=(17, 4))
    scorer = Scorer(base)
    before = scorer(observations)
    changed = base.changed(changes)
    for found, wanted in zip(scorer.changed(changes)(observations), Scorer(changed)(observations), strict=True):
        np.testing.assert_array_equal(found, wanted)
    for found, wanted in zip(scorer(observations), before, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert (changed.num_samples == [1, 5, 1, 1, 6, 1, 1, 1, 1]).all()
    assert (scorer.shape, scorer.estimates_uncertainty) == ((9, 4), True)
