from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest
import tensorflow as tf

from contracts import policy_arrays
from contracts.errors import InputError
from contracts.features import FeatureSpec, Number
from contracts.items import Item
from contracts.policies import (
    CARD_NAME,
    CHECKPOINT_NAME,
    LINEAR_NAME,
    SAVED_MODEL_NAME,
    Exploration,
    encode_json,
)
from contracts.policy_arrays import Scorer
from contracts.trajectories import TrajectoryBatch
from contracts.windows import MANIFEST_NAME
from predictor import policy as serving
from tests.windows import consecutive_windows, write_window
from trainer import agents, checkpoint, training
from trainer.linear import SufficientStatistics, disjoint

NUM_ACTIONS, DIM = 5, 3
WINDOWS = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 4)


def trajectories(count, seed=0, num_actions=NUM_ACTIONS, observation_dim=DIM):
    rng = np.random.default_rng(seed)
    return TrajectoryBatch(
        observation=rng.normal(size=(count, observation_dim)).astype(np.float32),
        action=rng.integers(0, num_actions, count).astype(np.int32),
        reward=rng.normal(size=count).astype(np.float32),
        propensity=np.full(count, 1 / num_actions, np.float32),
        defaulted=np.zeros(count, bool),
    )


def catalogue(num_actions=NUM_ACTIONS):
    return [Item(action=k, item_id=f"m{k}", attributes={"title": f"Movie {k}"}) for k in range(num_actions)]


def two_windows(folder):
    """Two windows of 100 + 20 interactions, nothing trained yet."""
    for index in range(2):
        window = WINDOWS[index]
        write_window(folder / "windows", window, trajectories(100, index), trajectories(20, 10 + index))
    return training.Settings(
        windows=folder / "windows",
        policies=folder / "policies",
        num_actions=NUM_ACTIONS,
        catalogue=catalogue(),
    )


@pytest.fixture
def settings(tmp_path):
    return two_windows(tmp_path)


def statistics_of(settings, version):
    return checkpoint.read(settings.policies / version)


def read_arrays(settings, card):
    return policy_arrays.read(settings.policies / card.version, card)


def trained(card):
    return [(WINDOWS.index(window.window), window.split, window.records) for window in card.trained_on]


def test_a_policy_is_trained_on_all_but_the_newest_holdback_and_the_next_one_on_what_is_new(settings):
    first = training.train(settings)
    assert trained(first) == [(0, "train", 100), (0, "holdback", 20), (1, "train", 100)]
    assert first.parent is None and first.observation_dim == DIM and first.catalogue == catalogue()
    assert first.version.startswith("lin_ucb-20260101T000100.000000Z-")
    assert statistics_of(settings, first.version).n.sum() == 220
    for part in (CARD_NAME, LINEAR_NAME, SAVED_MODEL_NAME, CHECKPOINT_NAME):
        assert (settings.policies / first.version / part).exists()

    write_window(settings.windows, WINDOWS[2], trajectories(50, 2), trajectories(10, 12))
    second = training.train(msgspec.structs.replace(settings, parent=first.version))
    assert trained(second) == [*trained(first), (1, "holdback", 20), (2, "train", 50)]
    assert second.parent == first.version
    assert statistics_of(settings, second.version).n.sum() == 290


def test_continuing_from_a_checkpoint_equals_training_on_everything_at_once(settings):
    parent = None
    for window in WINDOWS[:2]:
        parent = training.train(msgspec.structs.replace(settings, parent=parent, until=window.end)).version
    at_once = training.train(settings).version
    assert at_once != parent
    stepwise, whole = statistics_of(settings, parent), statistics_of(settings, at_once)
    np.testing.assert_allclose(stepwise.a, whole.a, rtol=1e-12)
    np.testing.assert_allclose(disjoint(stepwise, 0.1).theta, disjoint(whole, 0.1).theta, rtol=1e-9)
    expected = SufficientStatistics.zeros(NUM_ACTIONS, DIM)
    for batch in (trajectories(100, 0), trajectories(20, 10), trajectories(100, 1)):
        expected.add(batch.observation, batch.action, batch.reward)
    np.testing.assert_allclose(whole.a, expected.a, rtol=1e-12)
    np.testing.assert_allclose(whole.b, expected.b, rtol=1e-12)


