import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.policies.policy_saver import PolicySaver
from tf_agents.specs import BoundedTensorSpec
from tf_agents.trajectories import PolicyStep, restart, time_step_spec

from contracts import policy_arrays
from contracts.policies import LINEAR_NAME, SAVED_MODEL_NAME, Exploration, PolicyCard
from contracts.policy_arrays import PolicyArrays, Scorer
from tests.linear_agents import linear_agent
from trainer import agents, saved_model
from trainer.linear import SufficientStatistics, disjoint, shared

NUM_ACTIONS, DIM, TIKHONOV, ALPHA = 7, 4, 0.1, 0.5


@pytest.fixture(scope="module")
def statistics():
    rng = np.random.default_rng(0)
    statistics = SufficientStatistics.zeros(NUM_ACTIONS, DIM)
    action = rng.integers(0, NUM_ACTIONS - 1, 300)  # the last action has never been tried
    observation = rng.normal(size=(300, DIM)).astype(np.float32)
    taste = rng.normal(size=(NUM_ACTIONS, DIM))
    reward = np.einsum("nd,nd->n", observation, taste[action]) + rng.normal(size=300)
    statistics.add(observation, action, reward.astype(np.float32))
    return statistics


def write(folder, statistics, algorithm):
    """The policy's arrays and SavedModel. Returns the arrays."""
    arrays = PolicyArrays.linear(*disjoint(statistics, TIKHONOV), statistics.n)
    policy_arrays.write(folder, arrays)
    saved_model.save(folder / SAVED_MODEL_NAME, arrays, card(algorithm, statistics))
    return arrays


def card(algorithm, statistics, **exploration):
    return PolicyCard(
        version="v1",
        parent=None,
        algorithm=algorithm,
        hyperparameters={},
        observation_dim=statistics.observation_dim,
        num_actions=statistics.num_actions,
        catalogue=[],
        trained_on=[],
        exploration=Exploration(alpha=ALPHA, **exploration),
    )


