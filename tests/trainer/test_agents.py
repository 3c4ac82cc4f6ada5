import numpy as np
import pytest
import tensorflow as tf
from tf_agents.trajectories import PolicyStep, StepType, Trajectory, restart

from contracts.errors import InputError
from tests.linear_agents import linear_agent
from trainer import agents
from trainer.linear import SufficientStatistics, disjoint

NUM_ACTIONS, DIM = 6, 4


def interactions(count, seed=0):
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(count, DIM)).astype(np.float32)
    action = rng.integers(0, NUM_ACTIONS, count).astype(np.int32)
    reward = (np.cos(action) * observation[:, 0] + observation[:, 1] + rng.normal(size=count)).astype(np.float32)
    return observation, action, reward


def bandit_trajectory(policy_info, observation, action, reward):
    """What TF-Agents' bandit agents train on: [B, 1, ...]."""
    shape = [len(action), 1]
    return Trajectory(
        step_type=tf.fill(shape, StepType.FIRST),
        observation=tf.constant(observation[:, np.newaxis]),
        action=tf.constant(action[:, np.newaxis]),
        policy_info=policy_info,
        next_step_type=tf.fill(shape, StepType.LAST),
        reward=tf.constant(reward[:, np.newaxis]),
        discount=tf.zeros(shape),
    )


def test_lin_ucb_learns_what_tf_agents_train_does():
    observation, action, reward = interactions(400)
    statistics = SufficientStatistics.zeros(NUM_ACTIONS, DIM)
    statistics.add(observation, action, reward)
    ours = linear_agent(statistics, tikhonov=0.1, alpha=0.5)
    theirs = linear_agent(SufficientStatistics.zeros(NUM_ACTIONS, DIM), tikhonov=0.1, alpha=0.5)
    for batch in range(0, 400, 100):
        rows = slice(batch, batch + 100)
        theirs.train(bandit_trajectory(theirs.policy.info_spec, observation[rows], action[rows], reward[rows]))
    for k in range(NUM_ACTIONS):
        np.testing.assert_allclose(ours.cov_matrix[k], theirs.cov_matrix[k], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(ours.data_vector[k], theirs.data_vector[k], rtol=1e-5, atol=1e-4)
        assert ours.num_samples[k].numpy() == theirs.num_samples[k].numpy() == np.count_nonzero(action == k)
    np.testing.assert_allclose(disjoint(statistics, 0.1).theta, theirs.theta, atol=1e-5)
    contexts = np.random.default_rng(2).normal(size=(500, DIM)).astype(np.float32)
    steps = restart(tf.constant(contexts), batch_size=500)
    chosen = ours.policy.action(steps)
    assert isinstance(chosen, PolicyStep)
    np.testing.assert_array_equal(chosen.action, theirs.policy.action(steps).action)
    assert len(np.unique(chosen.action)) > 1


WRONG = {
    "unknown algorithm": ("ucb1", {}, r"algorithm must be one of .*lin_ucb.*, got 'ucb1'"),
    "unknown hyperparameter": ("lin_ucb", {"gamma": 0.9}, r"lin_ucb has no hyperparameter 'gamma': it has .*tikhonov"),
    "not above 0": ("lin_ucb", {"tikhonov": 0.0}, "tikhonov must be a number above 0, got 0.0"),
    "not a number": ("lin_ucb", {"tikhonov": "much"}, "tikhonov must be a number above 0, got 'much'"),
    "not finite": ("lin_ucb", {"tikhonov": float("nan")}, "tikhonov must be a number above 0, got nan"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_refused(case):
    algorithm, hyperparameters, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        agents.complete(algorithm, hyperparameters)


def test_what_is_not_given_takes_the_default():
    assert agents.complete("lin_ucb", {}) == agents.DEFAULTS["lin_ucb"]
    assert agents.complete("lin_ucb", {"tikhonov": 2})["tikhonov"] == 2.0