def test_the_same_inputs_give_the_same_policy_and_it_is_left_as_it_is(settings):
    first = training.train(settings)
    before = {path: path.stat().st_mtime_ns for path in settings.policies.rglob("*")}
    assert training.train(settings) == first
    assert {path: path.stat().st_mtime_ns for path in settings.policies.rglob("*")} == before
    others = [
        msgspec.structs.replace(settings, hyperparameters={"tikhonov": 0.2}),
        msgspec.structs.replace(settings, exploration=Exploration(alpha=0.7)),
        msgspec.structs.replace(settings, only=[WINDOWS[1].start]),
    ]
    assert len({first.version, *(training.train(other).version for other in others)}) == 4


@pytest.mark.parametrize("algorithm", ["lin_ucb", "lin_ts", "greedy"])
@pytest.mark.parametrize("model", ["none", "shared", "hybrid"])
def test_every_linear_policy_serves_in_the_predictor(settings, algorithm, model):
    movies = [
        msgspec.structs.replace(
            movie, features=[float(np.cos(movie.action)), 1.0], attributes={"genres": ["Drama"][: movie.action % 2]}
        )
        for movie in catalogue()
    ]
    card = training.train(
        msgspec.structs.replace(
            settings,
            algorithm=algorithm,
            hyperparameters={"arm_features": model},
            exploration=Exploration(strategy=agents.EXPLORATION[algorithm]),
            catalogue=[*movies[:-1], msgspec.structs.replace(movies[-1], status="masked")],
        )
    )
    served = serving.load(settings.policies / card.version)
    x = trajectories(50, 5).observation
    saved = tf.saved_model.load(str(settings.policies / card.version / SAVED_MODEL_NAME))
    scores = saved.signatures["scores"](observation=tf.constant(x))
    for name, found in zip(("mean", "std"), served.scores(x), strict=True):
        np.testing.assert_allclose(found, scores[name], atol=1e-4)
    probabilities = served.probabilities(x)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert not probabilities[:, -1].any()  # the masked movie, in spite of the floor


def test_with_nothing_new_the_parent_stands(settings):
    first = training.train(settings)
    assert training.train(msgspec.structs.replace(settings, parent=first.version)) == first
    assert [path.name for path in settings.policies.iterdir()] == [first.version]


def test_with_other_settings_the_same_evidence_makes_another_policy(settings):
    first = training.train(settings)
    masked = [*catalogue(4), msgspec.structs.replace(catalogue()[4], status="masked")]
    for change in (
        {"catalogue": masked},
        {"exploration": Exploration(epsilon=0.5)},
        {"hyperparameters": {"tikhonov": 3.0}},
        {"algorithm": "lin_ts"},
    ):
        other = training.train(msgspec.structs.replace(settings, parent=first.version, **change))
        assert other.version != first.version and other.trained_on == first.trained_on
        np.testing.assert_array_equal(
            statistics_of(settings, other.version).a, statistics_of(settings, first.version).a
        )


def test_a_window_without_interactions_is_trained_on_together_with_the_next(settings):
    first = training.train(settings)
    write_window(settings.windows, WINDOWS[2], trajectories(0))
    second = training.train(msgspec.structs.replace(settings, parent=first.version))
    assert trained(second)[-2:] == [(1, "holdback", 20), (2, "train", 0)]


