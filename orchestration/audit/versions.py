"""The checks of versions that serve side by side: their shares of the decisions, and how often each is rewarded."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from orchestration.audit.evidence import Evidence, ShareEvidence
from orchestration.audit.findings import LEVEL, Finding

MIN_DECISIONS = 100  # of a version whose reward rate is compared
# The smallest difference of two versions' reward rates that holds the loop.
RATE_DIFFERENCE = 0.05
# The share of decisions on the wrong side that holds the loop: an id that was altered is another check's matter.
WRONG_SHARE = 0.001


def sample_ratio(now: Evidence, _: Sequence[Evidence]) -> list[Finding]:
    """Whether versions that shared the decisions made those that the pointer gave them: the count, and each by its id."""
    return [
        finding
        for pair, shares in now.shares.items()
        for finding in (_ratio(pair, shares), _sides(pair, shares))
        if shares.decisions
    ]


def _ratio(pair: str, shares: ShareEvidence) -> Finding:
    """Binomial, two-sided. Ids are random, so this holds however late a server followed the pointer."""
    share = min(shares.expected / shares.decisions, 1.0)
    tail = min(
        float(stats.binom.cdf(shares.taken, shares.decisions, share)),
        float(stats.binom.sf(shares.taken - 1, shares.decisions, share)),
    )
    return Finding(
        check="sample ratio",
        kind="contradiction",
        alarm=tail < LEVEL / 2,
        statistic=tail,
        threshold=LEVEL / 2,
        fact=f"{pair}: {shares.taken} of {shares.decisions} decisions fall to it by their ids, {shares.expected:.0f}"
        f" expected; the probability of that is {2 * tail:.2g} (it alarms below the threshold)",
        meaning="decisions of one of the two versions were lost, or its requests come from other viewers",
    )


def _sides(pair: str, shares: ShareEvidence) -> Finding:
    """Each decision's id says which of the two versions makes it."""
    wrong = shares.wrong_beside + shares.wrong_serving
    allowed = WRONG_SHARE * shares.compared
    # A server that could load one of the two versions lets it make all decisions: that is no fault of the log.
    both = min(shares.wrong_beside, shares.wrong_serving) > allowed / 2
    return Finding(
        check="sides of the sample",
        kind="contradiction" if both else "warning",
        alarm=wrong > allowed,
        statistic=wrong,
        threshold=allowed,
        fact=f"{pair}: {wrong} of {shares.compared} decisions were made by the version that their id does not fall to",
        meaning="the versions are mixed up in the log"
        if both
        else "a server could not load one of the two versions, or logs another version than decides",
    )


def rewards_by_version(now: Evidence, _: Sequence[Evidence]) -> list[Finding]:
    """Whether the decisions of one version are rewarded as often as those of the others in the window: chi-square.

    Only versions that ever were the champion are compared: a bad candidate of a canary is no fault of the log.
    """
    chosen = {version: one for version, one in now.versions.items() if one.judged and one.decisions >= MIN_DECISIONS}
    if len(chosen) < 2:
        return []
    n = np.array([one.decisions for one in chosen.values()], float)
    k = np.array([one.rewarded for one in chosen.values()], float)
    pooled = k.sum() / n.sum()
    statistic = float(((k - n * pooled) ** 2 / (n * pooled * (1 - pooled))).sum()) if 0 < pooled < 1 else 0.0
    threshold = float(stats.chi2.isf(LEVEL, len(chosen) - 1))
    rates = dict(zip(chosen, (k / n).tolist(), strict=True))
    least, most = min(rates, key=rates.__getitem__), max(rates, key=rates.__getitem__)
    return [
        Finding(
            check="reward rate by version",
            kind="contradiction",
            alarm=statistic > threshold and rates[most] - rates[least] > RATE_DIFFERENCE,
            statistic=statistic,
            threshold=threshold,
            fact=f"{rates[least]:.1%} of the decisions of {least} have a reward, {rates[most]:.1%} of those of {most}",
            meaning="rewards of one version got lost, or viewers stopped answering for it",
        )
    ]
