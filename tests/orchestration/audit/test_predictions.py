"""Breaks: rewards that stop meaning what the deciding versions predict."""

import numpy as np
import pytest

from orchestration.audit.evidence import Evidence
from orchestration.audit.findings import Finding
from orchestration.audit.predictions import predictions
from tests.orchestration.audit.windows import evidence


def alarms(findings: list[Finding]) -> list[str]:
    return [finding.check for finding in findings if finding.alarm]


@pytest.fixture(scope="module")
def history() -> list[Evidence]:
    rng = np.random.default_rng(2)
    return [evidence(rng) for _ in range(8)]


def test_a_break_is_found_in_its_first_window(history: list[Evidence]) -> None:
    rng = np.random.default_rng(4)
    assert {"prediction: squared error", "prediction: correlation"} <= set(
        alarms(predictions(evidence(rng, permuted=1.0), history))
    )
    assert "prediction: residual" in alarms(predictions(evidence(rng, scale=0.5), history))


@pytest.mark.parametrize("seed", range(5))
def test_a_policy_that_learns_does_not_hide_a_break(seed: int) -> None:
    """Its predictions become better from window to window, and these steps are not the noise between windows."""
    rng = np.random.default_rng(seed)
    before = [evidence(rng, noise=noise) for noise in (1.0, 0.7, 0.35)]
    assert not alarms(predictions(evidence(rng, noise=0.35), before))
    found = [one for one in predictions(evidence(rng, noise=0.35, permuted=0.5), before) if one.alarm]
    assert "prediction: correlation" in [one.check for one in found]
    assert {one.began for one in found} == {0}  # the windows before are not blamed


def test_a_slow_fall_is_found_and_dated(history: list[Evidence]) -> None:
    rng = np.random.default_rng(5)
    before = list(history)
    for number in range(1, 6):
        now = evidence(rng, scale=0.95**number)
        found = [finding for finding in predictions(now, before) if finding.alarm]
        if found:
            break
        before.append(now)
    assert [finding.check for finding in found] == ["prediction: residual"]
    assert 0 <= found[0].began <= number


def test_too_few_predictions_say_nothing(history: list[Evidence]) -> None:
    now = evidence(np.random.default_rng(6), permuted=1.0)
    assert predictions(now, history[:1]) == []
    now.versions["v"].judged = 50
    assert predictions(now, history) == []
