import shutil
import uuid
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest
import tensorflow as tf
from tf_agents.trajectories import restart

from contracts import policy_arrays
from contracts.errors import InputError
from contracts.items import Item
from contracts.policies import CHECKPOINT_NAME, NETWORK_NAME, SAVED_MODEL_NAME, Exploration
from contracts.policy_arrays import Scorer
from contracts.trajectories import TrajectoryBatch
from predictor import exploration as explorers
from predictor import policy as serving
from tests.windows import consecutive_windows, write_window
from trainer import agents, checkpoint, networks, neural, training
from trainer.contexts import Reader

NUM_ACTIONS, DIM = 4, 3
WINDOWS = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 3)
NEURAL = ("neural_epsilon_greedy", "neural_boltzmann", "neural_linucb")
SMALL = {"layers": "16,8", "batch_size": 128, "epochs": 6, "learning_rate": 0.01}


def trajectories(count, seed=0):
    """Rewards that no linear model fits: each action is right where the observation's length is near its own."""
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(count, DIM)).astype(np.float32)
    action = rng.integers(0, NUM_ACTIONS, count).astype(np.int32)
    reward = -np.abs(np.linalg.norm(observation, axis=1) - action) + 0.1 * rng.normal(size=count)
    return TrajectoryBatch(
        observation=observation,
        action=action,
        reward=reward.astype(np.float32),
        propensity=np.full(count, 1 / NUM_ACTIONS, np.float32),
        defaulted=np.zeros(count, bool),
    )


def settings(folder, algorithm, **changes):
    return training.Settings(
        windows=folder / "windows",
        policies=folder / "policies",
        num_actions=NUM_ACTIONS,
        catalogue=[Item(action=k, item_id=str(k)) for k in range(NUM_ACTIONS)],
        algorithm=algorithm,
        hyperparameters=SMALL | changes,
        exploration=Exploration(strategy=agents.EXPLORATION[algorithm], alpha=0.7, epsilon=0.2, temperature=0.5),
    )


@pytest.fixture(scope="module", params=NEURAL)
def trained(request, tmp_path_factory):
    """Settings, and the policy trained on the first window."""
    folder = tmp_path_factory.mktemp(request.param)
    write_window(folder / "windows", WINDOWS[0], trajectories(3000))
    mine = settings(folder, request.param)
    return mine, training.train(mine)


def arrays_of(mine, card):
    return policy_arrays.read(mine.policies / card.version, card)


def scorer_of(mine, card):
    return Scorer(arrays_of(mine, card))


def network_of(mine, card):
    """TF-Agents' own agent, with what the policy's checkpoint holds."""
    network = networks.build(card.algorithm, DIM, NUM_ACTIONS, card.hyperparameters, card.exploration)
    folder = mine.policies / card.version
    path = str(folder / CHECKPOINT_NAME / neural.NETWORK_CHECKPOINT)
    network.checkpoint().read(path).assert_existing_objects_matched()
    if card.algorithm == "neural_linucb":
        statistics = checkpoint.read(folder)
        network.agent.actions_from_reward_layer.assign(False)
        for k in range(NUM_ACTIONS):
            # TF-Agents adds the identity for its ridge.
            ridge = (card.hyperparameters["tikhonov"] - 1) * np.eye(statistics.observation_dim)
            network.agent.cov_matrix[k].assign(statistics.a[k] + ridge)
            network.agent.data_vector[k].assign(statistics.b[k])
    return network


