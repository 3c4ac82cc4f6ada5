import json

import numpy as np
import pytest

from tests.trainer import published_estimates
from trainer.shrinkage import LAMBDAS, Shrunk


def of(log, rows):
    shrunk = Shrunk()
    action = log.action[rows]
    weight = log.target[rows, action] / log.logging[rows, action]
    expected = (log.target * log.model).sum(axis=1)[rows]
    shrunk.add(weight, log.reward[rows] - log.model[rows, action], expected)
    return shrunk


def test_every_lambda_and_the_tuned_one_equal_the_published_implementation():
    """Open Bandit Pipeline 0.5.7: see published_estimates."""
    published = json.loads(published_estimates.PUBLISHED.read_text())["bandit"]
    shrunk = of(published_estimates.bandit(), np.arange(200))
    assert LAMBDAS.tolist() == published_estimates.LAMBDAS
    assert shrunk.values() == pytest.approx(published["dros_by_lambda"], rel=1e-12)
    assert shrunk.value() == pytest.approx(published["dros"], rel=1e-12)


def test_parts_merge_to_the_whole():
    log = published_estimates.bandit()
    merged = of(log, np.arange(70))
    merged.merge(of(log, np.arange(70, 200)))
    whole = of(log, np.arange(200))
    np.testing.assert_allclose(merged.sums, whole.sums, rtol=1e-12)
    assert merged.decisions == 200 and merged.tuned() == whole.tuned()


def test_the_tuned_estimate_errs_less_where_weights_are_large_and_the_model_is_good():
    errors = {"dr": [], "dros": []}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        weight = np.where(rng.random(300) < 0.01, 100.0, 0.0)
        shrunk = Shrunk()
        shrunk.add(weight, rng.normal(size=300), np.zeros(300))
        errors["dr"].append(shrunk.values()[-1])
        errors["dros"].append(shrunk.value())
    assert np.std(errors["dros"]) < 0.8 * np.std(errors["dr"])
