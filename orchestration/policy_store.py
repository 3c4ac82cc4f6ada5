"""The policy store: a folder of policies, the pointer to the champion, and the history of champions.

`champion.json` names the policy that serves, `history.jsonl` every policy that did.
"""

from datetime import datetime
from pathlib import Path

import msgspec

from contracts import policies
from contracts.errors import InputError
from contracts.policies import Champion
from orchestration.places import replace_file

HISTORY_NAME = "history.jsonl"


def champion(store: Path) -> Champion | None:
    """The champion of the policy store, if it has one."""
    path = store / policies.CHAMPION_NAME
    return policies.decode_champion(path.read_bytes(), str(path)) if path.is_file() else None


def roll_out(store: Path, version: str, reason: str, now: datetime) -> Champion:
    """Makes `version` the champion; the one before stays the way back. Does nothing when it is the champion already.

    Raises InputError when the store has no such version.
    """
    if not (store / version / policies.CARD_NAME).is_file():
        raise InputError(f"{store} has no policy {version!r}; it has: {', '.join(versions(store)) or 'none'}")
    before = champion(store)
    if before is not None and before.version == version:
        _remember(store, before)  # who made it the champion may have been killed before that
        return before
    after = Champion(version=version, previous=before.version if before else None, promoted_at=now, reason=reason)
    replace_file(store / policies.CHAMPION_NAME, policies.encode_json(after))
    _remember(store, after)
    return after


def roll_back(store: Path, reason: str, now: datetime) -> Champion:
    """Makes the champion before this one serve again, in one step. Raises InputError when there was none."""
    current = champion(store)
    if current is None or current.previous is None:
        raise InputError(f"{store} has no earlier champion to go back to")
    return roll_out(store, current.previous, reason, now)


def history(store: Path) -> list[Champion]:
    """Every champion there was, oldest first."""
    path = store / HISTORY_NAME
    if not path.is_file():
        return []
    return [policies.decode_champion(line, str(path)) for line in path.read_bytes().splitlines()]


def versions(store: Path) -> list[str]:
    """The versions in the store, by name."""
    return sorted(path.parent.name for path in store.glob(f"*/{policies.CARD_NAME}"))


def _remember(store: Path, current: Champion) -> None:
    """Adds a champion to the history, unless it ends with it."""
    if [(past.version, past.promoted_at) for past in history(store)[-1:]] != [(current.version, current.promoted_at)]:
        alone = msgspec.structs.replace(current, candidate=None, candidate_share=0.0, mode="canary")
        with (store / HISTORY_NAME).open("ab") as file:
            file.write(msgspec.json.encode(alone) + b"\n")
