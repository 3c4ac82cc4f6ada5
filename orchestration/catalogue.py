"""The command `catalogue`: adds, changes, masks and retires items while traffic flows.

A change is one atomic replacement of `catalogue.json` below the root, which the next training reads, so it takes effect
with the next version. Predictors do not offer masked and retired items from a second later on, by `withdrawn.json` in the
policy store. Items keep their actions. A new item takes the action of an item that was retired long enough ago
(`Reuse`), or else the next one. `catalogue.jsonl` holds one line per change.
"""

import argparse
import fcntl
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from contracts import items, policies
from contracts.command_line import FlagParser, add_flags, from_flags
from contracts.errors import InputError
from contracts.items import Item, Status
from contracts.policies import PolicyCard
from contracts.records import Timestamp
from orchestration import policy_store
from orchestration.places import Places, append_line, replace_file, whole_lines
from predictor import policy as serving

HISTORY_NAME = "catalogue.jsonl"
Missing = Literal["keep", "mask", "retire"]
_NEW_STATUS: dict[str, Status] = {"mask": "masked", "offer": "active", "retire": "retired"}
_HELP = """Shows or changes the catalogue below a root, while traffic flows. A change takes effect with the next version that is
trained, but masked and retired items are not offered from a second later on. A change that is wrong in one item changes nothing.

    python -m orchestration.cli catalogue apply --root runs/latest --items changes.json
    python -m orchestration.cli catalogue apply --root runs/latest --items everything.json --missing retire
    python -m orchestration.cli catalogue mask a17 b02 --root runs/latest
    python -m orchestration.cli catalogue show --root runs/latest

apply   adds the items of --items, and replaces what is known of those that the catalogue has
mask    does not offer the items for the time being; offer: offers them again
retire  never offers the items again
show    how many items there are, what is new, and what the last changes were
"""


class Reuse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the action of a retired item may stand for another item."""

    reuse_after_hours: Annotated[
        float,
        Meta(
            gt=0,
            le=100_000,
            description="a new item may take the action of an item that was retired so many hours ago: at least as long"
            " as windows that mention the item are read",
        ),
    ] = 168.0


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `catalogue.jsonl`: what one change did, by item id."""

    at: Timestamp
    added: list[str] = []
    changed: list[str] = []  # other attributes or features
    masked: list[str] = []
    offered: list[str] = []  # masked before
    retired: list[str] = []
    replaced: dict[str, str] = {}  # of the added: the retired item whose action it took
    num_items: int
    num_active: int

    @property
    def lines(self) -> Iterator[str]:
        """The change as a person reads it."""
        for name in ("added", "changed", "masked", "offered", "retired"):
            if some := getattr(self, name):
                more = f" and {len(some) - 5} more" if len(some) > 5 else ""
                yield f"{name} {len(some)}: {', '.join(some[:5])}{more}"
        if self.replaced:
            yield f"{len(self.replaced)} of them at actions of retired items"
        yield f"{self.num_items} actions, {self.num_active} items on offer"


def apply(
    places: Places, wanted: Sequence[Item], now: datetime, missing: Missing = "keep", reuse: Reuse | None = None
) -> Change | None:
    """Adds the items `wanted`, or replaces what is known of them. Their actions are not read.

    Args:
      places: the root, with or without a catalogue.
      wanted: items, as `items.decode` returns them.
      now: the time of the change.
      missing: what becomes of items that are not among them.
      reuse: when actions are used again.

    Returns:
      what changed, and is recorded; None if nothing did.

    Raises:
      InputError: the catalogue that would follow is wrong. Then nothing has changed.
    """
    with _alone(places):
        before = _read(places)
        by_id = {item.item_id: item for item in before}
        after = list(before)
        listed = {item.item_id for item in wanted}
        for item in wanted:
            if (old := by_id.get(item.item_id)) is not None:
                after[old.action] = _changed(old, now, item.status, item)
        if missing != "keep":
            for old in before:
                if old.item_id not in listed and old.status != "retired":
                    after[old.action] = _changed(old, now, _NEW_STATUS[missing])
        free = _free(before, now - timedelta(hours=(reuse or Reuse()).reuse_after_hours))
        for item in wanted:
            if item.item_id not in by_id:
                action = next(free, len(after))
                # The first items of a catalogue are not new to a policy that knows others.
                added = msgspec.structs.replace(item, action=action, since=now if before else None, retired_at=None)
                after[action : action + 1] = [added]
        return _write(places, before, after, now)


def set_status(places: Places, item_ids: Sequence[str], status: Status, now: datetime) -> Change | None:
    """Masks, offers or retires items. Returns what changed; None if nothing did.

    Raises InputError for an id that the catalogue does not have, and where `apply` would. Then nothing has changed.
    """
    with _alone(places):
        before = _read(places)
        by_id = {item.item_id: item for item in before}
        after = list(before)
        for item_id in item_ids:
            if (old := by_id.get(item_id)) is None:
                raise InputError(f"catalogue: has no item {item_id!r:.80}")
            after[old.action] = _changed(old, now, status)
        return _write(places, before, after, now)


def history(root: Path) -> list[Change]:
    """Every change, oldest first. Raises InputError that names a line which is not one."""
    changes = []
    for number, line in enumerate(whole_lines(root / HISTORY_NAME), start=1):
        try:
            changes.append(msgspec.json.decode(line, type=Change))
        except msgspec.DecodeError as error:
            raise InputError(f"{root / HISTORY_NAME}, line {number}: {error}") from None
    return changes


def _changed(old: Item, now: datetime, status: Status, known: Item | None = None) -> Item:
    """`old` with another status, and with what is `known` of it now."""
    known = known or old
    retired_at = (old.retired_at or now) if status == "retired" else None
    return msgspec.structs.replace(
        old, attributes=known.attributes, features=known.features, status=status, retired_at=retired_at
    )


