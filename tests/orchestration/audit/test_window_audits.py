"""What is kept of the audits."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from contracts.errors import InputError
from contracts.windows import TrainingWindow
from orchestration.audit import window_audits
from orchestration.audit.evidence import Evidence
from orchestration.audit.findings import Finding
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


def alarm(check: str) -> Finding:
    return Finding(check=check, kind="contradiction", alarm=True, statistic=1.0, threshold=0.0, fact="f", meaning="m")


def revised(*checks: str, accepted: bool = False, released: bool = False, revision: int = 1) -> WindowAudit:
    return msgspec.structs.replace(
        audit(0, f"of revision {revision}"),
        accepted=accepted,
        released=released,
        revision=revision,
        findings=[alarm(check) for check in checks],
    )


def test_what_was_decided_about_a_window_stands_unless_its_revision_shows_a_new_alarm() -> None:
    def earlier(*checks: str, accepted: bool = False, released: bool = False) -> WindowAudit:
        return revised(*checks, accepted=accepted, released=released, revision=0)

    def decided(found: WindowAudit) -> tuple[bool, bool, int]:
        assert found.revision == 1
        return found.accepted, found.released, int(found.reason.split()[-1])

    same, more, clean = revised("a"), revised("a", "b"), revised(accepted=True)
    # A person accepted it, or released the loop after it.
    assert decided(same.after(earlier("a", accepted=True))) == (True, False, 0)
    assert decided(same.after(earlier("a", released=True))) == (False, True, 0)
    assert decided(more.after(earlier("a", accepted=True))) == (False, False, 1)
    assert decided(more.after(earlier("a", released=True))) == (False, False, 1)
    # The late rows end an alarm, but not what has another reason.
    assert decided(clean.after(earlier("a"))) == (True, False, 1)
    assert decided(clean.after(earlier(released=True))) == (False, True, 0)
    assert clean.name == f"{clean.window.folder}.r1" and clean.after(earlier("a")).name == clean.name
    assert earlier().name == clean.window.folder


def test_a_file_that_is_no_audit_is_named(tmp_path: Path) -> None:
    window = TrainingWindow(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
    (tmp_path / f"{window.folder}.json").write_text("{}")
    with pytest.raises(InputError, match=r"window=.*\.json: not a window audit"):
        window_audits.read(tmp_path, window)


def test_reading_needs_no_beam() -> None:
    """A page that only shows what was found would take seconds longer to start."""
    script = "import sys; from orchestration.audit import guard, window_audits; sys.exit('apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