def test_reloaded_it_acts_and_scores_as_the_agent_does(trained):
    mine, card = trained
    folder = mine.policies / card.version
    x = np.random.default_rng(5).normal(size=(1000, DIM)).astype(np.float32)
    saved, scorer = tf.saved_model.load(str(folder / SAVED_MODEL_NAME)), scorer_of(mine, card)
    assert (folder / NETWORK_NAME).is_file()
    mean, std = scorer.scores(x)
    scores = saved.signatures["scores"](observation=tf.constant(x))
    np.testing.assert_allclose(scores["mean"], mean, atol=1e-4)
    np.testing.assert_allclose(scores["std"], std, atol=1e-4)
    assert (std > 0).all() == (card.algorithm == "neural_linucb")

    network = network_of(mine, card)
    agent = network.agent
    steps = restart((x - network.moments[0]) / network.moments[1], batch_size=1000)
    taken = saved.action(restart(tf.constant(x), batch_size=1000)).action.numpy()
    expected = agent.policy.action(steps).action.numpy()
    best = (mean + card.exploration.alpha * std).argmax(axis=1)
    if card.algorithm == "neural_linucb":
        np.testing.assert_array_equal(taken, expected)
        np.testing.assert_array_equal(taken, best)
    elif card.algorithm == "neural_epsilon_greedy":
        # Each explores 20% of the time, a quarter of which it takes the best all the same.
        for actions in (taken, expected):
            assert np.mean(actions == best) == pytest.approx(1 - 0.2 * 3 / 4, abs=0.05)
    else:
        logits = mean / card.exploration.temperature
        softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax /= softmax.sum(axis=1, keepdims=True)
        for actions in (taken, expected):
            shares = np.bincount(actions, minlength=NUM_ACTIONS) / 1000
            np.testing.assert_allclose(shares, softmax.mean(axis=0), atol=0.06)
        distribution = agent.policy.distribution(steps).action.probs_parameter().numpy()
        np.testing.assert_allclose(distribution, softmax, atol=1e-4)


def test_it_learns_what_a_linear_policy_cannot(trained, tmp_path):
    mine, card = trained
    in_another_store = msgspec.structs.replace(mine, algorithm="lin_ucb", hyperparameters={}, policies=tmp_path)
    linear = training.train(in_another_store)
    fresh = trajectories(2000, seed=9)
    rows = np.arange(2000)

    def error(settings, card):
        mean = scorer_of(settings, card).means(fresh.observation)
        return np.mean((mean[rows, fresh.action] - fresh.reward) ** 2)

    assert error(mine, card) < 0.5 * error(in_another_store, linear)


def test_the_next_window_continues_from_the_checkpoint(trained, tmp_path):
    mine, card = trained
    mine = msgspec.structs.replace(mine, windows=tmp_path, parent=card.version)
    write_window(tmp_path, WINDOWS[0], trajectories(3000))
    write_window(tmp_path, WINDOWS[1], trajectories(600, seed=1))
    after = training.train(mine)
    before, now = (arrays_of(mine, one) for one in (card, after))
    assert now.num_samples.sum() == 3600
    same = [np.array_equal(*pair) for pair in zip(before.layers[0], now.layers[0], strict=True)]
    fresh = trajectories(2000, seed=9)
    errors = [
        np.mean((Scorer(arrays).means(fresh.observation)[np.arange(2000), fresh.action] - fresh.reward) ** 2)
        for arrays in (before, now)
    ]
    if card.algorithm == "neural_linucb":
        assert all(same)  # the encoder is fixed, and the statistics go on
    assert errors[1] < 1.2 * errors[0]  # it did not start afresh


def test_the_same_inputs_draw_the_same_network(tmp_path):
    write_window(tmp_path / "windows", WINDOWS[0], trajectories(300))
    mine = settings(tmp_path, "neural_epsilon_greedy", epochs=2)
    models = []
    for store in ("one", "other"):
        again = msgspec.structs.replace(mine, policies=tmp_path / store)
        models.append(arrays_of(again, training.train(again)))
    np.testing.assert_allclose(models[0].theta, models[1].theta, rtol=1e-5, atol=1e-6)


def test_training_stops_when_the_held_out_loss_does_not_fall_and_keeps_the_best():
    hyperparameters = agents.complete(
        "neural_epsilon_greedy", {"epochs": 40, "patience": 2, "learning_rate": 0.05, "layers": "8"}
    )
    tf.random.set_seed(1)
    network = networks.build("neural_epsilon_greedy", DIM, NUM_ACTIONS, hyperparameters, Exploration())
    noise = trajectories(400)._replace(reward=np.random.default_rng(0).normal(size=400).astype(np.float32))
    losses = neural.fit(network, [lambda: iter([noise])], hyperparameters)
    assert len(losses) < 41
    assert len(losses) - 1 - int(np.argmin(losses)) == 2
    rows = np.arange(9, 400, 10)
    mean = Scorer(network.arrays(np.zeros(0))).means(noise.observation[rows])
    kept = np.mean((mean[np.arange(40), noise.action[rows]] - noise.reward[rows]) ** 2)
    assert kept == pytest.approx(min(losses), rel=1e-5)


