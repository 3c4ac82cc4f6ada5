"""What is kept of the audits."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from contracts.errors import InputError
from contracts.windows import TrainingWindow
from orchestration.audit import window_audits
from orchestration.audit.evidence import Evidence
from orchestration.audit.window_audits import WindowAudit

START = datetime(2026, 1, 1, tzinfo=UTC)


def audit(number: int, reason: str = "") -> WindowAudit:
    window = TrainingWindow(START + timedelta(hours=number), START + timedelta(hours=number + 1))
    return WindowAudit(window=window, accepted=True, reason=reason, findings=[], evidence=Evidence())


def test_audits_are_read_in_the_order_of_their_windows_and_the_last_one_written_counts(tmp_path: Path) -> None:
    for one in (audit(2), audit(0), audit(1), audit(0, "again")):
        window_audits.write(tmp_path / "audit", one)
    kept = window_audits.read_all(tmp_path / "audit")
    assert kept == [audit(0, "again"), audit(1), audit(2)]
    assert window_audits.read(tmp_path / "audit", audit(1).window) == audit(1)
    assert window_audits.read(tmp_path / "audit", audit(3).window) is None


def test_a_file_that_is_no_audit_is_named(tmp_path: Path) -> None:
    window = TrainingWindow(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
    (tmp_path / f"{window.folder}.json").write_text("{}")
    with pytest.raises(InputError, match=r"window=.*\.json: not a window audit"):
        window_audits.read(tmp_path, window)


def test_reading_needs_no_beam() -> None:
    """A page that only shows what was found would take seconds longer to start."""
    script = "import sys; from orchestration.audit import guard, window_audits; sys.exit('apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