def test_a_refused_window_is_never_trained_on(settings):
    refused = msgspec.structs.replace(settings, refused=[WINDOWS[1].start])
    first = training.train(refused)
    assert trained(first) == [(0, "train", 100)]
    write_window(settings.windows, WINDOWS[2], trajectories(100, 2), trajectories(20, 12))
    second = training.train(msgspec.structs.replace(refused, parent=first.version))
    assert trained(second) == [(0, "train", 100), (0, "holdback", 20), (2, "train", 100)]
    with pytest.raises(InputError, match="no ready window"):
        training.train(msgspec.structs.replace(settings, refused=[window.start for window in WINDOWS]))


def test_a_window_becoming_ready_late_is_trained_on(settings):
    (settings.windows / WINDOWS[0].folder / MANIFEST_NAME).rename(settings.windows / "later")
    first = training.train(settings)
    assert trained(first) == [(1, "train", 100)]
    (settings.windows / "later").rename(settings.windows / WINDOWS[0].folder / MANIFEST_NAME)
    second = training.train(msgspec.structs.replace(settings, parent=first.version))
    assert trained(second) == [(1, "train", 100), (0, "train", 100), (0, "holdback", 20)]


def test_the_catalogue_grows_and_a_linear_policy_continues_as_another(settings):
    first = training.train(settings)
    write_window(settings.windows, WINDOWS[2], trajectories(50, 2, num_actions=7))
    more = msgspec.structs.replace(
        settings, parent=first.version, num_actions=7, catalogue=catalogue(7), algorithm="lin_ts"
    )
    second = training.train(more)
    statistics = statistics_of(settings, second.version)
    assert (second.num_actions, second.algorithm, statistics.num_actions) == (7, "lin_ts", 7)
    assert statistics.n.sum() == 290 and statistics.n[5:].sum() > 0


@pytest.mark.parametrize("from_scratch", [False, True])
def test_an_action_that_is_used_again_keeps_nothing_of_its_old_item(settings, from_scratch):
    """Neither what the parent had learned, nor what windows say that ended before the new item was added."""
    retired = [*catalogue(4), msgspec.structs.replace(catalogue()[4], status="retired")]
    first = training.train(msgspec.structs.replace(settings, catalogue=retired))
    write_window(settings.windows, WINDOWS[2], trajectories(50, 2))
    added = Item(action=4, item_id="new", since=WINDOWS[1].end)
    parent = None if from_scratch else first.version
    second = training.train(msgspec.structs.replace(settings, parent=parent, catalogue=[*catalogue(4), added]))
    expected = SufficientStatistics.zeros(NUM_ACTIONS, DIM)
    parts = [trajectories(100, 0), trajectories(20, 10), trajectories(100, 1), trajectories(20, 11)]
    for batch in parts:
        old = batch.take(batch.action < 4)
        expected.add(old.observation, old.action, old.reward)
    newest = trajectories(50, 2)
    expected.add(newest.observation, newest.action, newest.reward)
    found = statistics_of(settings, second.version)
    np.testing.assert_allclose(found.n, expected.n)
    np.testing.assert_allclose(found.a, expected.a, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.b, expected.b, rtol=1e-9, atol=1e-9)


def test_forgetting_is_by_window_however_often_it_is_trained(settings):
    """At once or window by window, an interaction counts half for every `half_life` windows since."""
    for index in range(2, 4):
        write_window(settings.windows, WINDOWS[index], trajectories(50, index), trajectories(10, 10 + index))
    settings = msgspec.structs.replace(settings, hyperparameters={"half_life": 2.0})
    parent = None
    for window in WINDOWS:
        parent = training.train(msgspec.structs.replace(settings, parent=parent, until=window.end)).version
    stepwise, at_once = statistics_of(settings, parent), statistics_of(settings, training.train(settings).version)
    np.testing.assert_allclose(stepwise.a, at_once.a, rtol=1e-12)
    np.testing.assert_allclose(stepwise.b, at_once.b, rtol=1e-12)
    # 120 interactions three windows ago, 120 two, 60 one, and 50 of the newest.
    assert at_once.n.sum() == pytest.approx(120 * 0.5**1.5 + 120 * 0.5 + 60 * 0.5**0.5 + 50)