def test_a_parent_of_other_layers_or_algorithm_is_refused(trained):
    mine, card = trained
    for changes, message in (
        ({"hyperparameters": SMALL | {"layers": "16"}}, "has layers 16,8, asked for 16"),
        ({"algorithm": "lin_ucb", "hyperparameters": {}}, f"is a {card.algorithm} policy, asked for lin_ucb"),
    ):
        with pytest.raises(InputError, match=message):
            training.train(msgspec.structs.replace(mine, parent=card.version, **changes))


def products(count, seed, features):
    """Rewards are products of observation and arm features; the last arm is not tried."""
    batch = trajectories(count, seed)
    action = np.random.default_rng(seed).integers(0, len(features) - 1, count).astype(np.int32)
    reward = np.einsum("nd,nd->n", batch.observation, features[action]) + 0.1 * batch.observation[:, 0]
    return batch._replace(action=action, reward=reward.astype(np.float32))


@pytest.mark.parametrize("algorithm", ["neural_epsilon_greedy", "neural_boltzmann"])
def test_over_arm_features_a_movie_that_nobody_has_seen_is_known_and_movies_can_be_added(tmp_path, algorithm):
    features = np.random.default_rng(3).normal(size=(12, DIM))
    movies = [Item(action=k, item_id=str(k), features=features[k].tolist()) for k in range(12)]
    write_window(tmp_path / "windows", WINDOWS[0], products(4000, 0, features[:11]))
    mine = msgspec.structs.replace(
        settings(tmp_path, algorithm, arm_features="shared", epochs=15), num_actions=11, catalogue=movies[:11]
    )
    card = training.train(mine)
    folder = mine.policies / card.version
    x = np.random.default_rng(5).normal(size=(500, DIM)).astype(np.float32)
    mean = scorer_of(mine, card).means(x)
    truth = x @ features.T
    assert np.corrcoef(mean[:, 10], truth[:, 10])[0, 1] > 0.7  # never tried

    arm_features = np.concatenate([np.ones((11, 1)), features[:11]], axis=1).astype(np.float32)
    network = networks.build(algorithm, DIM, 11, card.hyperparameters, card.exploration, arm_features)
    path = str(folder / CHECKPOINT_NAME / neural.NETWORK_CHECKPOINT)
    network.checkpoint().read(path).assert_existing_objects_matched()
    standardised = (x - network.moments[0]) / network.moments[1]
    per_arm = tf.tile(tf.constant(arm_features)[tf.newaxis], [500, 1, 1])
    predicted, _ = network.agent._reward_network({"global": standardised, "per_arm": per_arm})
    np.testing.assert_allclose(predicted, mean, atol=1e-4)
    saved = tf.saved_model.load(str(folder / SAVED_MODEL_NAME)).signatures["scores"](observation=tf.constant(x))
    np.testing.assert_allclose(saved["mean"], mean, atol=1e-4)

    write_window(tmp_path / "windows", WINDOWS[1], products(200, 1, features))
    grown = training.train(msgspec.structs.replace(mine, parent=card.version, num_actions=12, catalogue=movies))
    after = scorer_of(mine, grown).means(x)
    assert after.shape == (500, 12) and np.corrcoef(after[:, 11], truth[:, 11])[0, 1] > 0.7


