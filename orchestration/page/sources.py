"""What the parts of a loop write down, read again only when it has changed."""

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from contracts import items
from contracts.items import Item
from contracts.policies import CHAMPION_NAME, Champion, PolicyCard
from contracts.windows import MANIFEST_NAME, Manifest, decode_manifest
from orchestration import policy_store
from orchestration.audit import guard, window_audits
from orchestration.audit.guard import GuardState
from orchestration.audit.window_audits import WindowAudit
from orchestration.loop.run_folder import JournalEntry, RunFolder, Running
from orchestration.loop.settings import LoopSettings
from orchestration.places import whole_lines
from predictor import policy as serving

HEALTH_TIMEOUT_SECONDS = 1.0
CARDS_KEPT = 64

T = TypeVar("T")


class Sources:
    """The files below one root, and the health of its predictor."""

    def __init__(self, root: Path) -> None:
        self.folder = RunFolder(root)
        self._kept: dict[str, tuple[Any, Any]] = {}
        self._cards: dict[str, PolicyCard] = {}

    def settings(self) -> LoopSettings | None:
        """Of the run; None below a root that is not a run of the loop."""
        path = self.folder.settings_json
        return self._unless_same("settings", _stamp(path), lambda: self.folder.settings() if path.is_file() else None)

    def running(self) -> Running | None:
        """What the loop says of its run while it goes on."""
        path = self.folder.running
        return self._unless_same("running", _stamp(path), self.folder.read_running)

    def catalogue(self) -> list[Item]:
        """The items by action; empty while there is none."""
        path = self.folder.catalogue

        def read() -> list[Item]:
            return items.read(path) if path.is_file() else []

        return self._unless_same("catalogue", _stamp(path), read)

    def journal(self) -> list[JournalEntry]:
        """The finished windows."""
        return self._unless_same("journal", _stamp(self.folder.journal_jsonl), self.folder.journal)

    def champion(self) -> Champion | None:
        """The pointer to what serves."""
        store = self.folder.policies
        return self._unless_same("champion", _stamp(store / CHAMPION_NAME), lambda: policy_store.champion(store))

    def history(self) -> list[Champion]:
        """Every champion, oldest first."""
        store = self.folder.policies
        stamp = _stamp(store / policy_store.HISTORY_NAME), _stamp(store / CHAMPION_NAME)
        return self._unless_same("history", stamp, lambda: policy_store.history(store))

    def card(self, version: str) -> PolicyCard:
        """The card of a version. Raises InputError when it cannot be read."""
        if version not in self._cards:
            if len(self._cards) >= CARDS_KEPT:
                self._cards.pop(next(iter(self._cards)))
            self._cards[version] = serving.read_card(self.folder.policies / version)
        return self._cards[version]

    def audits(self) -> list[WindowAudit]:
        """What the audits of the windows found, oldest window first."""
        folder = self.folder.audit
        files = sorted((path.name, _stamp(path)) for path in folder.glob("window=*.json"))
        return self._unless_same("audits", files, lambda: window_audits.read_all(folder))

    def guard(self) -> GuardState | None:
        """Whether the loop is held; None while it never was."""
        return self._unless_same("guard", _stamp(self.folder.guard), lambda: guard.state(self.folder.root))

    def guard_changes(self) -> list[GuardState]:
        """Every hold, release and acceptance."""
        path = self.folder.guard_history

        def read() -> list[GuardState]:
            return [msgspec.json.decode(line, type=GuardState) for line in whole_lines(path)]

        return self._unless_same("guard changes", _stamp(path), read)

    def manifest(self, entry: JournalEntry) -> Manifest | None:
        """The counts of a finished window; None when it was removed."""
        path = self.folder.windows / entry.window.folder / MANIFEST_NAME

        def read() -> Manifest | None:
            return decode_manifest(path.read_bytes(), str(path)) if path.is_file() else None

        return self._unless_same("manifest", (path, _stamp(path)), read)

    def health(self) -> dict[str, Any] | None:
        """What the predictor says of itself; None when it is not up."""
        running = self.running()
        if running is None or running.predictor is None:
            return None
        try:
            with urllib.request.urlopen(f"{running.predictor}/health", timeout=HEALTH_TIMEOUT_SECONDS) as answer:
                found: dict[str, Any] = msgspec.json.decode(answer.read())
                return found
        except (OSError, msgspec.DecodeError):
            return None

    def _unless_same(self, name: str, stamp: Any, read: Callable[[], T]) -> T:
        """What `read` returned when the stamp last differed."""
        kept = self._kept.get(name)
        if kept is None or kept[0] != stamp:
            kept = self._kept[name] = stamp, read()
        return kept[1]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
