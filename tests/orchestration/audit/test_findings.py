"""The level of all checks together."""

from orchestration.audit.checks import CHECKS
from orchestration.audit.findings import LEVEL


def test_all_checks_together_keep_their_budget() -> None:
    """A check may return up to three findings, each with its own false alarms: still fewer than one in 1,000 windows."""
    assert 3 * len(CHECKS) * LEVEL < 1e-3
