import numpy as np
import pytest

from contracts.errors import InputError
from trainer.arrays import checked, numbers


def test_numbers_become_float64():
    for values in ([1, 2], np.array([1, 2], np.float32), (1.0, 2.0)):
        assert numbers("rewards", values).dtype == np.float64
    with pytest.raises(InputError, match="rewards must be numbers: could not convert string to float"):
        numbers("rewards", ["much"])


def test_the_first_value_that_is_wrong_is_named():
    assert checked("q", [1, 2], 2).tolist() == [1, 2]
    with pytest.raises(InputError, match=r"q must have the shape of rewards, \[3\], got \[2\]"):
        checked("q", [1, 2], 3)
    with pytest.raises(InputError, match="q must be finite, got inf at 1"):
        checked("q", [1, np.inf, np.nan], 3)
    with pytest.raises(InputError, match=r"q must be positive, got -2\.0 at 1"):
        checked("q", [1, -2], 2, "be positive", lambda array: array > 0)
