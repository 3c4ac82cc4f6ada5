import json

import numpy as np
import pytest

from contracts.errors import InputError
from tests.trainer import published_estimates
from trainer import off_policy
from trainer.support import difference_support, marginal_probabilities, observed_support, support


def greedy(best, arms, epsilon=0.0):
    probabilities = np.full((len(best), arms), epsilon / arms)
    probabilities[np.arange(len(best)), best] += 1 - epsilon
    return probabilities


def test_on_a_uniform_log_all_weights_are_relied_on_however_many_arms_there_are():
    for arms in (5, 100):
        found = support(greedy(np.arange(2000) % arms, arms), np.full((2000, arms), 1 / arms))
        assert (found.largest_weight, found.untried) == (pytest.approx(arms), 0)


def test_choices_that_the_log_hardly_ever_tried_are_left_to_the_model():
    """A tenth of the choices at a weight of 1,000, in 1,000 decisions: none is expected to be seen."""
    best = np.zeros(1000, int)
    target = greedy(np.where(np.arange(1000) < 100, 1, 0), 20)
    found = support(target, greedy(best, 20, epsilon=0.02))
    assert found.largest_weight == pytest.approx(1 / 0.981)
    assert found.untried == pytest.approx(0.1)
    # A hundred times as many decisions show them.
    larger = support(np.tile(target, (100, 1)), np.tile(greedy(best, 20, epsilon=0.02), (100, 1)))
    assert (larger.largest_weight, larger.untried) == (pytest.approx(1000), 0)


def test_what_the_log_cannot_take_is_untried():
    target = np.array([[0.5, 0.5, 0.0]] * 50)
    found = support(target, np.array([[1.0, 0.0, 0.0]] * 50))
    assert (found.largest_weight, found.untried) == (0.5, 0.5)
    assert support(target, np.array([[0.0, 0.0, 1.0]] * 50)).untried == 1
    with pytest.raises(InputError, match=r"must both be \[N, K\] with N > 0"):
        support(target, target[:, :2])


def test_the_weights_of_the_log_alone_say_nearly_the_same():
    rng = np.random.default_rng(0)
    logging = greedy(rng.integers(0, 20, 2000), 20, epsilon=0.02)
    target = 0.6 * greedy(logging.argmax(axis=1), 20) + 0.4 * greedy(rng.integers(0, 20, 2000), 20)
    action = (logging.cumsum(axis=1) < rng.random((2000, 1))).sum(axis=1)
    rows = np.arange(2000)
    whole = support(target, logging)
    seen = observed_support(target[rows, action] / logging[rows, action])
    assert whole.untried > 0.3
    assert seen.untried == pytest.approx(whole.untried, abs=0.05)
    assert seen.largest_weight == pytest.approx(whole.largest_weight, abs=0.5)


def test_choices_on_which_two_policies_agree_need_no_evidence():
    champion = greedy(np.zeros(1000, int), 20)
    found = difference_support(champion, champion, np.zeros(1000))
    assert (found.largest_weight, found.untried) == (1, 0)
    # They differ in a tenth of the decisions, by choices that the log did not take.
    candidate = greedy(np.where(np.arange(1000) < 100, 1, 0), 20)
    difference = np.where(np.arange(1000) < 100, -1.0, 0.0)
    found = difference_support(candidate, champion, difference)
    assert (found.largest_weight, found.untried) == (1, pytest.approx(0.1))


def test_mips_equals_the_published_implementation():
    """Open Bandit Pipeline 0.5.7, one category per arm: see published_estimates."""
    published = json.loads(published_estimates.PUBLISHED.read_text())["bandit"]
    log = published_estimates.bandit()
    shown = log.categories[log.action]
    for embedding in (log.categories, np.eye(3)[log.categories]):
        found = off_policy.estimate(
            log.reward, *(marginal_probabilities(policy, embedding, shown) for policy in (log.logging, log.target))
        )
        assert found.ips.value == pytest.approx(published["mips"], rel=1e-12)
        assert found.snips.value == pytest.approx(published["snmips"], rel=1e-12)


def test_mips_errs_less_where_many_arms_share_a_category():
    """500 arms of 20 categories that alone decide the reward."""
    rng = np.random.default_rng(3)
    arms, decisions = 500, 1000
    categories, worth = np.arange(arms) % 20, rng.normal(size=20)
    policy = np.exp(rng.normal(size=arms) + worth[categories])
    target = np.tile(policy / policy.sum(), (decisions, 1))
    uniform = np.full((decisions, arms), 1 / arms)
    truth = float(target[0] @ worth[categories])
    errors = {"plain": [], "mips": []}
    for _ in range(50):
        action = rng.integers(0, arms, decisions)
        reward = worth[categories[action]] + rng.normal(size=decisions)
        shown = categories[action]
        plain = off_policy.estimate(reward, np.full(decisions, 1 / arms), target[0, action])
        both = (marginal_probabilities(pmf, categories, shown) for pmf in (uniform, target))
        errors["plain"].append(plain.snips.value - truth)
        errors["mips"].append(off_policy.estimate(reward, *both).snips.value - truth)
    assert np.std(errors["mips"]) < 0.8 * np.std(errors["plain"])
    assert abs(np.mean(errors["mips"])) < 3 * np.std(errors["mips"]) / np.sqrt(50)
