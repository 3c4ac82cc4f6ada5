import numpy as np
import pytest

from trainer import linear
from trainer.linear import SufficientStatistics, disjoint


def interactions(count, num_actions, observation_dim, seed=0):
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(count, observation_dim)).astype(np.float32)
    return observation, rng.integers(0, num_actions, count).astype(np.int32), rng.normal(size=count).astype(np.float32)


def test_statistics_are_the_sums_of_the_definition():
    observation, action, reward = interactions(300, 4, 3)
    action[action == 2] = 1  # an action that never occurs
    statistics = SufficientStatistics.zeros(4, 3)
    statistics.add(observation, action, reward)
    a, b, n = np.zeros((4, 3, 3)), np.zeros((4, 3)), np.zeros(4)
    for x, k, r in zip(observation.astype(np.float64), action, reward.astype(np.float64), strict=True):
        a[k] += np.outer(x, x)
        b[k] += r * x
        n[k] += 1
    np.testing.assert_allclose(statistics.a, a, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(statistics.b, b, rtol=1e-12, atol=1e-12)
    assert statistics.n.tolist() == n.tolist()
    assert statistics.n[2] == 0 and statistics.n.sum() == 300


@pytest.mark.parametrize("split", [1, 500, 999])
def test_batches_and_merged_parts_give_the_numbers_of_one_pass(split):
    observation, action, reward = interactions(1000, 5, 6)
    whole, batches, parts = (SufficientStatistics.zeros(5, 6) for _ in range(3))
    other = SufficientStatistics.zeros(5, 6)
    whole.add(observation, action, reward)
    for part, target in ((slice(split), parts), (slice(split, None), other)):
        batches.add(observation[part], action[part], reward[part])
        target.add(observation[part], action[part], reward[part])
    parts.merge(other)
    for other_way in (batches, parts):
        np.testing.assert_allclose(other_way.a, whole.a, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(disjoint(other_way, 0.1).theta, disjoint(whole, 0.1).theta, rtol=1e-10)
        assert other_way.n.tolist() == whole.n.tolist()


def test_theta_finds_the_coefficients_and_covariance_shrinks_with_evidence():
    truth = np.random.default_rng(1).normal(size=(3, 4))
    observation, action, _ = interactions(6000, 3, 4)
    reward = np.einsum("nd,nd->n", observation, truth[action])
    statistics = SufficientStatistics.zeros(3, 4)
    statistics.add(observation, action, reward)
    np.testing.assert_allclose(disjoint(statistics, 1e-6).theta, truth, atol=1e-5)
    assert np.trace(disjoint(statistics, 1.0).covariance[0]) < 4 / 1000
    empty = SufficientStatistics.zeros(3, 4)
    np.testing.assert_allclose(disjoint(empty, 0.5).covariance[1], np.eye(4) / 0.5)
    assert not disjoint(empty, 0.5).theta.any()


def brute_force(statistics_of, observation, action, reward, tikhonov, features, arm_tikhonov=None):
    """theta and covariance [K, D(, D)] of every action by one big ridge regression."""
    num_actions, dim = statistics_of.num_actions, statistics_of.observation_dim
    crossed = np.einsum("nd,nf->ndf", observation, features[action]).reshape(len(action), -1)
    shared_size = crossed.shape[1]
    own = np.zeros((len(action), num_actions * dim))
    for row, k in enumerate(action):
        own[row, k * dim : (k + 1) * dim] = observation[row]
    columns = crossed if arm_tikhonov is None else np.concatenate([crossed, own], axis=1)
    ridge = np.concatenate([np.full(shared_size, tikhonov), np.full(columns.shape[1] - shared_size, arm_tikhonov or 0)])
    covariance = np.linalg.inv(columns.T @ columns + np.diag(ridge))
    mean = covariance @ columns.T @ reward
    thetas, covariances = [], []
    for k in range(num_actions):
        maps = np.zeros((dim, columns.shape[1]))
        maps[:, :shared_size] = np.kron(np.eye(dim), features[k])
        if arm_tikhonov is not None:
            maps[:, shared_size + k * dim : shared_size + (k + 1) * dim] = np.eye(dim)
        thetas.append(maps @ mean)
        covariances.append(maps @ covariance @ maps.T)
    return np.array(thetas), np.array(covariances)


@pytest.mark.parametrize("model", ["shared", "hybrid"])
def test_models_over_arm_features_are_the_regression_on_the_products(model):
    observation, action, reward = interactions(200, 5, 3)  # of 6 actions: the last has never been tried
    features = np.random.default_rng(4).normal(size=(6, 4))
    statistics = SufficientStatistics.zeros(6, 3)
    statistics.add(observation, action, reward)
    found = linear.posterior(statistics, model, 0.7, 1.3, features)
    theta, covariance = brute_force(
        statistics,
        observation.astype(float),
        action,
        reward.astype(float),
        0.7,
        features,
        1.3 if model == "hybrid" else None,
    )
    np.testing.assert_allclose(found.theta, theta, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9, atol=1e-12)
    assert np.abs(found.theta[5]).max() > 0.01  # something is known of it all the same


def test_the_hybrid_lies_between_the_shared_model_and_the_disjoint_ones():
    observation, action, reward = interactions(500, 4, 3)
    features = np.random.default_rng(4).normal(size=(4, 2))
    statistics = SufficientStatistics.zeros(4, 3)
    statistics.add(observation, action, reward)
    nearly_shared = linear.hybrid(statistics, 0.5, 1e7, features)
    nearly_disjoint = linear.hybrid(statistics, 1e9, 0.5, features)
    np.testing.assert_allclose(nearly_shared.theta, linear.shared(statistics, 0.5, features).theta, atol=1e-4)
    np.testing.assert_allclose(nearly_disjoint.theta, disjoint(statistics, 0.5).theta, atol=1e-4)
    np.testing.assert_allclose(nearly_disjoint.covariance, disjoint(statistics, 0.5).covariance, atol=1e-4)


def test_what_is_scaled_counts_less_and_actions_can_be_added():
    observation, action, reward = interactions(300, 4, 3)
    whole, halved, weighted = (SufficientStatistics.zeros(4, 3) for _ in range(3))
    whole.add(observation, action, reward)
    halved.add(observation, action, reward)
    halved.scale(0.5)
    weighted.add(observation, action, reward, weight=0.5)
    for other in (halved, weighted):
        np.testing.assert_allclose(other.a, whole.a / 2)
        np.testing.assert_allclose(other.b, whole.b / 2)
        np.testing.assert_allclose(other.n, whole.n / 2)
    grown = whole.grown(6)
    np.testing.assert_array_equal(grown.a[:4], whole.a)
    assert (grown.num_actions, grown.observation_dim) == (6, 3) and not grown.a[4:].any() and not grown.n[4:].any()


def test_an_unknown_model_does_not_become_disjoint():
    with pytest.raises(ValueError, match="model must be none, shared or hybrid, got 'some'"):
        linear.posterior(SufficientStatistics.zeros(2, 3), "some", 0.1, 2.0, np.ones((2, 1)))
