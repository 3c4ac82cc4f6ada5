"""What is kept of the audits: a file per window, `<root>/audit/<window>.json`, which later windows are compared with.

Apart from the auditor, which needs Beam: a reader of what was found does without.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from contracts import documents
from contracts.errors import InputError
from contracts.windows import TrainingWindow, revision_folder
from orchestration.audit.evidence import Evidence
from orchestration.audit.findings import Finding
from orchestration.places import replace_file

SCHEMA_VERSION = 1
Examination = Literal["consistent", "noise"]


class WindowAudit(msgspec.Struct, frozen=True, kw_only=True):
    """`<root>/audit/<window>.json`: the evidence of a window and what the checks found in it.

    `accepted`: the window may be trained on, and later windows are compared with it. A person can accept a window that
    the checks refused; `reason` says who or what decided.
    """

    schema_version: int = SCHEMA_VERSION
    window: TrainingWindow
    accepted: bool
    reason: str
    examination: Examination | None = None  # of a window with a break
    released: bool = False  # a person released the loop after it was refused: it holds nothing again
    findings: list[Finding]
    evidence: Evidence
    revision: int = 0  # of the window; a newer one's audit takes the place of an earlier one's

    @property
    def name(self) -> str:
        """The window and its revision, as the folder of its records is called."""
        return revision_folder(self.window, self.revision)

    def after(self, earlier: "WindowAudit") -> "WindowAudit":
        """This audit of a revision, where `earlier` is that of the revision before it.

        What was decided about the window stands, unless the revision shows an alarm that the earlier one did not: a person
        accepted it, or released the loop; or it was set aside without an alarm of its own. An alarm that the late rows end is
        forgotten.
        """
        shown = {finding.check for finding in earlier.alarms}
        if any(finding.check not in shown for finding in self.alarms):
            return self
        if self.alarms or not (earlier.accepted or shown):
            return msgspec.structs.replace(
                self, accepted=earlier.accepted, released=earlier.released, reason=earlier.reason
            )
        return self

    @property
    def alarms(self) -> list[Finding]:
        """The findings that hold the loop."""
        return [finding for finding in self.findings if finding.alarm and finding.kind != "warning"]

    @property
    def began(self) -> int:
        """How many windows before this one the earliest alarm began."""
        return max((finding.began for finding in self.alarms), default=0)


def read(folder: Path, window: TrainingWindow) -> WindowAudit | None:
    """The kept audit of `window`. Raises InputError for a file that is not one."""
    path = folder / f"{window.folder}.json"
    return _decode(path) if path.is_file() else None


def read_all(folder: Path) -> list[WindowAudit]:
    """The kept audits, oldest window first."""
    return sorted(_audits(folder), key=lambda audit: audit.window)


def write(folder: Path, audit: WindowAudit) -> None:
    """Keeps `audit`, in place of an earlier one of its window."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / f"{audit.window.folder}.json", documents.encode(audit))


def _audits(folder: Path) -> Iterator[WindowAudit]:
    for path in folder.glob("window=*.json"):
        yield _decode(path)


def _decode(path: Path) -> WindowAudit:
    try:
        return documents.decode(path.read_bytes(), WindowAudit, "window audit", str(path), SCHEMA_VERSION)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
