import dataclasses
import itertools

import msgspec
import numpy as np
import pytest

from contracts import policies, policy_arrays
from contracts.errors import InputError
from contracts.policies import Exploration
from contracts.policy_arrays import PolicyArrays
from predictor import exploration
from predictor import policy as policy_files
from predictor.deciding import new_decision_ids
from tests.linear_policies import write_policy
from trainer import saved_model


@pytest.fixture
def folder(tmp_path):
    write_policy(tmp_path / "v1", num_actions=6, observation_dim=4)
    return tmp_path / "v1"


def rewrite(folder, **changes):
    path = folder / policies.LINEAR_NAME
    with np.load(path) as file:
        arrays = dict(file) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_scores_are_the_linear_ones(folder):
    with np.load(folder / policies.LINEAR_NAME) as file:
        theta, covariance = file["theta"].astype(float), file["covariance"].astype(float)
    observations = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    mean, std = policy_files.load(folder).scores(observations)
    for row, x in enumerate(observations.astype(float)):
        for arm in range(6):
            assert mean[row, arm] == pytest.approx(theta[arm] @ x, rel=1e-9)
            assert std[row, arm] == pytest.approx(np.sqrt(x @ covariance[arm] @ x), rel=1e-9)


def test_scores_do_not_depend_on_the_batch(folder):
    policy = policy_files.load(folder)
    observations = np.random.default_rng(2).normal(size=(1500, 4)).astype(np.float32)  # several chunks
    probabilities = policy.probabilities(observations, exploration=Exploration(strategy="softmax"))
    for row in (0, 511, 512, 1499):
        alone = policy.probabilities(observations[row : row + 1], exploration=Exploration(strategy="softmax"))
        assert (alone[0] == probabilities[row]).all()


def test_candidates_and_exploration(folder):
    policy = policy_files.load(folder)
    observations = np.ones((3, 4), np.float32)
    probabilities = policy.probabilities(observations, [[], [5], [0, 2]], Exploration(strategy="uniform"))
    expected = [[1 / 6] * 6, [0, 0, 0, 0, 0, 1], [0.5, 0, 0.5, 0, 0, 0]]
    np.testing.assert_allclose(probabilities, expected, atol=1e-15)
    assert policy.probabilities(observations).max() == pytest.approx(0.98 + 0.02 / 6)  # the card's: ucb, epsilon 0.02


def asked(random, num_actions):
    """What 60 rows have on offer: a few arms, nearly all, all of them by name, and all."""
    some = [random.choice(num_actions, size, replace=False).tolist() for size in (1, 2, 40, 40, 300, 301, 1_190) * 8]
    return [*some, some[2], list(range(num_actions)), [], []]


@pytest.fixture(params=["all items active", "some masked", "few active"])
def large(tmp_path, request):
    """A policy for 1,200 items."""
    card = write_policy(tmp_path / "large", num_actions=1_200, observation_dim=4)
    active = {"all items active": range(1_200), "some masked": range(40, 1_200), "few active": range(0, 1_200, 5)}
    statuses = ["active" if item.action in active[request.param] else "masked" for item in card.catalogue]
    catalogue = [msgspec.structs.replace(item, status=one) for item, one in zip(card.catalogue, statuses, strict=True)]
    return dataclasses.replace(
        policy_files.load(tmp_path / "large"), card=msgspec.structs.replace(card, catalogue=catalogue)
    )


@pytest.mark.parametrize("strategy", policies.STRATEGIES)
def test_of_many_items_those_on_offer_are_scored_and_the_rest_has_nothing(large, strategy):
    random = np.random.default_rng(3)
    candidates = [one for one in asked(random, 1_200) if large.can_choose(one)]
    observations = random.normal(size=(len(candidates), 4)).astype(np.float32)
    settings = Exploration(strategy=strategy)
    found = large.probabilities(observations, candidates, settings)
    mask = policy_files.mask_of(candidates, 1_200)
    mask = mask if large.active is None else mask & large.active
    wanted = exploration.probabilities(settings, *large.scores(observations), mask)
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-12)
    assert (found[~mask] == 0).all()
    few = [one for one in large.choices(observations, candidates, settings) if one.arms is not None]
    assert {len(one.arms) for one in few} - {300, 301, 1_190, 1_200}
    assert all(len(one.arms) <= 300 for one in few)


@pytest.mark.parametrize("strategy", policies.STRATEGIES)
def test_what_is_chosen_among_many_items_depends_on_the_row_alone(large, strategy):
    random = np.random.default_rng(4)
    candidates = [one for one in asked(random, 1_200) if large.can_choose(one)]
    observations = random.normal(size=(len(candidates), 4)).astype(np.float32)
    settings = Exploration(strategy=strategy)
    together = large.probabilities(observations, candidates, settings)
    mask = policy_files.mask_of(candidates, 1_200)
    assert (large.probabilities(observations, mask, settings) == together).all()
    turned = [one[::-1] for one in candidates]
    assert (large.probabilities(observations, turned, settings) == together).all()
    for row in range(0, len(candidates), 3):
        alone = large.probabilities(observations[row : row + 1], candidates[row : row + 1], settings)
        assert (alone[0] == together[row]).all()


