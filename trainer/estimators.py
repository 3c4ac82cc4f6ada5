"""The estimators of `off_policy`, as functions of the columns of `off_policy.Sums`.

To add one: a column and its name here, its sum in `off_policy.Sums.add`, its field in `off_policy.Estimates`.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from trainer.intervals import Estimator

# Columns, the last axis: decisions, and the sums of w, w r, q_target, w (r - q_logged), and of w and the last one where w is
# not above the threshold.
N, W, WR, Q, C, S, SC = range(7)
COLUMNS = 7

Name = Literal["ips", "snips", "dm", "dr", "switch_dr"]


def difference(name: Name, controlled: bool) -> Estimator:
    """The estimator of one policy's value minus another's, of rows with the columns of both side by side.

    `controlled`: whether the mean difference of the weights that are relied on is known to be 0.
    """
    one = estimator(name, 0.0)
    controls = _minus(one.controls) if controlled else lambda sums: np.zeros(sums.shape[:-1])
    return Estimator(_minus(one.value), controls, _minus(one.totals))


def estimator(name: Name, untried: float) -> Estimator:
    """An estimator as a function of the columns of `Sums`; `untried`: the share that switch_dr leaves to the model."""
    match name:
        case "ips":
            return Estimator(lambda sums: sums[..., WR] / sums[..., N], _weight_control, lambda sums: sums[..., WR])
        case "snips":
            return Estimator(_snips, _weight_control, lambda sums: sums[..., WR])
        case "dm":
            return _mean(lambda sums: sums[..., Q], lambda sums: np.zeros(sums.shape[:-1]))
        case "dr":
            return _mean(lambda sums: sums[..., Q] + sums[..., C], _weight_control)
        case "switch_dr":
            return _mean(
                lambda sums: sums[..., Q] + sums[..., SC], lambda sums: sums[..., S] - (1 - untried) * sums[..., N]
            )
        case _:
            raise ValueError(f"{name} is no linear function of the sums")


def _mean(total: Callable[[np.ndarray], np.ndarray], controls: Callable[[np.ndarray], np.ndarray]) -> Estimator:
    return Estimator(lambda sums: total(sums) / sums[..., N], controls, total)


def _weight_control(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[..., W] - sums[..., N])


def _snips(sums: np.ndarray) -> np.ndarray:
    # A resample may hold no decision that the target policy would take: it says nothing, NaN is left out.
    return np.divide(sums[..., WR], sums[..., W], out=np.full(sums.shape[:-1], np.nan), where=sums[..., W] > 0)


def _minus(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda sums: function(sums[..., :COLUMNS]) - function(sums[..., COLUMNS:])
