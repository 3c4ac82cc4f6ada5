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
        alarms(predictions(evidence(rng, permuted=True), history))
    )
    assert "prediction: residual" in alarms(predictions(evidence(rng, scale=0.5), history))


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
    now = evidence(np.random.default_rng(6), permuted=True)
    assert predictions(now, history[:1]) == []
    now.versions["v"].judged = 50
    assert predictions(now, history) == []
