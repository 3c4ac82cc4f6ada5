"""Arrays of logged decisions, checked: errors name the array, the fact and the first value that is wrong."""

from collections.abc import Callable

import numpy as np

from contracts.errors import InputError


def numbers(name: str, values: np.ndarray) -> np.ndarray:
    """The values as float64; raises InputError where they are no numbers."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numbers: {error}") from None


def checked(
    name: str,
    values: np.ndarray,
    decisions: int,
    fact: str = "be finite",
    holds: Callable[[np.ndarray], np.ndarray] = np.isfinite,
) -> np.ndarray:
    """The values, [decisions]; raises InputError where they have another shape, or where the fact does not hold."""
    array = numbers(name, values)
    if array.shape != (decisions,):
        raise InputError(f"{name} must have the shape of rewards, {[decisions]}, got {list(array.shape)}")
    wrong = ~holds(array)
    if wrong.any():
        at = int(wrong.argmax())
        raise InputError(f"{name} must {fact}, got {array[at]} at {at}")
    return array