@pytest.fixture(scope="module")
def parts(statistics, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    write(folder, statistics, "lin_ucb")
    return folder


def contexts(count):
    return np.random.default_rng(3).normal(size=(count, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def saved_by_tf_agents(statistics, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy_saver")
    agent = linear_agent(statistics, TIKHONOV, ALPHA)
    PolicySaver(agent.policy).save(str(folder))
    return tf.saved_model.load(str(folder))


def test_the_saved_model_acts_as_the_one_policy_saver_writes(parts, saved_by_tf_agents):
    ours = tf.saved_model.load(str(parts / SAVED_MODEL_NAME))
    steps = restart(tf.constant(contexts(2000)), batch_size=2000)
    expected = saved_by_tf_agents.action(steps, ()).action
    chosen = ours.action(steps, ())
    assert chosen._fields == PolicyStep._fields and chosen.action.dtype == tf.int32
    np.testing.assert_array_equal(chosen.action, expected)
    np.testing.assert_array_equal(ours.action(steps).action, expected)
    assert len(np.unique(expected)) > 4 and NUM_ACTIONS - 1 in expected.numpy()
    assert ours.get_initial_state(batch_size=3) == saved_by_tf_agents.get_initial_state(batch_size=3) == ()


def test_the_signatures_are_those_of_policy_saver(parts, saved_by_tf_agents):
    ours = tf.saved_model.load(str(parts / SAVED_MODEL_NAME))
    for name in ("action", "get_initial_state"):
        expected, found = saved_by_tf_agents.signatures[name], ours.signatures[name]
        assert found.structured_input_signature == expected.structured_input_signature
        assert found.structured_outputs == expected.structured_outputs
    flat = {
        "0/step_type": tf.zeros(5, tf.int32),
        "0/reward": tf.zeros(5),
        "0/discount": tf.ones(5),
        "0/observation": tf.constant(contexts(5)),
    }
    actions = [model.signatures["action"](**flat)["action"] for model in (ours, saved_by_tf_agents)]
    np.testing.assert_array_equal(*actions)


def test_the_saved_model_serves_without_tf_agents(parts, saved_by_tf_agents, tmp_path):
    np.save(tmp_path / "contexts.npy", contexts(200))
    program = """if True:
        import sys
        import numpy as np, tensorflow as tf
        folder, contexts, actions = sys.argv[1:]
        x = tf.constant(np.load(contexts))
        policy = tf.saved_model.load(folder)
        n = len(x)
        step = {"0/step_type": tf.zeros(n, tf.int32), "0/reward": tf.zeros(n), "0/discount": tf.ones(n)}
        np.save(actions, policy.signatures["action"](**step, **{"0/observation": x})["action"].numpy())
        assert "tf_agents" not in sys.modules
    """
    arguments = [parts / SAVED_MODEL_NAME, tmp_path / "contexts.npy", tmp_path / "actions.npy"]
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True, capture_output=True)
    steps = restart(tf.constant(contexts(200)), batch_size=200)
    np.testing.assert_array_equal(np.load(tmp_path / "actions.npy"), saved_by_tf_agents.action(steps, ()).action)


def test_the_numpy_form_acts_the_same(parts, statistics, saved_by_tf_agents):
    with np.load(parts / LINEAR_NAME) as arrays:
        theta, covariance, num_samples = arrays["theta"], arrays["covariance"], arrays["num_samples"]
    assert theta.dtype == covariance.dtype == np.float32
    np.testing.assert_array_equal(num_samples, statistics.n)
    x = contexts(2000)
    bound = x @ theta.T + ALPHA * np.sqrt(np.einsum("nd,kde,ne->nk", x, covariance, x))
    steps = restart(tf.constant(x), batch_size=2000)
    np.testing.assert_array_equal(bound.argmax(axis=1), saved_by_tf_agents.action(steps, ()).action)


def test_it_is_saved_at_any_number_of_actions(tmp_path):
    wide = SufficientStatistics.zeros(1682, 20)
    write(tmp_path, wide, "lin_ucb")
    policy = tf.saved_model.load(str(tmp_path / SAVED_MODEL_NAME))
    steps = restart(tf.zeros([3, 20]), batch_size=3)
    assert policy.action(steps).action.shape == [3]


def network(has_covariance):
    rng = np.random.default_rng(5)

    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)

    half = array(NUM_ACTIONS, 6, 6)
    return PolicyArrays(
        [(array(DIM, 5), array(5)), (array(5, 6), array(6))],
        array(NUM_ACTIONS, 6),
        array(NUM_ACTIONS),
        half @ half.transpose(0, 2, 1) if has_covariance else None,
        np.ones(NUM_ACTIONS, np.float32),
    )


@pytest.mark.parametrize("kind", ["linear", "network", "network with covariance"])
@pytest.mark.parametrize("algorithm", sorted(agents.DEFAULTS))
def test_it_scores_as_the_numpy_form_for_every_algorithm(statistics, tmp_path, kind, algorithm):
    linear = PolicyArrays.linear(*disjoint(statistics, TIKHONOV), statistics.n)
    arrays = linear if kind == "linear" else network(kind.endswith("covariance"))
    saved_model.save(tmp_path, arrays, card(algorithm, statistics))
    loaded = tf.saved_model.load(str(tmp_path))
    scores = loaded.signatures["scores"](observation=tf.constant(contexts(100)))
    for name, expected in zip(("mean", "std"), Scorer(arrays).scores(contexts(100)), strict=True):
        np.testing.assert_allclose(scores[name], expected, rtol=1e-4, atol=1e-4)
    assert (expected > 0).all() == (arrays.covariance is not None)
    assert loaded.action(restart(tf.constant(contexts(100)), batch_size=100)).action.shape == [100]


def test_an_unknown_algorithm_is_not_taken_for_greedy(statistics, tmp_path):
    arrays = PolicyArrays.linear(*disjoint(statistics, TIKHONOV), statistics.n)
    with pytest.raises(ValueError, match="algorithm 'oracle'"):
        saved_model.save(tmp_path, arrays, card("oracle", statistics))


@pytest.mark.parametrize("algorithm", ["lin_ts", "greedy"])
def test_other_linear_policies_act_as_tf_agents_do(statistics, tmp_path, algorithm):
    arrays = write(tmp_path, statistics, algorithm)
    ours = tf.saved_model.load(str(tmp_path / SAVED_MODEL_NAME))
    theirs = linear_agent(statistics, TIKHONOV, ALPHA, algorithm).policy
    steps = restart(tf.constant(contexts(2000)), batch_size=2000)
    scores = ours.signatures["scores"](observation=steps.observation)
    mean, std = scores["mean"].numpy(), scores["std"].numpy()
    for found, expected in zip((mean, std), Scorer(arrays).scores(contexts(2000)), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    if algorithm == "greedy":
        np.testing.assert_array_equal(ours.action(steps).action, theirs.action(steps).action)
        np.testing.assert_array_equal(ours.action(steps).action, mean.argmax(axis=1))
    else:  # each samples: how often each action is taken is the same
        draws = [
            [np.bincount(policy.action(steps, ()).action, minlength=7) for _ in range(10)] for policy in (ours, theirs)
        ]
        shares = np.sum(draws, axis=1) / 20_000
        np.testing.assert_allclose(shares[0], shares[1], atol=0.015)
        assert (shares > 0.02).sum() > 4


def test_the_shared_model_is_tf_agents_lin_ucb_over_arm_features():
    """Given the products of observation and arm features as each arm's features, TF-Agents' own model says the same."""
    from tf_agents.bandits.agents.lin_ucb_agent import LinearUCBAgent
    from tf_agents.bandits.specs.utils import create_per_arm_observation_spec

    rng = np.random.default_rng(2)
    features, size = rng.normal(size=(5, 3)), DIM * 3
    statistics = SufficientStatistics.zeros(5, DIM)
    observation, action, reward = rng.normal(size=(200, DIM)), rng.integers(0, 5, 200), rng.normal(size=200)
    statistics.add(observation, action, reward)
    agent = LinearUCBAgent(
        time_step_spec=time_step_spec(create_per_arm_observation_spec(1, size, 5)),
        action_spec=BoundedTensorSpec((), tf.int32, minimum=0, maximum=4),
        alpha=ALPHA,
        tikhonov_weight=0.5,
        accepts_per_arm_features=True,
        dtype=tf.float64,
    )
    crossed = np.einsum("nd,nf->ndf", observation, features[action]).reshape(200, size)
    agent.cov_matrix[0].assign(np.pad(crossed.T @ crossed, (1, 0)))  # the global feature is always 0
    agent.data_vector[0].assign(np.pad(crossed.T @ reward, (1, 0)))
    x = rng.normal(size=(500, DIM))
    arms = np.einsum("nd,kf->nkdf", x, features).reshape(500, 5, size).astype(np.float32)
    steps = restart({"global": tf.zeros([500, 1]), "per_arm": tf.constant(arms)}, batch_size=500)
    mean, std = Scorer(PolicyArrays.linear(*shared(statistics, 0.5, features), statistics.n)).scores(x)
    np.testing.assert_array_equal(agent.policy.action(steps).action, (mean + ALPHA * std).argmax(axis=1))
