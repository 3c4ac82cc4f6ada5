import uuid
from random import Random

import numpy as np
import pytest
from scipy import stats

from contracts.errors import InputError
from contracts.policies import STRATEGIES, Exploration
from predictor import exploration

MEAN = np.array([[1.0, 3.0, 2.0, 3.0]])
STD = np.array([[4.0, 0.0, 2.0, 0.0]])
WITHOUT_1 = np.array([[True, False, True, True]])


def random_ids(count, seed):
    """UUIDs as the server makes them, the same ones for the same seed."""
    random = Random(seed)
    return [str(uuid.UUID(int=random.getrandbits(128), version=4)) for _ in range(count)]


# strategy and settings, mask, probabilities worked out by hand
TRUTHS = [
    ({"strategy": "greedy"}, None, [0, 1, 0, 0]),
    ({"strategy": "greedy"}, WITHOUT_1, [0, 0, 0, 1]),
    ({"strategy": "uniform"}, None, [0.25, 0.25, 0.25, 0.25]),
    ({"strategy": "uniform"}, WITHOUT_1, [1 / 3, 0, 1 / 3, 1 / 3]),
    ({"strategy": "epsilon_greedy", "epsilon": 0.2}, None, [0.05, 0.85, 0.05, 0.05]),
    ({"strategy": "epsilon_greedy", "epsilon": 0.3}, WITHOUT_1, [0.1, 0, 0.1, 0.8]),
    ({"strategy": "epsilon_greedy", "epsilon": 1.0}, None, [0.25, 0.25, 0.25, 0.25]),
    ({"strategy": "ucb", "alpha": 1.0, "epsilon": 0.0}, None, [1, 0, 0, 0]),
    ({"strategy": "ucb", "alpha": 0.25, "epsilon": 0.04}, None, [0.01, 0.97, 0.01, 0.01]),
    ({"strategy": "ucb", "alpha": 1.0, "epsilon": 0.3}, WITHOUT_1, [0.8, 0, 0.1, 0.1]),
    (
        {"strategy": "softmax", "temperature": 1 / np.log(2)},
        None,
        [1 / 11, 4 / 11, 2 / 11, 4 / 11],
    ),
    ({"strategy": "softmax", "temperature": 1 / np.log(2)}, WITHOUT_1, [1 / 7, 0, 2 / 7, 4 / 7]),
    ({"strategy": "softmax", "temperature": 1e-3}, None, [0, 0.5, 0, 0.5]),
    ({"strategy": "softmax", "temperature": 5e-324}, None, [0, 0.5, 0, 0.5]),
    ({"strategy": "inverse_gap", "gamma": 2.0}, None, [1 / 8, 1 - 1 / 8 - 1 / 6 - 1 / 4, 1 / 6, 1 / 4]),
    ({"strategy": "inverse_gap", "gamma": 1.0}, WITHOUT_1, [1 / 5, 0, 1 / 4, 1 - 1 / 5 - 1 / 4]),
    ({"strategy": "thompson", "alpha": 0.0}, None, [0, 0.5, 0, 0.5]),
]


@pytest.mark.parametrize(("settings", "mask", "expected"), TRUTHS)
def test_probabilities(settings, mask, expected):
    actual = exploration.probabilities(Exploration(**settings), MEAN, STD, mask)
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, [expected], atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_masked_arm_has_exactly_nothing_and_rows_add_up(strategy):
    random = np.random.default_rng(3)
    mean, std = random.normal(size=(50, 30)), random.uniform(0.1, 2, (50, 30))
    mask = random.random((50, 30)) < 0.5
    mask[:, 7] = True
    mask[0] = False
    mask[0, 29] = True
    mean[~mask] += 100  # nothing that scores well comes through for that
    actual = exploration.probabilities(Exploration(strategy=strategy), mean, std, mask)
    assert (actual[~mask] == 0.0).all()
    assert (actual >= 0).all()
    np.testing.assert_allclose(actual.sum(axis=1), 1, atol=1e-12)
    assert actual[0, 29] == 1.0


@pytest.mark.parametrize(
    ("settings", "support"),
    [
        ({"strategy": "greedy"}, 1),
        ({"strategy": "uniform"}, 9),
        ({"strategy": "epsilon_greedy", "epsilon": 0.3}, 9),
        ({"strategy": "ucb", "epsilon": 0.3}, 9),
        ({"strategy": "softmax"}, 9),
        ({"strategy": "inverse_gap", "gamma": 5.0}, 9),
        ({"strategy": "thompson", "alpha": 1.0}, 9),
    ],
)
def test_draws_follow_the_stated_probabilities(settings, support):
    n = 200_000
    random = np.random.default_rng(11)
    mean, std = random.normal(size=(1, 10)) * 0.5, random.uniform(0.5, 1.5, (1, 10))
    mask = np.ones((1, 10), bool)
    mask[0, 4] = False
    stated = exploration.probabilities(Exploration(**settings), mean, std, mask)[0]
    drawn = exploration.draw(np.broadcast_to(stated, (n, 10)), random_ids(n, seed=12), "v1")
    counts = np.bincount(drawn, minlength=10)
    possible = stated > 0
    assert possible.sum() == support
    assert counts[~possible].sum() == 0
    if support > 1:
        assert stats.chisquare(counts[possible], n * stated[possible]).pvalue > 0.001
    inverse = 1 / stated[drawn]
    assert abs(inverse.mean() - support) <= 4 * inverse.std() / np.sqrt(n)