@pytest.mark.parametrize("more", [0, 2])
def test_over_arm_features_movies_of_new_genres_can_be_added(tmp_path, more):
    """What was learned stands: the added items' genres have no say yet."""
    features = np.random.default_rng(3).normal(size=(10, DIM))
    movies = [
        Item(action=k, item_id=str(k), features=features[k].tolist(), attributes={"genres": ["Drama"]})
        for k in range(8)
    ]
    write_window(tmp_path / "windows", WINDOWS[0], products(1000, 0, features[:8]))
    mine = settings(tmp_path, "neural_epsilon_greedy", arm_features="shared")
    mine = msgspec.structs.replace(mine, num_actions=8, catalogue=movies)
    card = training.train(mine)
    added = [
        Item(
            action=8 + k,
            item_id=str(8 + k),
            features=features[8 + k].tolist(),
            attributes={"genres": ["Action", "Drama"][:more]},
        )
        for k in range(2)
    ]
    larger = msgspec.structs.replace(mine, num_actions=10, catalogue=[*movies, *added])
    grown = training.train(msgspec.structs.replace(larger, parent=card.version))
    x = np.random.default_rng(5).normal(size=(100, DIM)).astype(np.float32)
    before, after = (scorer_of(mine, one).means(x) for one in (card, grown))
    np.testing.assert_allclose(after[:, :8], before, atol=1e-5)
    write_window(tmp_path / "windows", WINDOWS[1], products(500, 1, features))
    third = training.train(msgspec.structs.replace(larger, parent=grown.version))
    assert third.parent == grown.version

    mine = msgspec.structs.replace(mine, parent=card.version, until=WINDOWS[0].end)
    renamed = [msgspec.structs.replace(movie, attributes={"genres": ["Western"]}) for movie in movies]
    changed = training.train(msgspec.structs.replace(mine, catalogue=renamed))
    assert [column.category for column in changed.arm_columns] == ["Drama", "Western"]
    richer = [msgspec.structs.replace(movie, features=[*movie.features, 1.0]) for movie in movies]
    with pytest.raises(InputError, match=r"catalogue: features per item were 3 for parent .*; now 4"):
        training.train(msgspec.structs.replace(mine, catalogue=richer))


def test_without_arm_features_added_items_begin_with_the_mean_of_the_others(trained, tmp_path):
    mine, card = trained
    shutil.copytree(mine.windows, tmp_path / "windows")
    shutil.copytree(mine.policies, tmp_path / "policies")
    mine = msgspec.structs.replace(mine, windows=tmp_path / "windows", policies=tmp_path / "policies")
    items = [Item(action=k, item_id=str(k)) for k in range(NUM_ACTIONS + 2)]
    larger = msgspec.structs.replace(mine, num_actions=NUM_ACTIONS + 2, catalogue=items, parent=card.version)
    grown = training.train(larger)
    x = np.random.default_rng(5).normal(size=(100, DIM)).astype(np.float32)
    before, after = (scorer_of(mine, one).means(x) for one in (card, grown))
    np.testing.assert_allclose(after[:, :NUM_ACTIONS], before, atol=1e-5)
    if card.algorithm != "neural_linucb":  # whose means are those of its statistics
        np.testing.assert_allclose(after[:, NUM_ACTIONS:], before.mean(axis=1, keepdims=True).repeat(2, 1), atol=1e-5)
    write_window(mine.windows, WINDOWS[1], trajectories(500, 1))
    third = training.train(msgspec.structs.replace(larger, parent=grown.version))
    assert (third.parent, third.num_actions) == (grown.version, NUM_ACTIONS + 2)
    assert checkpoint.read(mine.policies / third.version).n.sum() == 3500


def test_a_network_goes_on_with_another_context(trained, tmp_path):
    """What it knows of the features that stayed is kept; the new ones begin without a say."""
    mine, card = trained
    shutil.copytree(mine.windows, tmp_path / "windows")
    shutil.copytree(mine.policies, tmp_path / "policies")
    batch = trajectories(64, 1)
    more = np.random.default_rng(2).normal(size=(64, 2)).astype(np.float32)
    longer = batch._replace(observation=np.concatenate([batch.observation, more], axis=1))
    write_window(tmp_path / "windows", WINDOWS[1], longer)
    grown = training.train(
        msgspec.structs.replace(
            mine,
            windows=tmp_path / "windows",
            policies=tmp_path / "policies",
            parent=card.version,
            hyperparameters=mine.hyperparameters | {"epochs": 1, "learning_rate": 1e-6, "replay": 0}
            if card.algorithm != "neural_linucb"
            else mine.hyperparameters,
        )
    )
    assert grown.observation_dim == DIM + 2
    x = np.random.default_rng(5).normal(size=(100, DIM)).astype(np.float32)
    wide = np.concatenate([x, np.random.default_rng(6).normal(size=(100, 2)).astype(np.float32)], axis=1)
    before, after = arrays_of(mine, card), policy_arrays.read(tmp_path / "policies" / grown.version, grown)
    tolerance = 0.3 if card.algorithm == "neural_linucb" else 0.01  # which learns from the new decisions at once
    np.testing.assert_allclose(Scorer(after).means(wide), Scorer(before).means(x), atol=tolerance)


