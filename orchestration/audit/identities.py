"""The checks of identities and times: ids carry the time they were made, belong to one decision, and come before rewards."""

from collections.abc import Sequence

from scipy import stats

from orchestration.audit.evidence import Evidence
from orchestration.audit.findings import LEVEL, REFERENCE_WINDOWS, Finding

# Shares that are usual where there is nothing to compare with, or less was seen.
USUAL_DUPLICATES = 0.02
USUAL_OUT_OF_ORDER = 0.005
USUAL_EARLY_REWARDS = 0.0025


def times_fit(now: Evidence, before: Sequence[Evidence]) -> list[Finding]:
    """Ids carry the time they were made; rewards come after their decisions."""
    findings = [
        Finding(
            check="decision times",
            kind="contradiction",
            alarm=now.times_differ > 0,
            statistic=now.times_differ,
            threshold=0,
            fact=f"{now.times_differ} of {now.decisions} decisions carry another time than their id",
            meaning="`decided_at` was rewritten on the way",
        )
    ]
    allowed = _allowed(now, before, "early_rewards", USUAL_EARLY_REWARDS)
    findings.append(
        Finding(
            check="rewards before decisions",
            kind="contradiction",
            alarm=now.early_rewards > allowed,
            statistic=now.early_rewards,
            threshold=allowed,
            fact=f"{now.early_rewards} rewards occurred before their decision",
            meaning="the times of rewards were shifted, or they belong to other decisions",
        )
    )
    return findings


def ids_fit(now: Evidence, before: Sequence[Evidence]) -> list[Finding]:
    """An id belongs to one decision, is seldom delivered twice, and sorts by time."""
    findings = [
        Finding(
            check="ids of different decisions",
            kind="contradiction",
            alarm=now.conflicting > 0,
            statistic=now.conflicting,
            threshold=0,
            fact=f"{now.conflicting} ids were logged for different decisions",
            meaning="rows were changed and delivered again, or two servers make the same ids",
        )
    ]
    for check, name, usual, what, meaning in (
        (
            "duplicate ids",
            "duplicates",
            USUAL_DUPLICATES,
            "decisions came again",
            "events are delivered again, or an ingestion ran twice; each decision counts once",
        ),
        (
            "order of ids",
            "out_of_order",
            USUAL_OUT_OF_ORDER,
            "decisions were made at another millisecond than their id",
            "ids and `decided_at` come from different clocks, so that sorting by id does not sort by time",
        ),
    ):
        count, allowed = getattr(now, name), _allowed(now, before, name, usual)
        findings.append(
            Finding(
                check=check,
                kind="warning",
                alarm=count > allowed,
                statistic=count,
                threshold=allowed,
                fact=f"{count} of {now.decisions} {what}",
                meaning=meaning,
            )
        )
    return findings


def _allowed(now: Evidence, before: Sequence[Evidence], name: str, usual: float) -> int:
    """The count that twice the share of the windows before, and at least twice the `usual` one, exceeds by chance."""
    reference = before[-REFERENCE_WINDOWS:]
    seen = sum(getattr(one, name) for one in reference) / max(sum(one.decisions for one in reference), 1)
    return int(stats.binom.isf(LEVEL, max(now.decisions, 1), min(2 * max(seen, usual), 1.0)))