def _free(catalogue: Sequence[Item], until: datetime) -> Iterator[int]:
    """The actions of items that were retired by `until`, ascending."""
    for item in catalogue:
        if item.status == "retired" and item.retired_at is not None and item.retired_at <= until:
            yield item.action


def _read(places: Places) -> list[Item]:
    return items.read(places.catalogue) if places.catalogue.is_file() else []


def _write(places: Places, before: list[Item], after: list[Item], now: datetime) -> Change | None:
    if after == before:
        return None
    items.check(after, before)
    # Once more as a reader will, with the limits that a single item does not show.
    data = items.encode(after)
    items.decode(data, "catalogue")
    change = _difference(before, after, now)
    replace_file(places.catalogue, data)
    _withdraw(places, after)
    append_line(places.root / HISTORY_NAME, msgspec.json.encode(change))
    return change


def _withdraw(places: Places, catalogue: Sequence[Item]) -> None:
    """Lists the items that are not on offer any more, though policies that serve or may serve next still offer them."""
    if (champion := policy_store.champion(places.policies)) is None:
        return
    named = {champion.version, champion.previous, champion.candidate, champion.anchor} - {None}
    cards = [serving.read_card(folder) for folder in (places.policies / str(one) for one in named) if folder.is_dir()]
    offered = {item.item_id for card in cards for item in card.catalogue if item.status == "active"}
    on_offer = {item.item_id for item in catalogue if item.status == "active"}
    listed = msgspec.json.encode(sorted(offered - on_offer))
    replace_file(places.policies / policies.WITHDRAWN_NAME, listed)


def _difference(before: Sequence[Item], after: Sequence[Item], now: datetime) -> Change:
    old_at = {item.action: item for item in before}
    found: dict[str, list[str]] = {name: [] for name in ("added", "changed", "masked", "offered", "retired")}
    replaced = {}
    for item in after:
        old = old_at.get(item.action)
        if old is None or old.item_id != item.item_id:
            found["added"].append(item.item_id)
            if old is not None:
                replaced[item.item_id] = old.item_id
            continue
        if old.status != item.status:
            found[{"masked": "masked", "active": "offered", "retired": "retired"}[item.status]].append(item.item_id)
        if (old.attributes, old.features) != (item.attributes, item.features):
            found["changed"].append(item.item_id)
    active = sum(item.status == "active" for item in after)
    return Change(at=now, **found, replaced=replaced, num_items=len(after), num_active=active)


@contextmanager
def _alone(places: Places) -> Iterator[None]:
    """Keeps other changes away until this one is written."""
    try:
        places.root.mkdir(parents=True, exist_ok=True)
        lock = (places.root / ".catalogue.lock").open("w")
    except OSError as error:
        raise InputError(f"--root: a folder that can be written to, got {places.root}: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def add_command(subparsers: "argparse._SubParsersAction[FlagParser]") -> None:
    """Adds the command."""
    parser = subparsers.add_parser("catalogue", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("show", "apply", *_NEW_STATUS))
    parser.add_argument("item_ids", nargs="*", metavar="ID", help="items to mask, offer or retire")
    parser.add_argument("--root", type=Path, required=True, help="the folder of a loop or of the pipelines")
    parser.add_argument(
        "--items", type=Path, metavar="FILE", help="catalogue file to apply; actions in it are not read"
    )
    parser.add_argument(
        "--missing", choices=("keep", "mask", "retire"), default="keep", help="items that --items does not list"
    )
    add_flags(parser, Reuse)
    parser.set_defaults(command=_catalogue)


def _catalogue(arguments: argparse.Namespace) -> int:
    places, now = Places(arguments.root), datetime.now(UTC)
    if (arguments.action == "apply") != (arguments.items is not None):
        raise InputError(f"--items: belongs to apply, got {arguments.action} and --items {arguments.items}")
    if (arguments.action in _NEW_STATUS) != bool(arguments.item_ids):
        raise InputError(
            f"ID: mask, offer and retire take ids, got {arguments.action} and {len(arguments.item_ids)} ids"
        )
    if arguments.action == "show":
        for line in _shown(places):
            print(line)
        return 0
    if arguments.action == "apply":
        wanted = items.read(arguments.items)
        change = apply(places, wanted, now, arguments.missing, from_flags(arguments, Reuse))
    else:
        change = set_status(places, arguments.item_ids, _NEW_STATUS[arguments.action], now)
    for line in change.lines if change is not None else ["nothing changed"]:
        print(line)
    return 0


def _shown(places: Places) -> Iterator[str]:
    catalogue = items.read(places.catalogue)
    count = Counter(item.status for item in catalogue)
    yield (
        f"{len(catalogue)} actions: {count['active']} items on offer, {count['masked']} masked, {count['retired']} retired"
    )
    champion = policy_store.champion(places.policies)
    if champion is not None:
        yield from _as_served(serving.read_card(places.policies / champion.version), catalogue)
    for change in history(places.root)[-3:]:
        yield f"{change.at:%Y-%m-%d %H:%M:%S}  {'; '.join(change.lines)}"


def _as_served(card: PolicyCard, catalogue: Sequence[Item]) -> Iterator[str]:
    """What the champion knows of the catalogue, and how it explores what is new."""
    known = {item.item_id: item.status for item in card.catalogue}
    waiting = sum(known.get(item.item_id, "retired") != item.status for item in catalogue)
    yield f"{card.version} serves; {waiting} changes of status wait for the next version"
    share = card.exploration.new_item_share
    yield f"{len(card.new_actions)} of its items are new, with a budget of {share:.0%} of the decisions"
