"""Calibration by decile: quiet on a healthy log, loud where rewards of one size changed."""

import numpy as np

from orchestration.audit.calibration import calibration
from orchestration.audit.evidence import Evidence, VersionEvidence, calibration_sums

DECISIONS = 2_000


def window(rng: np.random.Generator, *, cap: float = np.inf, overrates: float = 0.1, version: str = "v") -> Evidence:
    """Predictions of 3 +- 1, which overrate; rewards above `cap` are cut."""
    predicted = rng.normal(3, 1, DECISIONS)
    reward = np.minimum(predicted - overrates + rng.normal(0, 0.5, DECISIONS), cap)
    own = VersionEvidence(decisions=DECISIONS, judged=DECISIONS, calibration=calibration_sums(predicted, reward))
    return Evidence(decisions=DECISIONS, versions={version: own})


def test_calibration_is_quiet_while_a_policy_overrates_as_before() -> None:
    rng = np.random.default_rng(0)
    before: list[Evidence] = []
    for _ in range(200):
        now = window(rng)
        assert not any(finding.alarm for finding in calibration(now, before))
        before = [*before[-5:], now]


def test_cut_rewards_show_in_the_top_decile() -> None:
    rng = np.random.default_rng(1)
    before = [window(rng) for _ in range(4)]
    [found] = calibration(window(rng, cap=3.5), before)
    assert found.alarm and found.kind == "break"
    assert found.fact.startswith("decile 10 of v: rewards 3.")


def test_a_policy_that_overrates_less_than_before_is_no_alarm() -> None:
    rng = np.random.default_rng(2)
    before = [window(rng, overrates=1.0) for _ in range(4)]
    [found] = calibration(window(rng, overrates=0.0), before)
    assert not found.alarm


def test_versions_are_judged_one_by_one() -> None:
    rng = np.random.default_rng(3)
    before = [window(rng) for _ in range(4)]
    both = window(rng).merge(window(rng, cap=3.5, version="w"))
    assert [(one.fact.split()[3], one.alarm) for one in calibration(both, before)] == [("v:", False), ("w:", True)]


def test_a_short_history_and_few_decisions_say_nothing() -> None:
    rng = np.random.default_rng(4)
    now = window(rng)
    assert calibration(now, [window(rng)]) == []
    now.versions["v"].judged = 50
    assert calibration(now, [window(rng) for _ in range(3)]) == []
