"""The check of calibration: whether rewards are what the deciding version predicted, by decile of its predictions."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from orchestration.audit.evidence import Evidence
from orchestration.audit.findings import LEVEL, MIN_REFERENCE_WINDOWS, Finding
from orchestration.audit.predictions import MIN_JUDGED, RECENT_WINDOWS

DECILES = 10
MIN_IN_DECILE = 20  # decisions, in the window and in those before it
# The smallest change of a decile's mean residual that holds the loop, in standard deviations of the rewards. Tastes that
# turn by 0.05 radians per window move a decile by up to a third of one.
CHANGE = 0.5


class Decile(NamedTuple):
    """Decisions with predictions of one range."""

    number: int
    decisions: float
    predicted: float  # mean
    rewarded: float  # mean
    variance: float  # of a residual

    @property
    def residual(self) -> float:
        """Mean reward less mean prediction."""
        return self.rewarded - self.predicted


def calibration(now: Evidence, before: Sequence[Evidence]) -> list[Finding]:
    """For each version, whether a decile of its predictions is further from its rewards than in the windows before.

    The decile is compared with the predictions of the same range in the windows before, as every policy overrates the
    arms that it chooses (the winner's curse).
    """
    recent = [one for one in before[-RECENT_WINDOWS:] if one.versions]
    history = _together(
        one for window in recent for one in (version.calibration for version in window.versions.values())
    )
    if len(recent) < MIN_REFERENCE_WINDOWS or not len(history):
        return []
    found = [
        _of_version(version, _together([one.calibration]), history)
        for version, one in now.versions.items()
        if one.judged >= MIN_JUDGED
    ]
    return [one for one in found if one is not None]


def _together(parts: Iterable[dict[str, list[float]]]) -> np.ndarray:
    """[N, 5]: bin, decisions, and sums of predictions, rewards and squared residuals, by bin."""
    rows = [[int(bin), *sums] for part in parts for bin, sums in part.items()]
    return np.array(sorted(rows)).reshape(-1, 5)


def _of_version(version: str, bins: np.ndarray, history: np.ndarray) -> Finding | None:
    """The decile of one version that moved most, in standard errors; None when none has enough decisions."""
    spread = _reward_deviation(bins)
    edges = np.searchsorted(np.cumsum(bins[:, 1]), np.arange(1, DECILES) * bins[:, 1].sum() / DECILES)
    found: list[tuple[float, Decile, Decile]] = []
    for number, part in enumerate(np.split(bins, edges), start=1):
        if not len(part):
            continue
        same = history[(history[:, 0] >= part[0, 0]) & (history[:, 0] <= part[-1, 0])]
        new, old = _decile(number, part), _decile(number, same)
        if min(new.decisions, old.decisions) >= MIN_IN_DECILE:
            error = float(np.sqrt(new.variance / new.decisions + old.variance / old.decisions))
            further = error > 0 and abs(new.residual) > abs(old.residual)
            found.append((abs(new.residual - old.residual) / error if further else 0.0, new, old))
    if not found:
        return None
    # Deciles have few decisions, so the quantile is Student's; it allows for all of them.
    threshold = float(stats.t.isf(LEVEL / (2 * DECILES), MIN_IN_DECILE - 1))
    z, new, old = max(found, key=lambda one: one[0])
    return Finding(
        check="prediction: calibration",
        kind="break",
        alarm=any(z > threshold and abs(new.residual - old.residual) > CHANGE * spread for z, new, old in found),
        statistic=z,
        threshold=threshold,
        fact=f"decile {new.number} of {version}: rewards {new.rewarded:.3f} where {new.predicted:.3f} is predicted;"
        f" {old.rewarded:.3f} where {old.predicted:.3f} was, in the windows before",
        meaning="rewards of one size were cut or scaled, or the taste for what is predicted high or low has changed",
    )


def _decile(number: int, bins: np.ndarray) -> Decile:
    count, predicted, rewards, squares = bins[:, 1:].sum(axis=0).tolist()
    size = max(count, 1.0)
    mean = (rewards - predicted) / size
    return Decile(number, count, predicted / size, rewards / size, max(squares / size - mean**2, 0.0))


def _reward_deviation(bins: np.ndarray) -> float:
    """The standard deviation of the rewards, from the residuals' and the predictions' within and between bins."""
    count, rewards, squares = bins[:, 1], bins[:, 3], bins[:, 4]
    between = float((rewards**2 / count).sum() / count.sum() - (rewards.sum() / count.sum()) ** 2)
    within = float(np.maximum(squares - (rewards - bins[:, 2]) ** 2 / count, 0.0).sum() / count.sum())
    return float(np.sqrt(max(between + within, 0.0)))