def test_thompson_agrees_with_sampling():
    random = np.random.default_rng(5)
    n = 400_000
    for k, spread in ((2, 1.0), (6, 3.0), (40, 1.5)):
        mean = random.normal(size=k)
        std = 0.7 * np.exp(random.uniform(-0.5, 0.5, k) * np.log(spread))
        stated = exploration.probabilities(Exploration(strategy="thompson", alpha=1.0), mean[None], std[None])[0]
        sampled = np.bincount((mean + std * random.normal(size=(n, k))).argmax(axis=1), minlength=k) / n
        error = np.sqrt(stated * (1 - stated) / n)
        assert (np.abs(sampled - stated) <= 5 * error + 1e-4).all()


def exact_thompson(mean, std, points=40_001):
    """The same integral on a plain fine grid, with the normal CDF by scipy."""
    z = np.linspace((mean - 9 * std).max(), (mean + 9 * std).max(), points)
    standard = (z - mean[:, None]) / std[:, None]
    others = np.exp(stats.norm.logcdf(standard).sum(axis=0) - stats.norm.logcdf(standard))
    exact = np.trapezoid(stats.norm.pdf(standard) / std[:, None] * others, z, axis=1)
    assert exact.sum() == pytest.approx(1, abs=1e-6)
    return exact


@pytest.mark.parametrize(("spread", "error"), [(3, 2e-4), (30, 1e-3)])
def test_thompson_is_as_exact_as_it_says(spread, error):
    random = np.random.default_rng(9)
    for k in (2, 10, 40):
        mean, exponents = random.normal(size=k), random.uniform(-0.5, 0.5, k)
        # The hardest: one wide arm whose reach is far, and many narrow ones that are the largest within a sliver.
        one_wide = np.where(np.arange(k) == 0, 1.0, 1 / spread)
        for centres, std in ((mean, 0.7 * spread**exponents), (np.zeros(k), one_wide)):
            exploration_settings = Exploration(strategy="thompson", alpha=1.0)
            stated = exploration.probabilities(exploration_settings, centres[None], std[None])[0]
            assert np.abs(stated - exact_thompson(centres, std)).max() < error


