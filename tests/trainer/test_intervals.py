import json

import numpy as np
import pytest

from contracts.errors import InputError
from tests.trainer import published_estimates
from trainer.intervals import Estimator, Intervals, Question, cressie_read

MEAN = Estimator(
    lambda sums: sums[..., 1] / sums[..., 0], lambda sums: np.zeros(sums.shape[:-1]), lambda sums: sums[..., 1]
)
NOTHING = np.array([[1.0, 0.0]])


def table(values):
    return np.stack([np.ones(len(values)), values], axis=1)


def test_cressie_read_equals_the_published_implementation():
    """VowpalWabbit/estimators 0.2.2 with weights in [0, 20] and rewards in [-1, 3]: see published_estimates."""
    published = json.loads(published_estimates.PUBLISHED.read_text())["bandit"]["cressie_read"]
    log = published_estimates.bandit()
    rows = np.arange(len(log.action))
    weight = log.target[rows, log.action] / log.logging[rows, log.action]
    unseen = np.array([[w - 1, w * r] for w in (0.0, 20.0) for r in (-1.0, 3.0)])
    found = cressie_read(np.ones(len(rows)), weight - 1, weight * log.reward, unseen)
    assert found == pytest.approx(published, rel=1e-12)


def test_cressie_read_does_not_depend_on_the_unit_or_on_how_decisions_are_grouped():
    rng = np.random.default_rng(0)
    weight, reward = rng.exponential(size=4000), rng.normal(1, 1, size=4000)
    unseen = np.array([[-1.0, 0.0], [9.0, 30.0], [9.0, -20.0]])
    single = cressie_read(np.ones(4000), weight - 1, weight * reward, unseen)
    large = cressie_read(np.ones(4000), weight - 1, 1e100 * weight * reward, unseen * [1, 1e100])
    assert [1e-100 * bound for bound in large] == pytest.approx(single)
    group = rng.integers(0, 500, 4000)
    counts, controls, totals = (
        np.bincount(group, values, minlength=500) for values in (np.ones(4000), weight - 1, weight * reward)
    )
    assert cressie_read(counts, controls, totals, unseen) == pytest.approx(single, abs=0.02)


def test_the_plain_interval_is_students_where_values_are_normal():
    values = np.random.default_rng(1).normal(size=400)
    found = Intervals(table(values), NOTHING, Question()).interval(MEAN)
    assert found.method == "plain" and found.reliable
    assert found.high - found.low == pytest.approx(2 * 1.966 * values.std(ddof=1) / 20, rel=0.06)


def test_what_was_not_seen_decides_which_interval_is_taken():
    values = np.random.default_rng(2).normal(size=400)
    # The plain half-width is about 0.1: a decision of 10 moves the mean by 0.025, one of 30 by 0.075.
    small, large = (Intervals(table(values), np.array([[1.0, 0.0], [1.0, x]]), Question()) for x in (10.0, 30.0))
    assert small.interval(MEAN).method == "plain"
    found = small.interval(MEAN), large.interval(MEAN)
    assert found[1].method == "cressie_read" and found[1].high - found[1].low > found[0].high - found[0].low
    constant = Intervals(table(np.zeros(400)), np.array([[1.0, 0.0], [1.0, 1.0]]), Question())
    assert constant.plain(MEAN).high == 0
    assert constant.interval(MEAN).high == pytest.approx(3 / 400, rel=0.05)  # the rule of three


def test_a_wrong_question_is_refused():
    with pytest.raises(InputError, match=r"confidence must be in \(0, 1\), got 95"):
        Question(confidence=95)
    with pytest.raises(InputError, match=r"reward_range must be \(low, high\) with low < high, got \(1.0, 0.0\)"):
        Question(reward_range=(1.0, 0.0))
