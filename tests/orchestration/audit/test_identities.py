"""Ids and times."""

import pytest

from orchestration.audit.evidence import Evidence
from orchestration.audit.identities import ids_fit, times_fit

USUAL = Evidence(decisions=2_000, duplicates=10, out_of_order=2, early_rewards=1)


@pytest.mark.parametrize(
    ("fields", "check", "kind"),
    [
        ({"conflicting": 1}, "ids of different decisions", "contradiction"),
        ({"duplicates": 150}, "duplicate ids", "warning"),
        ({"out_of_order": 60}, "order of ids", "warning"),
        ({"times_differ": 1}, "decision times", "contradiction"),
        ({"early_rewards": 40}, "rewards before decisions", "contradiction"),
    ],
)
def test_each_fault_is_found(fields: dict[str, int], check: str, kind: str) -> None:
    before = [USUAL] * 5
    now = Evidence(decisions=2_000, **fields)
    found = [finding for finding in (*ids_fit(now, before), *times_fit(now, before)) if finding.alarm]
    assert [(finding.check, finding.kind) for finding in found] == [(check, kind)]


def test_what_is_usual_is_no_alarm() -> None:
    often = Evidence(decisions=2_000, duplicates=300)
    assert not any(finding.alarm for finding in (*ids_fit(USUAL, []), *times_fit(USUAL, [])))
    assert not any(finding.alarm for finding in ids_fit(often, [often] * 5))