@pytest.mark.parametrize(("spread", "error"), [(3, 2e-4), (30, 1e-3)])
@pytest.mark.parametrize("arms", [512, 513, 1_000])
def test_thompson_is_as_exact_among_many_arms(spread, error, arms):
    random = np.random.default_rng(10)
    std = 0.3 * spread ** random.uniform(-0.5, 0.5, arms)
    one_wide = np.where(np.arange(arms) == arms // 2, 1.0, 1 / spread)
    for centres, widths in ((random.normal(size=arms), std), (np.zeros(arms), std), (np.zeros(arms), one_wide)):
        settings = Exploration(strategy="thompson", alpha=1.0)
        stated = exploration.probabilities(settings, centres[None], widths[None])[0]
        assert stated.sum() == pytest.approx(1, abs=1e-12)
        assert np.abs(stated - exact_thompson(centres, widths, 8_001)).max() < error


def test_arms_without_a_chance_do_not_change_thompson():
    random = np.random.default_rng(11)
    mean, std = random.normal(size=(3, 600)), random.uniform(0.1, 0.4, (3, 600))
    settings = Exploration(strategy="thompson", alpha=1.0)
    alone = exploration.probabilities(settings, mean, std)
    hopeless = np.full((3, 5_000), -50.0), random.uniform(0.1, 0.4, (3, 5_000))
    among = exploration.probabilities(
        settings, np.concatenate([hopeless[0], mean], axis=1), np.concatenate([hopeless[1], std], axis=1)
    )
    np.testing.assert_allclose(among[:, 5_000:], alone, rtol=1e-9, atol=1e-12)
    assert (among[:, :5_000] == 0).all()


def test_draw_is_decided_by_id_and_version():
    even = np.full((1, 1000), 1e-3)
    ids = random_ids(4, seed=1)
    first = exploration.draw(np.repeat(even, 4, axis=0), ids, "v1")
    assert first.tolist() == [exploration.draw(even, [one], "v1")[0] for one in ids]
    assert len(set(first.tolist())) == 4
    assert (exploration.draw(np.repeat(even, 4, axis=0), ids, "v2") != first).all()


def test_uniforms_are_uniform_and_those_for_two_purposes_independent():
    n = 200_000
    ids = random_ids(n, seed=3)
    one, another = exploration.uniforms("v1", ids), exploration.uniforms("v2", ids)
    assert (one > 0).all()
    assert (one < 1).all()
    assert stats.kstest(one, "uniform").pvalue > 0.001
    cells, _, _ = np.histogram2d(one, another, bins=20, range=[(0, 1), (0, 1)])
    assert stats.chisquare(cells.ravel()).pvalue > 0.001
    assert exploration.uniforms("v1", ids[:1]) == one[:1]


def test_draw_never_takes_an_impossible_arm():
    ids = random_ids(20_000, seed=2)
    rare = np.tile([0.0, 1e-300, 0.0, 1.0 - 2e-16, 0.0], (len(ids), 1))
    assert set(exploration.draw(rare, ids, "v").tolist()) == {3}
    short = np.tile([0.3, 0.3, 0.4 - 1e-9, 0.0], (len(ids), 1))  # rounding left it below 1
    assert set(exploration.draw(short, ids, "v").tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("mean", "mask", "message"),
    [
        ([[1.0, np.nan]], None, "scores must be finite"),
        ([[1.0, np.inf]], None, "scores must be finite"),
        ([[1.0, 2.0]], [[False, False]], "every row must have an arm on offer"),
    ],
)
def test_refuses_nonsense(mean, mask, message):
    mask = None if mask is None else np.array(mask)
    with pytest.raises(ValueError, match=message):
        exploration.probabilities(Exploration(), np.array(mean), np.zeros((1, 2)), mask)


def test_unknown_strategy():
    with pytest.raises(InputError, match=r"^exploration.strategy: must be one of greedy, .*, got 'boltzman'$"):
        exploration.probabilities(Exploration(strategy="boltzman"), MEAN, STD)


NEW = np.array([False, False, True, True, True, False])


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "uniform"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_new_items_stay_within_their_budget_whatever_their_scores_are(strategy, share):
    random = np.random.default_rng(3)
    mean, std = random.normal(size=(50, 6)), random.uniform(0.1, 2, (50, 6))
    settings = Exploration(strategy=strategy, new_item_share=share, epsilon=0.03)
    budget = min(share, 3 * exploration.MAX_SHARE_OF_ONE_NEW_ITEM)
    for of_new in (-100.0, 0.0, 100.0):
        mean[:, NEW], std[:, NEW] = of_new, 2.0
        found = exploration.probabilities(settings, mean, std, new=NEW)
        of_all = found[:, NEW].sum(axis=1)
        assert (of_all <= budget + 1e-12).all()
        np.testing.assert_allclose(found.sum(axis=1), 1)
        assert (found[:, NEW] >= 0.1 * budget / 3 - 1e-12).all()  # a tenth of it is spread evenly
        if of_new == 100.0:  # the strategy would show nothing else
            np.testing.assert_allclose(of_all, budget)
            alone = exploration.probabilities(settings, mean[:, ~NEW], std[:, ~NEW])
            np.testing.assert_allclose(found[:, ~NEW], (1 - budget) * alone, atol=1e-12)
        if of_new == -100.0:  # the strategy shows them less than it may
            plain = exploration.probabilities(settings, mean, std)
            within = plain[:, NEW].sum(axis=1) <= 0.9 * budget
            expected = (1 - 0.1 * budget) * plain + 0.1 * budget * NEW / 3
            np.testing.assert_allclose(found[within], expected[within], atol=1e-12)


def test_one_new_item_does_not_take_the_whole_budget():
    settings = Exploration(strategy="ucb", alpha=1.0)  # which would show it nearly always
    found = exploration.probabilities(settings, MEAN, STD, new=np.array([True, False, False, False]))
    assert found[0, 0] == pytest.approx(exploration.MAX_SHARE_OF_ONE_NEW_ITEM)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_where_everything_on_offer_is_new_the_strategy_chooses(strategy):
    new, settings = np.array([True, False, True, True]), Exploration(strategy=strategy)
    plain = exploration.probabilities(settings, MEAN, STD, WITHOUT_1)
    np.testing.assert_allclose(exploration.probabilities(settings, MEAN, STD, WITHOUT_1, new), plain, atol=1e-12)


def test_a_uniform_policy_treats_new_items_like_others():
    new = np.array([True, False, False, False])
    uniform = Exploration(strategy="uniform")
    np.testing.assert_allclose(exploration.probabilities(uniform, MEAN, STD, new=new), 0.25)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_mask_of_all_arms_changes_nothing_to_the_last_bit(strategy):
    random = np.random.default_rng(6)
    for arms in (3, 7, 49, 1_682):
        mean, std = random.normal(size=(4, arms)), random.random((4, arms)) + 0.1
        settings = Exploration(strategy=strategy, epsilon=0.03)
        with_mask = exploration.probabilities(settings, mean, std, np.ones((4, arms), bool))
        assert (exploration.probabilities(settings, mean, std) == with_mask).all()
