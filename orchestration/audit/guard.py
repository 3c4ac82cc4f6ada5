"""The guard: audits each window before anything is trained on it, and holds the loop when the log is wrong.

    hold       nothing is trained or promoted; the champion serves. If the champion was trained on a window that is now
               refused, the last version serves that was not.
    release    training goes on, without the refused windows
    accept     a refused window counts as good after all

The state is `<root>/guard.json`; `<root>/guard.jsonl` holds every change of it.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from contracts.command_line import parse_time
from contracts.errors import InputError
from contracts.windows import TrainingWindow
from orchestration import policy_store
from orchestration.audit import window_audits
from orchestration.audit.settings import GuardSettings
from orchestration.audit.window_audits import WindowAudit
from orchestration.places import Places, append_line, replace_file
from predictor import policy as serving

if TYPE_CHECKING:
    from orchestration.audit.auditor import Auditor


class GuardState(msgspec.Struct, frozen=True, kw_only=True):
    """`guard.json`: whether the loop is held, since when, and why."""

    held: bool
    changed_at: datetime
    verb: Literal["hold", "release", "accept"]
    reason: str
    window: TrainingWindow | None = None  # in which it was noticed
    began: TrainingWindow | None = None  # in which it began
    rolled_back_to: str | None = None  # the version that serves since


class Guard:
    """Watches the windows below one root."""

    def __init__(self, places: Places, audit: "Auditor", settings: GuardSettings) -> None:
        self._places = places
        self._auditor = audit
        self._settings = settings

    def check(self, window: TrainingWindow, now: datetime, interrupted: bool = False, revision: int = 0) -> WindowAudit:
        """Audits a revision of an exported window, and holds the loop if it is refused. Returns the audit.

        Windows before it in which the change began are refused as well, and the champion is rolled back if it was trained
        on any of them. A refused window that the loop was released after holds nothing again.

        Args:
          window: the exported window.
          now: the time of the change, for the record.
          interrupted: whether the window was cut short, with rewards still on their way.
          revision: the newest one of the window.
        """
        audit = self._auditor.audit(window, interrupted, revision)
        if not (audit.accepted or audit.released):
            needed = self._settings.accept_consistent_after
            if needed and self._consistent_windows() >= needed:
                self._accept_consistent(now)
            else:
                self._refuse_since(audit)
                self._hold(audit, now)
        return window_audits.read(self._places.audit, window) or audit  # a rule may have accepted it

    def _refuse_since(self, audit: WindowAudit) -> None:
        earlier = [
            one for one in window_audits.read_all(self._places.audit) if one.window < audit.window and one.accepted
        ]
        for one in earlier[len(earlier) - audit.began :]:
            reason = f"what was noticed in {audit.name} began here"
            window_audits.write(self._places.audit, msgspec.structs.replace(one, accepted=False, reason=reason))

    def _hold(self, audit: WindowAudit, now: datetime) -> None:
        refused = [one.window for one in window_audits.read_all(self._places.audit) if not one.accepted]
        rolled_back_to = roll_back_before(self._places.policies, refused, audit.reason, now)
        before = state(self._places.root)
        if before is not None and before.held and rolled_back_to is None:
            return  # held already; the first reason stands
        noticed = [window for window in refused if window <= audit.window][-1 - audit.began :]
        _change(
            self._places.root,
            GuardState(
                held=True,
                changed_at=now,
                verb="hold",
                reason=audit.reason,
                window=audit.window,
                began=noticed[0],
                rolled_back_to=rolled_back_to,
            ),
        )

    def _consistent_windows(self) -> int:
        """How many of the newest windows in a row were refused for a consistent change."""
        count = 0
        for one in reversed(window_audits.read_all(self._places.audit)):
            if one.accepted or one.examination != "consistent":
                break
            count += 1
        return count

    def _accept_consistent(self, now: datetime) -> None:
        """Accepts the refused windows since the last accepted one, and releases the loop."""
        reason = f"consistent for {self._consistent_windows()} window(s) (--accept-consistent-after)"
        for one in reversed(window_audits.read_all(self._places.audit)):
            if one.accepted:
                break
            accept(self._places, one.window, reason, now)
        if is_held(self._places.root):
            release(self._places, reason, now)


def state(root: Path) -> GuardState | None:
    """The guard's state; None while it never held. Raises InputError when the file cannot be read."""
    path = root / "guard.json"
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=GuardState)
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: {error}") from None


