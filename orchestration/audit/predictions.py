"""The checks that find a break: whether rewards still mean what the deciding versions predict.

The version that decided was trained on earlier windows alone, so its predictions of a window are honest.
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import msgspec
import numpy as np

from orchestration.audit.evidence import Evidence, VersionEvidence
from orchestration.audit.findings import MIN_REFERENCE_WINDOWS, Finding

MIN_JUDGED = 100  # decisions of a window with a prediction and a reward
# Predictions are compared with those of fewer windows: over many, tastes that drift move them as a corruption does.
RECENT_WINDOWS = 4
STEP_WINDOWS = 10


class Comparison(NamedTuple):
    """The newest `span` windows against those that ended `gap` windows before; `change`: the smallest that holds the loop."""

    span: int
    gap: int
    change: float


# The mean residual falls by a share of the rewards' standard deviation: at once, or slowly over several windows. The
# squared error grows, and the correlation (Fisher's z) falls, by a share of itself. Tastes that turn by 0.05 radians per
# window move them by up to 0.11 (0.15 slowly), 1.2 and 0.25.
RESIDUAL = (Comparison(1, 0, -0.15), Comparison(2, 0, -0.15), Comparison(2, 4, -0.17))
SQUARED_ERROR = (Comparison(1, 0, 2.0), Comparison(2, 0, 2.0))
CORRELATION = (Comparison(1, 0, -0.4), Comparison(2, 0, -0.4))
# The step size from a few windows is uncertain, so that a normal quantile of the same level (4.4) would be too small.
STANDARD_ERRORS = 5.0


def predictions(now: Evidence, before: Sequence[Evidence]) -> list[Finding]:
    """Whether the versions that decided still predict the rewards: residual, squared error and correlation.

    The version that decided was trained on earlier windows alone, so its predictions of this window are honest. Each
    figure is compared with the windows before, over several spans so that slow changes add up.
    """
    history = [_judged(one) for one in (*before[-2 * STEP_WINDOWS :], now)]
    history = [one for one in history if one.judged >= MIN_JUDGED]
    if len(history) <= MIN_REFERENCE_WINDOWS or _judged(now).judged < MIN_JUDGED:
        return []
    return [
        _worst(history, "residual", _residual, RESIDUAL, "rewards fell below what was predicted for the same choices"),
        _worst(history, "squared error", _squared_error, SQUARED_ERROR, "rewards no longer fit the predictions", True),
        _worst(
            history, "correlation", _correlation, CORRELATION, "rewards lost their relation to the predictions", True
        ),
    ]


Figure = Callable[[VersionEvidence], tuple[float, float, float]]  # value, standard error, unit of a change


def _worst(
    history: list[VersionEvidence],
    name: str,
    figure: Figure,
    comparisons: Sequence[Comparison],
    meaning: str,
    improves: bool = False,
) -> Finding:
    """The first comparison that alarms, else the one in which the figure moved most for the worse, in standard errors.

    `improves`: the figure gets better as the policy learns, and the steps for the better are not counted as noise.
    """
    best = (-math.inf, comparisons[0], 0.0, 0.0)
    alarm = False
    for one in comparisons:
        before = history[: -(one.span + one.gap)]
        if len(before) < MIN_REFERENCE_WINDOWS:
            break
        new, new_error, _ = figure(reduce(VersionEvidence.merge, history[-one.span :]))
        old, old_error, unit = figure(reduce(VersionEvidence.merge, before[-RECENT_WINDOWS:]))
        # What windows differ by beyond chance, as versions change: half the mean squared step from one to the next
        # (von Neumann 1941), which does not count a trend as noise.
        values = [figure(window) for window in before[-STEP_WINDOWS:]]
        steps = np.diff([value for value, _, _ in values])
        between = float(np.mean(steps**2)) / 2
        if improves:  # without a trend, the steps for the worse are half of all
            between = min(between, float(np.mean((steps * math.copysign(1, one.change)).clip(min=0) ** 2)))
        between = max(between - float(np.mean([error**2 for _, error, _ in values])), 0.0)
        error = math.sqrt(new_error**2 + old_error**2 + between * (1 / one.span + 1 / min(len(before), RECENT_WINDOWS)))
        worse = (new - old) * math.copysign(1, one.change)
        z = worse / error if error else 0.0
        alarm = z > STANDARD_ERRORS and worse > abs(one.change) * unit
        if alarm or z > best[0]:
            best = (z, one, old, new)
        if alarm:
            break
    z, one, old, new = best
    return Finding(
        check=f"prediction: {name}",
        kind="break",
        alarm=bool(alarm),
        statistic=z,
        threshold=STANDARD_ERRORS,
        fact=f"{name} {old:.3f} → {new:.3f} over {one.span + one.gap} window(s), {z:+.1f} standard errors",
        meaning=meaning,
        began=one.span + one.gap - 1,
    )


def _judged(evidence: Evidence) -> VersionEvidence:
    """Of all versions together, without the bins of their predictions, which another check looks at."""
    parts = (msgspec.structs.replace(one, calibration={}) for one in evidence.versions.values())
    return reduce(VersionEvidence.merge, parts, VersionEvidence())


def _squares(one: VersionEvidence) -> float:
    """Sum of squared residuals."""
    return max(one.reward_squares - 2 * one.products + one.predicted_squares, 0.0)


def _reward_variance(one: VersionEvidence) -> float:
    return max(one.reward_squares / one.judged - (one.reward / one.judged) ** 2, 1e-12)


def _residual(one: VersionEvidence) -> tuple[float, float, float]:
    mean = (one.reward - one.predicted) / one.judged
    variance = max(_squares(one) / one.judged - mean**2, 0.0)
    return mean, math.sqrt(variance / one.judged), math.sqrt(_reward_variance(one))


def _squared_error(one: VersionEvidence) -> tuple[float, float, float]:
    mean = _squares(one) / one.judged
    variance = max(one.residual_fourth_powers / one.judged - mean**2, 0.0)
    return mean, math.sqrt(variance / one.judged), mean


def _correlation(one: VersionEvidence) -> tuple[float, float, float]:
    """Fisher's transformation: its standard error is 1 / sqrt(n - 3)."""
    predicted = max(one.predicted_squares / one.judged - (one.predicted / one.judged) ** 2, 1e-12)
    covariance = one.products / one.judged - one.reward * one.predicted / one.judged**2
    correlation = float(np.clip(covariance / math.sqrt(predicted * _reward_variance(one)), -0.999, 0.999))
    z = math.atanh(correlation)
    return z, 1 / math.sqrt(max(one.judged - 3, 1)), abs(z)
