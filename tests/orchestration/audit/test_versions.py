"""Versions that serve side by side."""

import numpy as np
import pytest

from orchestration.audit.evidence import Evidence, ShareEvidence, VersionEvidence
from orchestration.audit.versions import rewards_by_version, sample_ratio


def shared(**fields: int) -> Evidence:
    return Evidence(
        shares={"anchor a beside b": ShareEvidence(decisions=2_000, expected=200.0, compared=2_000, **fields)}
    )


@pytest.mark.parametrize(
    ("fields", "alarms"),
    [
        ({"taken": 210}, []),
        ({"taken": 110}, [("sample ratio", "contradiction")]),
        ({"taken": 290}, [("sample ratio", "contradiction")]),
        ({"taken": 200, "wrong_beside": 20, "wrong_serving": 20}, [("sides of the sample", "contradiction")]),
        ({"taken": 200, "wrong_beside": 1_800}, [("sides of the sample", "warning")]),
        ({"taken": 200, "wrong_serving": 1}, []),
    ],
)
def test_the_sample_ratio(fields: dict[str, int], alarms: list[tuple[str, str]]) -> None:
    found = sample_ratio(shared(**fields), [])
    assert [(finding.check, finding.kind) for finding in found if finding.alarm] == alarms


def test_the_sample_ratio_is_quiet_by_chance() -> None:
    rng = np.random.default_rng(0)
    for taken in rng.binomial(2_000, 0.1, 2_000).tolist():
        assert not any(finding.alarm for finding in sample_ratio(shared(taken=taken), []))


def test_no_share_no_ratio() -> None:
    assert sample_ratio(Evidence(decisions=100), []) == []


def versions(**rewarded: int) -> Evidence:
    return Evidence(
        versions={
            name: VersionEvidence(decisions=1_000, rewarded=count, judged=count) for name, count in rewarded.items()
        }
    )


def test_rewards_by_version() -> None:
    assert not rewards_by_version(versions(a=950, b=940), [])[0].alarm
    [found] = rewards_by_version(versions(a=950, b=700), [])
    assert found.alarm and "70.0% of the decisions of b" in found.fact
    assert rewards_by_version(versions(a=950), []) == []
    bad_canary = versions(a=950, b=700)
    bad_canary.versions["b"].judged = 0  # it never was the champion
    assert rewards_by_version(bad_canary, []) == []
