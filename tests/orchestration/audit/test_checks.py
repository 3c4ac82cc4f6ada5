"""The checks on evidence made up for them: quiet on a healthy log, and each loud on its own fault."""

import copy

import numpy as np
import pytest

from orchestration.audit import checks
from orchestration.audit.evidence import DELAY_BINS, Evidence, ShareEvidence
from orchestration.audit.findings import Finding
from tests.orchestration.audit.windows import ARMS, DECISIONS, evidence


def alarms(findings: list[Finding]) -> list[str]:
    return [finding.check for finding in findings if finding.alarm]


def shared(rng: np.random.Generator) -> Evidence:
    """A window in which an anchor made a tenth of the decisions, and its ids and events have their usual faults."""
    champion, anchor = evidence(rng), evidence(rng, decisions=DECISIONS // 10)
    anchor.versions["anchor"] = anchor.versions.pop("v")
    both = champion.merge(anchor)
    taken = int(rng.binomial(both.decisions, 0.1))
    share = ShareEvidence(decisions=both.decisions, taken=taken, expected=0.1 * both.decisions, compared=both.decisions)
    both.shares["anchor anchor beside v"] = share
    both.duplicates, both.early_rewards = rng.binomial(both.decisions, [0.01, 0.001]).tolist()
    both.out_of_order = int(rng.binomial(both.decisions, 0.002))
    return both


@pytest.mark.timeout(900)
def test_a_healthy_log_raises_no_alarm_in_3000_windows() -> None:
    """So the share of false alarms is below 1 in 1,000 windows, with a confidence of 95% (the rule of three)."""
    rng = np.random.default_rng(1)
    before: list[Evidence] = []
    checked: set[str] = set()
    for number in range(3_000):
        now = shared(rng)
        findings = checks.run(now, before)
        assert alarms(findings) == [], number
        checked |= {finding.check for finding in findings}
        before = [*before[-20:], now]
    assert len(checked) == 22


@pytest.fixture(scope="module")
def history() -> list[Evidence]:
    rng = np.random.default_rng(2)
    return [evidence(rng) for _ in range(8)]


def changed(**fields: object) -> Evidence:
    now = copy.deepcopy(evidence(np.random.default_rng(3)))
    for name, value in fields.items():
        target = now.versions["v"] if hasattr(now.versions["v"], name) and not hasattr(now, name) else now
        setattr(target, name, value)
    return now


@pytest.mark.parametrize(
    ("check", "kind", "fields"),
    [
        ("replayed propensity", "contradiction", {"propensity_differs": 1}),
        ("replayed action", "contradiction", {"action_differs": 1}),
        ("actions against probabilities", "contradiction", {"expected": [50.0] * ARMS, "taken_in_replay": [90.0] * 10 + [10.0] * 10}),
        ("actions against probabilities", "contradiction", {"expected": [50.0] * (ARMS - 1) + [0.0], "taken_in_replay": [50.0] * ARMS}),
        ("actions against probabilities, over time", "contradiction", {"bet": 250.0}),
        ("1 / propensity", "contradiction", {"inverse_propensity": 2.5 * ARMS * DECISIONS}),
        ("decision times", "contradiction", {"times_differ": 1}),
        ("rewards before decisions", "contradiction", {"early_rewards": 50}),
        ("reward rate by action", "contradiction", {"rewarded_by_action": [45.0, 0.0] * 10, "taken": [50.0] * ARMS}),
        ("reward rate by propensity", "contradiction", {"propensity_rewarded": [0.0, 810.0]}),
        ("reward delay", "contradiction", {"delays": [0.0] * (DELAY_BINS // 2) + [36.0] * (DELAY_BINS // 2)}),
        ("observations", "warning", {"observation": [0.0, 300.0, 0.0]}),
        ("largest share of an action", "warning", {"taken": [1.0, 999.0]}),
    ],
)  # fmt: skip
def test_each_fault_is_found(history: list[Evidence], check: str, kind: str, fields: dict[str, object]) -> None:
    findings = checks.run(changed(**fields), history)
    assert check in alarms(findings)
    [found] = [finding for finding in findings if finding.check == check]
    assert found.kind == kind
    assert found.fact and found.meaning
    assert check not in alarms(checks.run(changed(), history))


def test_how_rewards_arrive_is_not_compared_where_a_run_was_interrupted(history: list[Evidence]) -> None:
    now = changed(propensity_rewarded=[0.0, 810.0], propensity_differs=1)
    assert alarms(checks.run(now, history)) == ["replayed propensity", "reward rate by propensity"]
    assert alarms(checks.run(now, history, interrupted=True)) == ["replayed propensity"]


def test_reward_rates_are_not_compared_where_silence_is_an_answer(history: list[Evidence]) -> None:
    now = changed(propensity_rewarded=[0.0, 810.0])
    assert alarms(checks.run(now, history)) == ["reward rate by propensity"]
    assert alarms(checks.run(now, history, silence_counts=True)) == []


def test_without_a_history_only_contradictions_are_found() -> None:
    now = changed(propensity_differs=3)
    assert alarms(checks.run(now, [])) == ["replayed propensity"]
    assert alarms(checks.run(Evidence(), [])) == []