def test_with_forgetting_a_policy_follows_tastes_that_turn(tmp_path):
    """Halfway, what every action is worth turns into its opposite."""
    windows = consecutive_windows(datetime(2026, 1, 1, tzinfo=UTC), 60, 12)
    taste = np.random.default_rng(7).normal(size=(NUM_ACTIONS, DIM))
    for index, window in enumerate(windows):
        batch = trajectories(200, index)
        sign = 1 if index < 8 else -1
        reward = sign * np.einsum("nd,nd->n", batch.observation, taste[batch.action]) + batch.reward
        write_window(tmp_path / "windows", window, batch._replace(reward=reward.astype(np.float32)))
    settings = training.Settings(
        windows=tmp_path / "windows", policies=tmp_path / "policies", num_actions=NUM_ACTIONS, catalogue=catalogue()
    )
    forgets = msgspec.structs.replace(settings, hyperparameters={"half_life": 1.0})
    errors = [np.abs(read_arrays(mine, training.train(mine)).theta + taste).mean() for mine in (settings, forgets)]
    assert errors[1] < 0.25 * errors[0]


@pytest.mark.parametrize("model", ["shared", "hybrid"])
def test_a_movie_that_nobody_has_seen_is_recommended_when_its_features_say_so(tmp_path, model):
    """Rewards are products of observation and features; the last movie is like the best one, only more so."""
    features = np.random.default_rng(8).normal(size=(NUM_ACTIONS, 2))
    best = features[0] / np.linalg.norm(features[0])
    movies = [
        Item(action=k, item_id=f"m{k}", features=(features[k] if k < NUM_ACTIONS - 1 else 3 * best).tolist())
        for k in range(NUM_ACTIONS)
    ]
    batch = trajectories(400, num_actions=NUM_ACTIONS - 1)
    reward = np.einsum("nf,nf->n", batch.observation[:, :2], features[batch.action]) + 0.5 * batch.reward
    windows = tmp_path / "windows"
    write_window(windows, WINDOWS[0], batch._replace(reward=reward.astype(np.float32)))
    found = {}
    for name in ("none", model):
        settings = training.Settings(
            windows=windows,
            policies=tmp_path / "policies",
            num_actions=NUM_ACTIONS,
            catalogue=movies,
            hyperparameters={"arm_features": name},
        )
        found[name] = Scorer(read_arrays(settings, training.train(settings)))
    viewer = np.array([[*best, 0.0]], np.float32)
    mean, std = found[model].scores(viewer)
    assert mean.argmax() == NUM_ACTIONS - 1 and std[0, -1] > 0
    unknown, _ = found["none"].scores(viewer)
    assert unknown[0, -1] == 0


def empty_folder(settings):
    settings.windows.rename(settings.windows.with_name("elsewhere"))
    settings.windows.mkdir()
    return settings


def action_out_of_range(settings):
    write_window(settings.windows, WINDOWS[2], trajectories(100, num_actions=7))
    return settings


def other(**changes):
    return lambda settings: msgspec.structs.replace(settings, **changes)


def with_parent(**changes):
    def change(settings):
        card = training.train(settings)
        return msgspec.structs.replace(settings, parent=card.version, **changes)

    return change


def trained_twice(settings):
    card = training.train(settings)
    twice = msgspec.structs.replace(card, trained_on=[*card.trained_on, card.trained_on[0]])
    (settings.policies / card.version / CARD_NAME).write_bytes(encode_json(twice))
    return msgspec.structs.replace(settings, parent=card.version)


def unknown_action_with_no_ridge(settings):
    more = msgspec.structs.replace(settings, num_actions=6, catalogue=catalogue(6))
    return msgspec.structs.replace(more, hyperparameters={"tikhonov": 1e-300})