def skewed(count, seed, action):
    """A window in which one action was taken, which says nothing of the others."""
    batch = trajectories(count, seed)
    reward = -np.abs(np.linalg.norm(batch.observation, axis=1) - action)
    return batch._replace(action=np.full(count, action, np.int32), reward=reward.astype(np.float32))


def test_replay_keeps_what_only_earlier_windows_show(tmp_path):
    write_window(tmp_path / "windows", WINDOWS[0], trajectories(3000))
    write_window(tmp_path / "windows", WINDOWS[1], skewed(3000, 1, 0))
    errors = {}
    fresh, rows = trajectories(2000, seed=9), np.arange(2000)
    for replay in (0, 5000):
        mine = settings(tmp_path, "neural_epsilon_greedy", replay=replay, epochs=30, learning_rate=0.03)
        first = training.train(msgspec.structs.replace(mine, until=WINDOWS[0].end))
        after = training.train(msgspec.structs.replace(mine, parent=first.version))
        mean = scorer_of(mine, after).means(fresh.observation)
        errors[replay] = np.mean((mean[rows, fresh.action] - fresh.reward) ** 2)
    assert errors[5000] < 0.7 * errors[0]


def test_replay_is_bounded_and_takes_the_newest_windows_that_are_left(tmp_path):
    for number, window in enumerate(WINDOWS):
        write_window(tmp_path / "windows", window, trajectories(400, number))
    mine = settings(tmp_path, "neural_epsilon_greedy", epochs=1)
    card = training.train(mine)
    past = training._past(msgspec.structs.replace(mine, refused=[WINDOWS[1].start]), card)
    assert {window.start for window, _ in past} == {WINDOWS[0].start, WINDOWS[2].start}

    def replayed(records):
        parts = neural._replayed(past, records, Reader(tmp_path / "policies", card))
        return [part.window.start for part in parts], sum(len(batch.action) for part in parts for batch in part())

    everything = sum(window.manifest.records(split) for window, split in past)
    assert replayed(10**6)[1] == everything
    assert replayed(1)[0] == [WINDOWS[2].start]
    assert replayed(0) == ([], 0)


WRONG = [
    ({"arm_features": "hybrid"}, "arm_features must be one of none, shared for neural_boltzmann, got 'hybrid'"),
    ({"layers": "64,none"}, "layers must be sizes above 0 with commas between"),
    ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
    ({"replay": -1}, "replay must be a whole number of at least 0, got -1"),
    ({"learning_rate": -1.0}, "learning_rate must be a number above 0, got -1.0"),
    ({"tikhonov": 1.0}, "neural_boltzmann has no hyperparameter 'tikhonov'"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_wrong_settings_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        agents.complete("neural_boltzmann", given)


def test_the_predictor_serves_the_same_scores_with_exact_propensities(trained):
    mine, card = trained
    folder = mine.policies / card.version
    x = np.random.default_rng(5).normal(size=(200, DIM)).astype(np.float32)
    served = serving.load(folder)
    saved = tf.saved_model.load(str(folder / SAVED_MODEL_NAME)).signatures["scores"](observation=tf.constant(x))
    for name, found in zip(("mean", "std"), served.scores(x), strict=True):
        np.testing.assert_allclose(found, saved[name], atol=1e-4)
    probabilities = served.probabilities(x)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    decision_ids = [str(uuid.UUID(int=index)) for index in range(200)]
    actions = explorers.draw(probabilities, decision_ids, card.version)
    assert (probabilities[np.arange(200), actions] > 0).all()
    if card.algorithm == "neural_boltzmann":
        logits = served.scores(x)[0] / card.exploration.temperature
        softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
        np.testing.assert_allclose(probabilities, softmax / softmax.sum(axis=1, keepdims=True), atol=1e-6)
    else:  # an epsilon floor, and the rest on the best
        np.testing.assert_allclose(probabilities.min(axis=1), 0.2 / NUM_ACTIONS)
        np.testing.assert_allclose(probabilities.max(axis=1), 0.8 + 0.2 / NUM_ACTIONS)