def test_draws_and_propensities_of_choices_are_those_of_all_probabilities(large):
    random = np.random.default_rng(5)
    candidates = [one for one in asked(random, 1_200) if large.can_choose(one)]
    observations = random.normal(size=(len(candidates), 4)).astype(np.float32)
    ids = new_decision_ids(1, len(candidates))
    probabilities = large.probabilities(observations, candidates)
    drawn = exploration.draw(probabilities, ids, "v")
    for one in large.choices(observations, candidates):
        assert (one.draw([ids[row] for row in one.rows], "v") == drawn[one.rows]).all()
        assert (one.of(drawn[one.rows]) == probabilities[one.rows, drawn[one.rows]]).all()
        others = random.integers(1_200, size=len(one.rows))  # most of them not on offer
        assert (one.of(others) == probabilities[one.rows, others]).all()
        assert (one.of(np.full(len(one.rows), 1_200)) == 0).all()  # an action of another policy


def test_new_items_among_a_few_of_many_keep_to_their_budget(large):
    policy = dataclasses.replace(large, card=msgspec.structs.replace(large.card, new_actions=[5, 200, 1_100]))
    observations = np.random.default_rng(6).normal(size=(20, 4)).astype(np.float32)
    offered = [0, 5, 200, 405, 500, 600, 1_100]
    found = policy.probabilities(observations, [offered] * 20)
    mask = policy_files.mask_of([offered] * 20, 1_200)
    mask = mask if policy.active is None else mask & policy.active
    settings = policy.card.exploration
    wanted = exploration.probabilities(settings, *policy.scores(observations), mask, policy.new)
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-12)


def test_a_row_with_nothing_on_offer_is_refused(large):
    masked = [item.action for item in large.card.catalogue if item.status == "masked"]
    if masked:
        with pytest.raises(ValueError, match="every row must have an arm on offer"):
            large.choices(np.zeros((1, 4), np.float32), [masked[:3]])
    with pytest.raises(ValueError, match="every row must have an arm on offer"):
        large.choices(np.zeros((2, 4), np.float32), np.zeros((2, 1_200), bool))


def test_how_many_arms_are_scored(folder, large):
    assert [large.scored(count) for count in (0, 1, 300, 301)] == [1_200, 1, 300, 1_200]
    assert policy_files.load(folder).scored(1) == 6


def test_wrong_length(folder):
    with pytest.raises(ValueError, match=r"observations must be \[B, 4\], got \(2, 5\)"):
        policy_files.load(folder).scores(np.zeros((2, 5), np.float32))


def test_baseline_is_uniform_over_what_is_on_offer(folder):
    safe = policy_files.baseline(policy_files.load(folder).card)
    assert safe.card.version == "uniform"
    assert [movie.title for movie in safe.card.catalogue][:2] == ["Movie 0", "Movie 1"]
    np.testing.assert_allclose(safe.probabilities(np.zeros((1, 4), np.float32), [[1, 3]]), [[0, 0.5, 0, 0.5, 0, 0]])


def test_missing_card(tmp_path):
    with pytest.raises(InputError, match=r"policy.json: cannot be read: No such file or directory$"):
        policy_files.load(tmp_path)


def test_broken_card(folder):
    (folder / policies.CARD_NAME).write_text("{")
    with pytest.raises(InputError, match=r"policy.json: not a policy: "):
        policy_files.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"theta": None}, "theta is missing"),
        ({"theta": np.zeros((6, 5))}, r"theta must have shape \[6, 4\], got \[6, 5\]"),
        ({"covariance": np.zeros((5, 4, 4))}, r"covariance must have shape \[6, 4, 4\], got \[5, 4, 4\]"),
        ({"theta": np.full((6, 4), np.nan)}, "theta must be finite numbers"),
        ({"theta": np.full((6, 4), "x")}, "theta must be finite numbers"),
        ({"covariance": np.zeros((6, 4, 4))}, "covariance must have a positive diagonal"),
        ({"num_samples": np.ones(3)}, r"num_samples must have shape \[6\], got \[3\]"),
    ],
)
def test_inconsistent_parameters(folder, changes, message):
    rewrite(folder, **changes)
    with pytest.raises(InputError, match=rf"linear.npz: {message}$"):
        policy_files.load(folder)


def test_half_written_parameters(folder):
    path = folder / policies.LINEAR_NAME
    whole = path.read_bytes()
    for kept in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=r"linear.npz: not a readable npz file: "):
            policy_files.load(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"linear.npz: is missing$"):
        policy_files.load(folder)


def test_pickled_parameters_are_not_run(folder):
    rewrite(folder, theta=np.array([print] * 24, object).reshape(6, 4))
    with pytest.raises(InputError, match=r"linear.npz: not a readable npz file: "):
        policy_files.load(folder)