def is_held(root: Path) -> bool:
    """Whether the loop below `root` is held."""
    found = state(root)
    return found is not None and found.held


def hold(places: Places, reason: str, now: datetime) -> GuardState:
    """Holds the loop by hand: nothing is trained or promoted until it is released. Raises InputError when it is held."""
    if is_held(places.root):
        raise InputError(f"{places.root}: is held already")
    return _change(places.root, GuardState(held=True, changed_at=now, verb="hold", reason=reason))


def release(places: Places, reason: str, now: datetime) -> GuardState:
    """Ends a hold: training goes on without the refused windows. Raises InputError when nothing is held."""
    found = state(places.root)
    if found is None or not found.held:
        raise InputError(f"{places.root}: nothing is held")
    for one in window_audits.read_all(places.audit):
        if not (one.accepted or one.released):
            window_audits.write(places.audit, msgspec.structs.replace(one, released=True))
    return _change(places.root, GuardState(held=False, changed_at=now, verb="release", reason=reason))


def accept(places: Places, window: TrainingWindow, reason: str, now: datetime) -> WindowAudit:
    """Counts a refused window as good. The loop stays held until it is released. Raises InputError without such a window."""
    audit = window_audits.read(places.audit, window)
    if audit is None or audit.accepted:
        known = [one.window.folder for one in window_audits.read_all(places.audit) if not one.accepted]
        raise InputError(
            f"--accept: a refused window expected, got {window.folder}; refused are: {', '.join(known) or 'none'}"
        )
    accepted = msgspec.structs.replace(audit, accepted=True, reason=reason)
    window_audits.write(places.audit, accepted)
    held = is_held(places.root)
    _change(places.root, GuardState(held=held, changed_at=now, verb="accept", reason=reason, window=window))
    return accepted


def set_aside(places: Places, windows: Sequence[TrainingWindow], reason: str) -> None:
    """Keeps windows from being trained on, without holding the loop. A person can accept them again."""
    for window in windows:
        audit = window_audits.read(places.audit, window)
        if audit is not None and audit.accepted:
            set_aside = msgspec.structs.replace(audit, accepted=False, released=True, reason=reason)
            window_audits.write(places.audit, set_aside)


def refused_windows(places: Places) -> list[datetime]:
    """The starts of the windows that may not be trained on."""
    return [one.window.start for one in window_audits.read_all(places.audit) if not one.accepted]


def find_window(places: Places, text: str) -> TrainingWindow:
    """The audited window that `text` names, by its folder or its start. Raises InputError."""
    audits = window_audits.read_all(places.audit)
    for one in audits:
        if text in (one.window.folder, one.window.folder.removeprefix("window=")):
            return one.window
    start = parse_time(text, "--accept")
    for one in audits:
        if one.window.start == start:
            return one.window
    raise InputError(f"--accept: no audited window starts at {start.isoformat()}")


def roll_back_before(store: Path, refused: list[TrainingWindow], reason: str, now: datetime) -> str | None:
    """Rolls the champion back until it was trained on none of the `refused` windows. Returns the version that serves then.

    None when the champion is clean. When every version was trained on a refused window, the first one serves.
    """
    champion = policy_store.champion(store)
    starts = {window.start for window in refused}

    def tainted(version: str) -> bool:
        card = serving.read_card(store / version)
        return any(trained.window.start in starts for trained in card.trained_on)

    if champion is None or not tainted(champion.version):
        return None
    while tainted(champion.version):
        try:
            champion = policy_store.roll_back(store, f"guard: {reason}", now)
        except InputError:  # no version before it
            break
    return champion.version


def _change(root: Path, new: GuardState) -> GuardState:
    replace_file(root / "guard.json", msgspec.json.format(msgspec.json.encode(new), indent=2) + b"\n")
    append_line(root / "guard.jsonl", msgspec.json.encode(new))
    return new
