"""The checks of a window: each compares its evidence with what must hold, or with the windows before it.

Tests are exact or conservative where they can be. Where a test rests on a normal approximation, an effect size must be
exceeded too.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from orchestration.audit.calibration import calibration
from orchestration.audit.evidence import Evidence
from orchestration.audit.findings import LEVEL, MIN_REFERENCE_WINDOWS, REFERENCE_WINDOWS, Finding
from orchestration.audit.identities import ids_fit, times_fit
from orchestration.audit.predictions import predictions
from orchestration.audit.versions import rewards_by_version, sample_ratio

# The evidence at which the e-value's bets are best, in variances of a decision.
BET_PRIOR = 100.0
Check = Callable[[Evidence, Sequence[Evidence]], list[Finding]]


def replay_differs(now: Evidence, _: Sequence[Evidence]) -> list[Finding]:
    """Decisions replayed by the version that they name. Deterministic, so one difference is a contradiction."""
    findings = []
    for name, meaning in (
        (
            "propensity",
            "the propensity that was logged is not the one that the decision was drawn with, or the observation, "
            "the candidates or the version that were logged are not those that decided",
        ),
        ("action", "the action that was logged is not the one that was drawn, or another version decided"),
    ):
        differs = {version: getattr(one, f"{name}_differs") for version, one in now.versions.items()}
        replayed = sum(one.replayed for one in now.versions.values())
        count = sum(differs.values())
        most = max(differs, key=lambda version: differs[version], default="")
        findings.append(
            Finding(
                check=f"replayed {name}",
                kind="contradiction",
                alarm=count > 0,
                statistic=count,
                threshold=0,
                fact=f"{count} of {replayed} replayed decisions differ" + (f", most of {most}" if count else ""),
                meaning=meaning,
            )
        )
    return findings


def actions_fit_propensities(now: Evidence, _: Sequence[Evidence]) -> list[Finding]:
    """Chi-square of the actions taken against the sum of the replayed probabilities, by arm."""
    taken, expected = np.array(now.taken_in_replay), np.array(now.expected)
    size = max(len(taken), len(expected))
    taken, expected = np.pad(taken, (0, size - len(taken))), np.pad(expected, (0, size - len(expected)))
    rare = expected < 5
    if rare.any():
        taken, expected = (np.append(values[~rare], values[rare].sum()) for values in (taken, expected))
    impossible = float(taken[expected == 0].sum())
    taken, expected = taken[expected > 0], expected[expected > 0]
    statistic = float(((taken - expected) ** 2 / expected).sum()) if len(expected) > 1 else 0.0
    threshold = float(stats.chi2.isf(LEVEL, max(len(expected) - 1, 1)))
    return [
        Finding(
            check="actions against probabilities",
            kind="contradiction",
            alarm=statistic > threshold or impossible > 0,
            statistic=statistic,
            threshold=threshold,
            fact=f"chi-square {statistic:.1f} over {len(expected)} groups of arms",
            meaning="actions were not drawn with the probabilities of the version that they name",
        )
    ]


def actions_fit_over_time(now: Evidence, before: Sequence[Evidence]) -> list[Finding]:
    """An e-value over all accepted windows: a bet that the most probable arm is taken too often, or too rarely.

    It is below 1 on average while actions are drawn as logged, however often one looks (Ville, 1939), so small
    differences add up over windows. The bets of all sizes are mixed by a normal distribution (Robbins, 1970).
    """
    total, variance = (sum(getattr(one, name) for one in (*before, now)) for name in ("bet", "bet_variance"))
    logarithm = total**2 / (2 * (BET_PRIOR + variance)) - math.log1p(variance / BET_PRIOR) / 2
    threshold = -math.log(LEVEL)
    return [
        Finding(
            check="actions against probabilities, over time",
            kind="contradiction",
            alarm=logarithm > threshold,
            statistic=logarithm,
            threshold=threshold,
            fact=f"e-value {math.exp(min(logarithm, 700.0)):.3g}; the most probable arm was taken {total:+.0f} times more"
            f" than its probabilities say",
            meaning="actions are drawn a little differently from the probabilities that are logged",
        )
    ]


def inverse_propensity(now: Evidence, _: Sequence[Evidence]) -> list[Finding]:
    """The mean of 1 / propensity is the mean number of arms on offer, whatever the explorer."""
    offered, replayed = now.on_offer, sum(one.replayed for one in now.versions.values())
    if not replayed or not offered:
        return []
    variance = max(now.inverse_propensity_squares / replayed - (now.inverse_propensity / replayed) ** 2, 0.0)
    ratio = now.inverse_propensity / offered
    z = (now.inverse_propensity - offered) / math.sqrt(replayed * variance) if variance else 0.0
    threshold = float(stats.norm.isf(LEVEL / 2))
    return [
        Finding(
            check="1 / propensity",
            kind="contradiction",
            alarm=z > threshold and ratio > 1.25,
            statistic=ratio,
            threshold=1.25,
            fact=f"{ratio:.2f} times the arms on offer, {z:+.1f} standard errors",
            meaning="logged propensities are too small: a factor was lost, or the decisions are not those of the log",
        )
    ]


def rewards_by_action(now: Evidence, before: Sequence[Evidence]) -> list[Finding]:
    """Whether rewards arrive for each action as often as in the windows before: a two-sample chi-square by arm."""
    return _rates(
        "reward rate by action",
        (now.taken, now.rewarded_by_action),
        [(one.taken, one.rewarded_by_action) for one in before],
        "rewards of some actions got lost, or viewers stopped answering for them",
    )


def rewards_by_propensity(now: Evidence, before: Sequence[Evidence]) -> list[Finding]:
    """Whether rewards arrive for likely and for unlikely decisions as often as in the windows before."""
    return _rates(
        "reward rate by propensity",
        (now.propensity_decisions, now.propensity_rewarded),
        [(one.propensity_decisions, one.propensity_rewarded) for one in before],
        "rewards of explored decisions are treated differently from the others",
    )


def _rates(
    check: str,
    now: tuple[list[float], list[float]],
    before: Sequence[tuple[list[float], list[float]]],
    meaning: str,
) -> list[Finding]:
    reference = before[-REFERENCE_WINDOWS:]
    if len(reference) < MIN_REFERENCE_WINDOWS:
        return []
    size = max(len(values) for pair in (now, *reference) for values in pair)

    def padded(values: list[float]) -> np.ndarray:
        return np.pad(np.array(values, float), (0, size - len(values)))

    n, k = padded(now[0]), padded(now[1])
    big_n, big_k = (np.sum([padded(pair[index]) for pair in reference], axis=0) for index in (0, 1))
    pooled = np.divide(k + big_k, n + big_n, out=np.zeros(size), where=n + big_n > 0)
    few = (n * np.minimum(pooled, 1 - pooled) < 3) | (big_n * np.minimum(pooled, 1 - pooled) < 3)
    groups = [(n[~few], k[~few], big_n[~few], big_k[~few])]
    groups.append(tuple(np.array([values[few].sum()]) for values in (n, k, big_n, big_k)))  # type: ignore[arg-type]
    n, k, big_n, big_k = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    usable = (n > 0) & (big_n > 0)
    n, k, big_n, big_k = n[usable], k[usable], big_n[usable], big_k[usable]
    pooled = (k + big_k) / (n + big_n)
    variance = pooled * (1 - pooled) * (1 / n + 1 / big_n)
    difference = k / n - big_k / big_n
    squares = np.divide(difference**2, variance, out=np.zeros_like(variance), where=variance > 0)
    statistic, threshold = float(squares.sum()), float(stats.chi2.isf(LEVEL, max(len(squares), 1)))
    effect = float(np.average(np.abs(difference), weights=n)) if len(n) else 0.0
    return [
        Finding(
            check=check,
            kind="contradiction",
            alarm=statistic > threshold and effect > 0.03,
            statistic=statistic,
            threshold=threshold,
            fact=f"chi-square {statistic:.1f} over {len(squares)} groups, rates differ by {effect:.1%} on average",
            meaning=meaning,
        )
    ]


def reward_delays(now: Evidence, before: Sequence[Evidence]) -> list[Finding]:
    """Kolmogorov-Smirnov distance of the delays from those of the windows before, in bins (which is conservative)."""
    reference = before[-REFERENCE_WINDOWS:]
    total = np.sum([one.delays for one in reference if one.delays], axis=0) if len(reference) else np.zeros(0)
    n, m = float(np.sum(now.delays)), float(np.sum(total))
    if len(reference) < MIN_REFERENCE_WINDOWS or not n or not m:
        return []
    distance = float(np.abs(np.cumsum(now.delays) / n - np.cumsum(total) / m).max())
    bound = math.sqrt(-math.log(LEVEL / 2) / 2 * (n + m) / (n * m))
    threshold = max(bound, 0.2)
    return [
        Finding(
            check="reward delay",
            kind="contradiction",
            alarm=distance > threshold,
            statistic=distance,
            threshold=threshold,
            fact=f"the distribution of delays moved by {distance:.0%}",
            meaning="the times of rewards were shifted, or the clocks of two machines differ",
        )
    ]


def observations_drift(now: Evidence, before: Sequence[Evidence]) -> list[Finding]:
    """How far the means of the observations moved from those of the windows before, in standard deviations."""
    reference = [one for one in before[-REFERENCE_WINDOWS:] if len(one.observation) == len(now.observation)]
    if not reference or not now.decisions:
        return []
    n, total = sum(one.decisions for one in reference), np.sum([one.observation for one in reference], axis=0)
    mean = total / n
    spread = np.sqrt(np.maximum(np.sum([one.observation_squares for one in reference], axis=0) / n - mean**2, 1e-12))
    shift = float(np.abs((np.array(now.observation) / now.decisions - mean) / spread).max())
    return [
        Finding(
            check="observations",
            kind="warning",
            alarm=shift > 0.25,
            statistic=shift,
            threshold=0.25,
            fact=f"the mean of one number moved by {shift:.2f} standard deviations",
            meaning="other viewers came, or the observation is computed differently",
        )
    ]


def arm_shares(now: Evidence, before: Sequence[Evidence]) -> list[Finding]:
    """Whether one action took over."""
    taken = np.array(now.taken)
    share = float(taken.max() / taken.sum()) if taken.sum() else 0.0
    return [
        Finding(
            check="largest share of an action",
            kind="warning",
            alarm=share > 0.9 and len(taken) > 1 and len(before) > 0,
            statistic=share,
            threshold=0.9,
            fact=f"action {int(taken.argmax()) if len(taken) else 0} took {share:.0%} of the decisions",
            meaning="the policy stopped exploring, or one action looks best to everyone",
        )
    ]


CHECKS: tuple[Check, ...] = (
    replay_differs,
    actions_fit_propensities,
    actions_fit_over_time,
    inverse_propensity,
    times_fit,
    ids_fit,
    sample_ratio,
    rewards_by_action,
    rewards_by_propensity,
    rewards_by_version,
    reward_delays,
    predictions,
    calibration,
    observations_drift,
    arm_shares,
)


# They compare whether rewards arrive. That says nothing about the log where silence is an answer: then a policy that learns
# gets more of them.
OF_RATES: tuple[Check, ...] = (rewards_by_action, rewards_by_propensity, rewards_by_version)
# They compare how rewards arrive. Where a run was interrupted, rewards are missing for a known reason.
OF_ARRIVAL: tuple[Check, ...] = (*OF_RATES, reward_delays)


def run(
    now: Evidence, before: Sequence[Evidence], interrupted: bool = False, silence_counts: bool = False
) -> list[Finding]:
    """All findings on a window.

    Args:
      now: the window's evidence.
      before: of the accepted windows before it, oldest first.
      interrupted: whether an interruption cut the window short, with rewards that were still on their way.
      silence_counts: whether silence is an answer, worth the default reward.
    """
    left_out = (*(OF_ARRIVAL if interrupted else ()), *(OF_RATES if silence_counts else ()))
    return [finding for check in CHECKS if check not in left_out for finding in check(now, before)]
