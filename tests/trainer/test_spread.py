import numpy as np
import pytest

from trainer.spread import Spread, residual_extremes, reward_extremes


def of(values, propensities=None):
    spread = Spread()
    spread.add(np.array(values, float), np.ones(len(values)) if propensities is None else np.array(propensities))
    return spread


def test_parts_merge_to_the_whole():
    values, propensities = np.arange(10.0), np.linspace(0.1, 1, 10)
    merged = of(values[:3], propensities[:3])
    merged.merge(of(values[3:], propensities[3:]))
    whole = of(values, propensities)
    np.testing.assert_allclose(merged.sums, whole.sums)
    assert (merged.low, merged.high, merged.mean) == (0, 9, 4.5)


def test_the_deviation_counts_what_is_rarely_tried_as_if_it_were_tried_as_often():
    assert of([1.0, -1.0]).deviation() == 1
    seldom = of([0.0] * 98 + [5.0, -5.0], [1.0] * 98 + [0.01] * 2)
    assert seldom.deviation() == pytest.approx(np.sqrt(200 * 25 / 298))
    assert seldom.share_of_largest() == pytest.approx(0.5)


def test_extremes_are_of_the_log_or_of_the_range_that_is_known():
    rewards = of([0.0, 0.0, 0.0, 1.0])
    assert reward_extremes(rewards, None).seen == (0, 1)
    assert reward_extremes(rewards, (0.0, 5.0)).seen == (0, 5)
    assert reward_extremes(of([2.0, 2.0]), None).seen == (0, 2)
    typical = reward_extremes(of([*[0.0] * 50, *[1.0] * 50, 40.0]), None).typical
    assert typical[0] == 0 and 1 < typical[1] < 40


def test_a_model_without_errors_is_not_taken_to_be_right_elsewhere():
    """All residuals are 0: how far rewards spread is what is left to go by."""
    rewards = of([0.0, 1.0, 0.0, 1.0])
    found = residual_extremes(of([0.0] * 4), rewards, None)
    assert found.seen == (-0.5, 0.5) and found.typical == (-0.5, 0.5)
