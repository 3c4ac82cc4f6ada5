"""The policy store: a folder of policies, the pointer to the champion, and the history of champions.

`champion.json` names the policy that serves, and what takes a share of the decisions beside it. `history.jsonl` holds one
line for every champion, `pointers.jsonl` one for every change of `champion.json`; if the process died while it wrote the
last line, that line is ignored, and the next write removes it.
"""

from datetime import datetime
from pathlib import Path

import msgspec

from contracts import policies
from contracts.errors import InputError
from contracts.policies import Champion, SharedBy
from contracts.records import Timestamp
from orchestration.places import append_line, replace_file, whole_lines
from predictor import policy as serving

HISTORY_NAME = "history.jsonl"
POINTERS_NAME = "pointers.jsonl"


class PointerChange(msgspec.Struct, frozen=True):
    """A line of `pointers.jsonl`: what the pointer became, and when."""

    at: Timestamp
    pointer: Champion


def champion(store: Path) -> Champion | None:
    """The champion of the policy store; None when the store has none. Raises InputError when it cannot be read."""
    path = store / policies.CHAMPION_NAME
    return policies.decode_champion(path.read_bytes(), str(path)) if path.is_file() else None


def roll_out(
    store: Path,
    version: str,
    reason: str,
    now: datetime,
    anchor_share: float = 0.0,
    shared_by: SharedBy = "ids",
) -> Champion:
    """Makes `version` the champion, and returns it. Changes nothing when it is the champion already.

    With `anchor_share`, it is on probation: the anchor, which is the champion before it or that one's anchor, keeps this
    share of the decisions, which are picked as `shared_by` says. The first champion has no anchor.

    Raises InputError when the store has no such version, or when the policy cannot be loaded. Then nothing has changed.
    """
    before = champion(store)
    pointer = Champion(version=version, previous=before.version if before else None, promoted_at=now, reason=reason)
    if before is not None and anchor_share:
        pointer = msgspec.structs.replace(
            pointer,
            mode="probation",
            anchor=before.anchor or before.version,
            anchor_share=anchor_share,
            shared_by=shared_by,
        )
    return _point(store, version, pointer)


def confirm(store: Path, now: datetime) -> None:
    """Ends the probation of the champion, which serves alone from then on. Does nothing if it is not on probation."""
    current = champion(store)
    if current is not None and current.anchor is not None:
        confirmed = msgspec.structs.replace(current, mode="canary", anchor=None, anchor_share=0.0, shared_by="ids")
        set_pointer(store, confirmed, now)


def roll_back(store: Path, reason: str, now: datetime) -> Champion:
    """Makes the version serve again that served before the champion, and returns it.

    From a champion on probation it goes back to the anchor: the versions between the two were never confirmed either.
    Rolling back again goes further back: a version that was rolled back never serves again this way. Raises InputError
    when no version served before, or when the policy cannot be loaded. Then nothing has changed.
    """
    trail, current = _trail(store), champion(store)
    if current is not None and current.anchor in trail:
        trail = [*trail[: trail.index(current.anchor) + 1], current.version]
    if len(trail) < 2:
        raise InputError(f"{store} has no earlier champion to go back to")
    target, earlier = trail[-2], trail[-3:-2]
    return _point(
        store,
        target,
        Champion(
            version=target,
            previous=earlier[0] if earlier else None,
            promoted_at=now,
            reason=reason,
            rolled_back=trail[-1],
        ),
    )


def history(store: Path) -> list[Champion]:
    """Every champion, oldest first. Raises InputError that names a line which is not one."""
    past = _recorded(store)
    current = champion(store)
    if current is not None and not (past and _same(past[-1], current)):
        past.append(_alone(current))  # the process died after it wrote the pointer
    return past


def set_pointer(store: Path, pointer: Champion, now: datetime) -> None:
    """Replaces `champion.json`, and records the change."""
    replace_file(store / policies.CHAMPION_NAME, policies.encode_json(pointer))
    append_line(store / POINTERS_NAME, msgspec.json.encode(PointerChange(now, pointer)))


def pointers(store: Path) -> list[PointerChange]:
    """What the pointer became and when, oldest first. Raises InputError that names a line which is not such a change."""
    path = store / POINTERS_NAME
    changes = []
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            changes.append(msgspec.json.decode(line, type=PointerChange))
        except msgspec.DecodeError as error:
            raise InputError(f"{path}, line {number}: not a change of the pointer: {error}") from None
    return changes


def versions(store: Path) -> list[str]:
    """The versions in the store, by name."""
    return sorted(path.parent.name for path in store.glob(f"*/{policies.CARD_NAME}"))


def _point(store: Path, version: str, after: Champion) -> Champion:
    """Writes the pointer, then the history, once the policy is known to load."""
    if not (store / version / policies.CARD_NAME).is_file():
        raise InputError(f"{store} has no policy {version!r}; it has: {', '.join(versions(store)) or 'none'}")
    serving.load(store / version)
    before = champion(store)
    if before is not None:
        _remember(store, before)  # the process may have died before it could
        if before.version == version:
            return before
    set_pointer(store, after, after.promoted_at)
    _remember(store, after)
    return after


def _trail(store: Path) -> list[str]:
    """The versions on the way back: the champion last, without those that were rolled back."""
    trail: list[str] = []
    for past in history(store):
        if past.rolled_back is not None and past.version in trail:
            while trail[-1] != past.version:
                trail.pop()
        else:
            trail += [past.previous] if past.previous is not None and not trail else []
            trail.append(past.version)
    return trail


def _recorded(store: Path) -> list[Champion]:
    path = store / HISTORY_NAME
    lines = enumerate(whole_lines(path), start=1)
    return [policies.decode_champion(line, f"{path}, line {number}") for number, line in lines]


def _remember(store: Path, current: Champion) -> None:
    """Adds a champion to the history, unless the history ends with it."""
    past = _recorded(store)
    if not (past and _same(past[-1], current)):
        append_line(store / HISTORY_NAME, msgspec.json.encode(_alone(current)))


def _same(one: Champion, other: Champion) -> bool:
    return (one.version, one.promoted_at) == (other.version, other.promoted_at)


def _alone(current: Champion) -> Champion:
    """Without the candidate or the anchor beside it: these change the pointer, but not who was promoted when."""
    return msgspec.structs.replace(
        current, candidate=None, candidate_share=0.0, anchor=None, anchor_share=0.0, mode="canary", shared_by="ids"
    )