def huge_rewards(settings):
    observation = np.full((100, DIM), 0.1, np.float32)
    batch = trajectories(100)._replace(observation=observation, reward=np.full(100, 3e38, np.float32))
    write_window(settings.windows, WINDOWS[2], batch)
    return msgspec.structs.replace(settings, only=[WINDOWS[2].start])


def store_that_is_a_file(settings):
    settings.policies.write_text("mine")
    return settings


def half_written_parent(settings):
    (settings.policies / "half").mkdir(parents=True)
    return msgspec.structs.replace(settings, parent="half")


WRONG = {
    "no windows folder": (
        lambda settings: msgspec.structs.replace(settings, windows=settings.windows / "nowhere"),
        "windows: no such folder: .*nowhere",
    ),
    "no ready window": (empty_folder, "windows: no ready window"),
    "none by then": (other(until=WINDOWS[0].start), "windows: no ready window"),
    "no such window": (other(only=[WINDOWS[3].start]), "windows: no ready window starts at 2026-01-01T00:03:00"),
    "action out of range": (
        action_out_of_range,
        r"window=20260101T000200.*part-train.*action must be in \[0, 5\), got",
    ),
    "unknown algorithm": (other(algorithm="oracle"), "algorithm must be one of .*lin_ucb.*, got 'oracle'"),
    "catalogue too short": (other(catalogue=catalogue(4)), "catalogue has 4 items for 5 actions"),
    "epochs of a linear policy": (
        other(hyperparameters={"epochs": 5}),
        "epochs must be 1 for lin_ucb, got 5: it counts evidence",
    ),
    "another model": (
        other(hyperparameters={"arm_features": "some"}),
        "arm_features must be one of none, shared, hybrid for lin_ucb, got 'some'",
    ),
    "a negative half-life": (other(hyperparameters={"half_life": -1.0}), "half_life must be a number of at least 0"),
    "another half-life": (with_parent(hyperparameters={"half_life": 3.0}), "has half_life 0.0, asked for 3.0"),
    "a parent of another kind": (with_parent(algorithm="neural_boltzmann"), "is a lin_ucb policy, asked for neural_b"),
    "an item replaced": (
        with_parent(catalogue=[*catalogue(4), Item(action=4, item_id="new")]),
        "action 4 is item 'm4' in the parent, got 'new'",
    ),
    "networks with Beam": (
        other(algorithm="neural_boltzmann", beam_options=[]),
        "beam options: neural_boltzmann has no statistics to sum up with Beam",
    ),
    "nothing to recommend": (
        other(catalogue=[msgspec.structs.replace(movie, status="masked") for movie in catalogue()]),
        "catalogue: must have an active item",
    ),
    "a ridge of next to nothing": (
        unknown_action_with_no_ridge,
        "trained policy: covariance must be finite numbers: .*ridge",
    ),
    "rewards that do not fit": (huge_rewards, "trained policy: theta must be finite numbers: rewards or observations"),
    "a store that is a file": (store_that_is_a_file, "policies: cannot write to .*policies: Not a directory"),
    "no actions": (other(num_actions=0), "num_actions must be at least 1, got 0"),
    "no such parent": (other(parent="v0"), r"parent: .*v0 has no policy\.json"),
    "half-written parent": (half_written_parent, r"parent: .*half has no policy\.json"),
    "parent of other actions": (with_parent(num_actions=4, catalogue=catalogue(4)), "has 5 actions, asked for 4"),
    "parent trained twice": (trained_twice, r"was trained twice on window=20260101T000000.* \(train\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_trained_is_refused_and_leaves_nothing(settings, case):
    make, message = WRONG[case]
    wrong = make(settings)
    before = sorted(settings.policies.glob("*"))
    with pytest.raises(InputError, match=message) as error:
        training.train(wrong)
    assert "\n" not in str(error.value)
    assert sorted(settings.policies.glob("*")) == before


def test_the_feature_spec_is_part_of_the_policy_and_its_name(settings):
    spec = FeatureSpec(features=[Number(name="a"), Number(name="b")])
    plain, card = training.train(settings), training.train(msgspec.structs.replace(settings, features=spec))
    assert (plain.features, card.features) == (None, spec)
    assert plain.version != card.version
    write_window(settings.windows, WINDOWS[2], trajectories(50, 7), trajectories(5, 8))
    update = training.train(msgspec.structs.replace(settings, parent=card.version))
    assert update.features == spec
    assert serving.load(settings.policies / update.version).encoder.encode({"a": 2, "b": 3}) == [1.0, 2.0, 3.0]


def test_a_feature_spec_that_does_not_fit_what_nothing_else_describes(settings):
    spec = FeatureSpec(features=[Number(name="a")])
    with pytest.raises(
        InputError, match=r"features: the spec must take the 3 numbers of window=20260101T000100.*, got 2"
    ):
        training.train(msgspec.structs.replace(settings, features=spec))


def of_length(batch, length):
    """The batch with more or fewer numbers in its observations."""
    more = np.random.default_rng(9).normal(size=(len(batch.action), max(length - DIM, 0))).astype(np.float32)
    return batch._replace(observation=np.concatenate([batch.observation[:, :length], more], axis=1))


@pytest.mark.parametrize("beam_options", [None, ["--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"]])
@pytest.mark.parametrize("stepwise", [True, False])
def test_a_context_that_grows_and_shrinks_keeps_the_evidence_of_what_stayed(tmp_path, stepwise, beam_options):
    """3 numbers, then 5, then 4: what is new has no evidence before, and what is gone leaves the rest as it was."""
    settings = training.Settings(
        windows=tmp_path / "windows",
        policies=tmp_path / "policies",
        num_actions=NUM_ACTIONS,
        catalogue=catalogue(),
        beam_options=beam_options,
    )
    lengths, parent = (3, 5, 4), None
    batches = [of_length(trajectories(100, index), length) for index, length in enumerate(lengths)]
    for window, batch in zip(WINDOWS, batches, strict=False):
        write_window(settings.windows, window, batch)
        if stepwise:
            parent = training.train(msgspec.structs.replace(settings, parent=parent)).version
    card = training.train(msgspec.structs.replace(settings, parent=parent))
    assert card.observation_dim == 4 and sum(one.records for one in card.trained_on) == 300
    expected = SufficientStatistics.zeros(NUM_ACTIONS, 4)
    for batch in batches:
        observation = np.zeros((100, 4))
        known = min(batch.observation.shape[1], 4)
        observation[:, :known] = batch.observation[:, :known]
        expected.add(observation, batch.action, batch.reward)
    found = statistics_of(settings, card.version)
    for name in ("a", "b", "n"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9)
    assert serving.load(settings.policies / card.version).scores(np.zeros((2, 4), np.float32))[0].shape == (2, 5)


def test_another_spec_keeps_the_evidence_of_the_features_that_stayed(settings):
    spec = FeatureSpec(features=[Number(name="a"), Number(name="b")])
    first = training.train(msgspec.structs.replace(settings, features=spec))
    other = FeatureSpec(version=2, constant=False, features=[Number(name="new"), Number(name="b")])
    second = training.train(msgspec.structs.replace(settings, parent=first.version, features=other))
    before, after = (statistics_of(settings, one.version) for one in (first, second))
    assert (second.observation_dim, second.features) == (2, other)
    np.testing.assert_array_equal(after.a[:, 1, 1], before.a[:, 2, 2])
    np.testing.assert_array_equal(after.b[:, 1], before.b[:, 2])
    assert not after.a[:, 0].any() and not after.a[:, :, 0].any() and not after.b[:, 0].any()
    np.testing.assert_array_equal(after.n, before.n)
