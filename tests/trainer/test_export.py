import errno
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tf_agents.policies.policy_saver import PolicySaver
from tf_agents.specs import BoundedTensorSpec
from tf_agents.trajectories import PolicyStep, restart, time_step_spec

from contracts.errors import InputError
from contracts.policies import (
    CARD_NAME,
    CHECKPOINT_NAME,
    LINEAR_NAME,
    SAVED_MODEL_NAME,
    Exploration,
    PolicyCard,
    encode_json,
)
from trainer import agents, export
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


@pytest.fixture(scope="module")
def parts(statistics, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    model = export.Model.linear(disjoint(statistics, TIKHONOV), statistics.n)
    export.write_model(folder, model, "lin_ucb", Exploration(alpha=ALPHA), DIM)
    export.write_statistics(folder / CHECKPOINT_NAME, statistics)
    return folder


def contexts(count):
    return np.random.default_rng(3).normal(size=(count, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def saved_by_tf_agents(statistics, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy_saver")
    agent = agents.linear_agent(statistics, TIKHONOV, ALPHA)
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
    model = export.Model.linear(disjoint(wide, TIKHONOV), wide.n)
    export.write_model(tmp_path, model, "lin_ucb", Exploration(alpha=ALPHA), 20)
    policy = tf.saved_model.load(str(tmp_path / SAVED_MODEL_NAME))
    steps = restart(tf.zeros([3, 20]), batch_size=3)
    assert policy.action(steps).action.shape == [3]


def test_the_checkpoint_holds_the_statistics_exactly(parts, statistics, tmp_path):
    read = export.read_statistics(parts)
    for name in ("a", "b", "n"):
        np.testing.assert_array_equal(getattr(read, name), getattr(statistics, name))
    (tmp_path / CHECKPOINT_NAME).mkdir()
    (tmp_path / CHECKPOINT_NAME / export.STATISTICS_NAME).write_bytes(b"PK\x03\x04 half of it")
    for missing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="not a checkpoint of a linear policy"):
            export.read_statistics(missing)


def card(version="v1", num_actions=1):
    return PolicyCard(
        version=version,
        parent=None,
        algorithm="lin_ucb",
        hyperparameters={},
        observation_dim=1,
        num_actions=num_actions,
        catalogue=[],
        trained_on=[],
        exploration=Exploration(),
    )


def test_a_policy_is_in_the_store_wholly_or_not_at_all(tmp_path):
    def half(folder):
        (folder / LINEAR_NAME).write_bytes(b"half")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        export.write(tmp_path, card(), half)
    assert list(tmp_path.iterdir()) == []
    assert export.read_card(tmp_path, "v1") is None

    def all_of_it(folder):
        assert folder.name.startswith(".") and not (folder / CARD_NAME).exists()
        whole(folder)

    export.write(tmp_path, card(), all_of_it)
    assert export.read_card(tmp_path, "v1") == card()
    export.write(tmp_path, card(num_actions=2), all_of_it)  # it is there already: kept
    assert export.read_card(tmp_path, "v1") == card()
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def whole(folder):
    (folder / LINEAR_NAME).write_bytes(b"whole")
    (folder / CHECKPOINT_NAME).mkdir()
    (folder / CHECKPOINT_NAME / export.STATISTICS_NAME).write_bytes(b"sums")


KILLED = """if True:
    import os, signal, sys
    from pathlib import Path
    from contracts.policies import decode_card
    from trainer import export

    def half(folder):
        (folder / "linear.npz").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    export.write(Path(sys.argv[1]), decode_card(sys.stdin.buffer.read(), "card"), half)
"""


def test_what_a_killed_training_left_is_in_nobodys_way_and_is_removed(tmp_path, monkeypatch):
    left = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdin=subprocess.PIPE)
    left.communicate(encode_json(card()))
    assert left.returncode == -signal.SIGKILL
    (half,) = tmp_path.iterdir()
    assert half.name.startswith(".v1.") and export.read_card(tmp_path, "v1") is None
    monkeypatch.setattr("os.getpid", lambda: left.pid)  # as in a container that is started again
    export.write(tmp_path, card(), whole)
    assert export.read_card(tmp_path, "v1") == card()
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_two_trainings_of_the_same_inputs_make_one_policy(tmp_path):
    """The one that is done first takes the other's folder for a leftover."""

    def slow(folder):
        whole(folder)
        export.write(tmp_path, card(), whole)
        (folder / LINEAR_NAME).write_bytes(b"whole")  # the folder is gone

    export.write(tmp_path, card(), slow)
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]
    assert (tmp_path / "v1" / LINEAR_NAME).read_bytes() == b"whole"


def test_a_store_that_cannot_be_written_to_is_said_to_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"policies: cannot write to .*file: Not a directory"):
        export.write(tmp_path / "file", card(), whole)


def test_what_is_in_the_way_is_not_touched(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"in the way and has no policy\.json"):
        export.write(tmp_path, card(), lambda folder: None)
    assert (tmp_path / "v1" / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_on_a_mounted_bucket_whose_folders_cannot_be_renamed_the_card_comes_last(tmp_path, monkeypatch):
    rename = Path.rename

    def of_files_alone(path, target):
        if path.is_dir():  # what Cloud Storage FUSE does
            raise OSError(errno.EMFILE, "Too many open files")
        return rename(path, target)

    def parts(folder):
        (folder / SAVED_MODEL_NAME).mkdir()
        (folder / SAVED_MODEL_NAME / "saved_model.pb").write_bytes(b"graph")
        (folder / LINEAR_NAME).write_bytes(b"whole")

    monkeypatch.setattr(Path, "rename", of_files_alone)
    copyfile = shutil.copyfile

    def killed_before_the_card(source, target, **named):
        if Path(source).name == CARD_NAME:
            raise KeyboardInterrupt
        return copyfile(source, target, **named)

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(shutil, "copyfile", killed_before_the_card)
        export.write(tmp_path, card(), parts)
    assert export.read_card(tmp_path, "v1") is None  # no policy yet, whatever is there of it
    for _ in range(2):
        export.write(tmp_path, card(), parts)
        assert export.read_card(tmp_path, "v1") == card()
        assert (tmp_path / "v1" / SAVED_MODEL_NAME / "saved_model.pb").read_bytes() == b"graph"
        assert (tmp_path / "v1" / LINEAR_NAME).read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


@pytest.mark.parametrize("algorithm", ["lin_ts", "greedy"])
def test_other_linear_policies_act_as_tf_agents_do(statistics, tmp_path, algorithm):
    model = export.Model.linear(disjoint(statistics, TIKHONOV), statistics.n)
    export.write_model(tmp_path, model, algorithm, Exploration(alpha=ALPHA), DIM)
    ours = tf.saved_model.load(str(tmp_path / SAVED_MODEL_NAME))
    theirs = agents.linear_agent(statistics, TIKHONOV, ALPHA, algorithm).policy
    steps = restart(tf.constant(contexts(2000)), batch_size=2000)
    scores = ours.signatures["scores"](observation=steps.observation)
    mean, std = scores["mean"].numpy(), scores["std"].numpy()
    for found, expected in zip((mean, std), model.scores(contexts(2000)), strict=True):
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
    mean, std = export.Model.linear(shared(statistics, 0.5, features), statistics.n).scores(x)
    np.testing.assert_array_equal(agent.policy.action(steps).action, (mean + ALPHA * std).argmax(axis=1))
