"""Holds and releases live learning: `<live>/control.json`, and every change of it in `<live>/control.jsonl`.

    hold       the predictors serve the base, and nothing is published. With `anchor_alone` the base gives way to the anchor,
               where there is one: an alarm says that what was learned lately may be wrong.
    release    live learning goes on

Several processes change it: the loop or a pipeline after an audit, the watch at an alarm, and a person. A lock puts their
changes in an order, and the first reason of a hold stands.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from contracts import live_versions
from contracts.live_versions import CONTROL_NAME, Control
from orchestration.places import append_line, replace_file, whole_lines

HISTORY_NAME = "control.jsonl"
LOCK_NAME = ".control.lock"
NEVER_CHANGED = Control(changed_at=datetime.fromtimestamp(0, UTC))


def read(live: Path) -> Control:
    """The current state. Raises InputError when the file cannot be read."""
    path = live / CONTROL_NAME
    return live_versions.decode_control(path.read_bytes(), str(path)) if path.is_file() else NEVER_CHANGED


def hold(live: Path, reason: str, now: datetime, anchor_alone: bool = False) -> bool:
    """Holds live learning; returns whether it was not held before.

    A hold that lets the anchor decide alone does so also where live learning is held already.
    """
    with _locked(live):
        before = read(live)
        if before.held and before.anchor_alone >= anchor_alone:
            return False
        reason = reason if anchor_alone or not before.held else before.reason
        changed = msgspec.structs.replace(before, held=True, reason=reason, changed_at=now, anchor_alone=anchor_alone)
        _write(live, changed)
        return not before.held


def release(live: Path, reason: str, now: datetime) -> bool:
    """Lets live learning go on; returns whether it was held."""
    with _locked(live):
        before = read(live)
        if not before.held:
            return False
        _write(live, msgspec.structs.replace(before, held=False, reason=reason, changed_at=now, anchor_alone=False))
        return True


def refuse(live: Path, windows: list[datetime], now: datetime) -> None:
    """Leaves the windows that start then out of what is learned."""
    with _locked(live):
        before = read(live)
        if before.refused != windows:
            _write(live, msgspec.structs.replace(before, refused=windows, changed_at=now))


def holds(live: Path) -> int:
    """How often live learning was held."""
    past = [live_versions.decode_control(line, HISTORY_NAME).held for line in whole_lines(live / HISTORY_NAME)]
    return sum(held and not before for before, held in zip([False, *past], past, strict=False))


def _write(live: Path, control: Control) -> None:
    replace_file(live / CONTROL_NAME, msgspec.json.encode(control))
    append_line(live / HISTORY_NAME, msgspec.json.encode(control))


@contextmanager
def _locked(live: Path) -> Iterator[None]:
    live.mkdir(parents=True, exist_ok=True)
    with (live / LOCK_NAME).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