def test_unknown_strategy_is_found_when_loading(tmp_path):
    write_policy(tmp_path / "v", exploration=Exploration(strategy="magic"))
    with pytest.raises(
        InputError, match=r"policy.json: not a policy: Invalid enum value 'magic' - at `\$.exploration.strategy`"
    ):
        policy_files.load(tmp_path / "v")


def test_masked_and_retired_movies_are_not_on_offer(folder):
    card = policies.decode_card((folder / policies.CARD_NAME).read_bytes(), "card")
    statuses = ["active", "masked", "active", "retired", "active", "active"]
    catalogue = [
        msgspec.structs.replace(movie, status=status) for movie, status in zip(card.catalogue, statuses, strict=True)
    ]
    (folder / policies.CARD_NAME).write_bytes(policies.encode_json(msgspec.structs.replace(card, catalogue=catalogue)))
    policy = policy_files.load(folder)
    for each in (policy, policy_files.baseline(policy.card)):
        for candidates in (None, [[], [1, 2, 3]]):
            probabilities = each.probabilities(np.ones((2, 4), np.float32), candidates, Exploration(strategy="softmax"))
            assert (probabilities[:, [1, 3]] == 0.0).all()
            np.testing.assert_allclose(probabilities.sum(axis=1), 1)
        assert probabilities[1, 2] == 1.0
    none_active = [msgspec.structs.replace(movie, status="retired") for movie in card.catalogue]
    card = msgspec.structs.replace(card, catalogue=none_active)
    (folder / policies.CARD_NAME).write_bytes(policies.encode_json(card))
    with pytest.raises(InputError, match=r"policy.json: catalogue must have an active item$"):
        policy_files.load(folder)


def network(sizes, sure=True, seed=3):
    """A neural policy as the trainer has it: layers of these sizes, the last before 6 actions."""
    random = np.random.default_rng(seed)
    layers = [
        (random.normal(size=(i, o)).astype(np.float32), random.normal(size=o).astype(np.float32))
        for i, o in itertools.pairwise(sizes)
    ]
    half = random.normal(size=(6, sizes[-1], sizes[-1]))
    covariance = (half @ half.transpose(0, 2, 1) + 0.1 * np.eye(sizes[-1])).astype(np.float32) if sure else None
    theta, bias = random.normal(size=(6, sizes[-1])).astype(np.float32), random.normal(size=6).astype(np.float32)
    return PolicyArrays(layers, theta, bias, covariance, np.ones(6, np.float32))


@pytest.mark.parametrize("sure", [True, False])
def test_neural_policies_serve_without_tensorflow_as_with_it(folder, sure):
    arrays = network([4, 7, 5], sure)
    (folder / policies.LINEAR_NAME).unlink()
    card = msgspec.structs.replace(policy_files.read_card(folder), algorithm="neural_linucb")
    policy_arrays.write(folder, arrays)
    saved_model.save(folder / policies.SAVED_MODEL_NAME, arrays, card)
    observations = np.random.default_rng(4).normal(size=(21, 4)).astype(np.float32)
    mean, std = policy_files.load(folder).scores(observations)
    assert (std > 0).any() == sure
    for row in (0, 20):
        alone = policy_files.load(folder).scores(observations[row : row + 1])
        assert (alone[0][0] == mean[row]).all()
        assert (alone[1][0] == std[row]).all()
    (folder / policies.NETWORK_NAME).unlink()  # what is left is the SavedModel
    saved_mean, saved_std = policy_files.load(folder).scores(observations)
    np.testing.assert_allclose(saved_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(saved_std, std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_0": np.zeros((5, 7))}, r"weights_0 must have shape \[4, 7\], got \[5, 7\]"),
        ({"bias_1": None}, r"weights_1 must have shape \[7, 0\], got \[7, 5\]"),
        ({"weights_1": np.full((7, 5), np.inf)}, "weights_1 must be finite numbers"),
        ({"theta": np.zeros((6, 4))}, r"theta must have shape \[6, 5\], got \[6, 4\]"),
        ({"bias": None}, "bias is missing"),
        ({"covariance": np.zeros((6, 5, 5))}, "covariance must have a positive diagonal"),
    ],
)
def test_inconsistent_networks(folder, changes, message):
    (folder / policies.LINEAR_NAME).unlink()
    model = network([4, 7, 5])
    arrays = {"theta": model.theta, "bias": model.bias, "num_samples": model.num_samples}
    arrays |= {f"weights_{i}": weights for i, (weights, _) in enumerate(model.layers)}
    arrays |= {f"bias_{i}": bias for i, (_, bias) in enumerate(model.layers)}
    arrays |= {"covariance": model.covariance} | changes
    np.savez(folder / policies.NETWORK_NAME, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=rf"network.npz: {message}$"):
        policy_files.load(folder)


def test_saved_model_of_another_kind(folder):
    (folder / policies.LINEAR_NAME).unlink()
    (folder / policies.SAVED_MODEL_NAME).mkdir()
    with pytest.raises(InputError, match=r"saved_model: not a SavedModel with the signature scores: "):
        policy_files.load(folder)
