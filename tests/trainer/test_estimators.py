import numpy as np
import pytest

from trainer.estimators import COLUMNS, difference, estimator

#                  N    W    WR   Q    C    S    SC
ROWS = np.array([[2.0, 3.0, 6.0, 4.0, 1.0, 2.0, 0.5], [2.0, 1.0, 2.0, 2.0, 0.0, 1.0, 0.0]])
VALUES = {"ips": 8 / 4, "snips": 8 / 4, "dm": 6 / 4, "dr": 7 / 4, "switch_dr": 6.5 / 4}


@pytest.mark.parametrize("name", VALUES)
def test_values_are_functions_of_sums(name):
    found = estimator(name, 0.0)
    assert found.value(ROWS.sum(axis=0)) == pytest.approx(VALUES[name])
    # All at once, and of each row.
    assert found.value(ROWS).shape == found.controls(ROWS).shape == found.totals(ROWS).shape == (2,)


def test_controls_have_mean_0_where_the_mean_weight_is_1():
    assert estimator("snips", 0.0).controls(ROWS).tolist() == [1, -1]
    # Three eighths of the choices have larger weights than are relied on: what is left has a mean of 5 / 8.
    assert estimator("switch_dr", 3 / 8).controls(ROWS).tolist() == [0.75, -0.25]


def test_without_a_matching_decision_there_is_no_self_normalised_value():
    assert np.isnan(estimator("snips", 0.0).value(np.array([2.0, 0, 0, 0, 0, 0, 0])))


def test_the_difference_of_two_policies_is_of_their_columns_side_by_side():
    both = np.concatenate([ROWS, 2 * ROWS], axis=1)
    assert both.shape == (2, 2 * COLUMNS)
    found = difference("dr", controlled=True)
    assert found.value(np.concatenate([ROWS[0], ROWS[1]])) == pytest.approx(5 / 2 - 2 / 2)
    assert found.controls(both).tolist() == [-1, 1]
    assert found.totals(both).tolist() == [-5, -2]
    assert difference("dr", controlled=False).controls(both).tolist() == [0, 0]


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="dros is no linear function of the sums"):
        estimator("dros", 0.0)
