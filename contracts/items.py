"""The catalogue: the items that a policy's actions stand for, its file, its limits, and how it may change.

A catalogue file is a JSON list of items in the order of their actions:

    [{"item_id": "a17", "attributes": {"title": "Rain again", "topic": "weather", "words": 310, "tags": ["uk", "rain"]}},
     {"item_id": "b02", "attributes": {"title": "Cup final", "topic": "sports"}, "status": "masked"}]

`action` may be left out of all items: then an item's action is its position, from 0. A key that `Item` does not have is
refused by name.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from contracts.errors import InputError
from contracts.records import Action, Float32, Timestamp

MAX_ITEMS = 1_000_000
MAX_CATEGORY_LENGTH = 64
MAX_TEXT_LENGTH = 1_000
# Attributes that are shown and never learned from. Every other string is a category.
TEXTS = ("title", "description", "url")

ItemId = Annotated[str, Meta(min_length=1, max_length=128, description="Stable id of the item.")]
AttributeName = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=64)]
Category = Annotated[str, Meta(min_length=1, max_length=MAX_CATEGORY_LENGTH)]
Attribute = Float32 | Annotated[str, Meta(max_length=MAX_TEXT_LENGTH)] | Annotated[list[Category], Meta(max_length=32)]
Status = Literal["active", "masked", "retired"]


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an action stands for: an article, a product, a movie, a price.

    An attribute is a number, a category (a string), several categories (a list of strings), or a text: `title`,
    `description` and `url` are texts, which are shown and never learned from. A masked item is not offered for the time
    being; a retired item is never offered again, and its action may stand for another item later.

    `python -m orchestration.cli catalogue` sets `since` and `retired_at`. Raises ValueError for a category that is too
    long.
    """

    action: Action
    item_id: ItemId
    attributes: Annotated[
        dict[AttributeName, Attribute], Meta(max_length=32, description="what is known of the item, by name")
    ] = {}
    features: Annotated[
        list[Float32], Meta(max_length=1_024, description="other known numbers, such as latent factors; not scaled")
    ] = []
    status: Status = "active"
    since: Annotated[
        Timestamp | None,
        Meta(
            description="when the item was added; windows that ended before know its action as another item, or not at all"
        ),
    ] = None
    retired_at: Annotated[Timestamp | None, Meta(description="when it was retired")] = None

    def __post_init__(self) -> None:
        for name, value in self.attributes.items():
            if name in TEXTS:
                if not isinstance(value, str):
                    raise ValueError(f"attributes.{name}: must be a text, got {value}")
            elif isinstance(value, str) and not 0 < len(value) <= MAX_CATEGORY_LENGTH:
                raise ValueError(
                    f"attributes.{name}: a category has 1 to {MAX_CATEGORY_LENGTH} characters (a text belongs to one of"
                    f" {', '.join(TEXTS)}), got {value[:80]!r}"
                )

    @property
    def title(self) -> str:
        """The item's title; empty if it has none."""
        title = self.attributes.get("title", "")
        return title if isinstance(title, str) else ""

    @property
    def name(self) -> str:
        """What people call the item: its title, or its id where it has no title."""
        return self.title or self.item_id


def numbers_of(item: Item) -> dict[str, float]:
    """The item's numbers, by attribute."""
    return {name: value for name, value in item.attributes.items() if isinstance(value, float | int)}


def categories_of(item: Item) -> dict[str, list[str]]:
    """The item's categories, by attribute."""
    found = {}
    for name, value in item.attributes.items():
        if isinstance(value, list):
            found[name] = value
        elif isinstance(value, str) and name not in TEXTS:
            found[name] = [value]
    return found


def read(path: Path) -> list[Item]:
    """The catalogue in the file at `path`. Raises InputError that names the file, the item, the field and the value."""
    try:
        return decode(path.read_bytes(), f"catalogue: {path}")
    except OSError as error:
        raise InputError(f"catalogue: {path}: {error.strerror}") from None


def decode(data: bytes, where: str) -> list[Item]:
    """The catalogue in `data`, checked; see the module for its form. Raises InputError that starts with `where`."""
    try:
        entries = msgspec.json.decode(data, type=list[Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{where}: {error}") from None
    if len(entries) > MAX_ITEMS:
        raise InputError(f"{where}: must have at most {MAX_ITEMS} items, got {len(entries)}")
    items = [_item(entry, position, where) for position, entry in enumerate(entries)]
    _check_alone(items, where)
    return items


def encode(catalogue: Sequence[Item]) -> bytes:
    """The catalogue as its file, an item per line."""
    lines = [msgspec.json.encode(item, order="deterministic") for item in catalogue]
    return b"[" + b",\n ".join(lines) + b"]\n"


def check(catalogue: Sequence[Item], before: Sequence[Item] | None) -> None:
    """Checks that `catalogue` may follow the catalogue `before` it.

    The items are the same, with new ones at the end, or at the actions of retired ones. A new item at such an action has a
    time `since`.

    Raises:
      InputError: an item is listed twice, none is active, one of the old items is missing or has another action, or a
        retired item is offered again.
    """
    check_active(catalogue)
    _check_alone(catalogue, "catalogue")
    for old in before or []:
        if old.action >= len(catalogue):
            raise InputError(f"catalogue: item {old.item_id!r} is gone; retire it instead")
        new = catalogue[old.action]
        if new.item_id != old.item_id:
            if old.status != "retired" or new.since is None:
                raise InputError(
                    f"catalogue: action {old.action} is item {old.item_id!r} in the parent, got {new.item_id!r}"
                )
        elif old.status == "retired" and new.status != "retired":
            raise InputError(f"catalogue: item {old.item_id!r} was retired, and is {new.status} again")


def check_active(catalogue: Sequence[Item]) -> None:
    """Raises InputError if no item is active."""
    if not any(item.status == "active" for item in catalogue):
        raise InputError("catalogue: must have an active item, or there is nothing to recommend")


def renewed(catalogue: Sequence[Item], before: Sequence[Item]) -> list[int]:
    """The actions that stand for another item in `catalogue` than in the catalogue `before` it."""
    return [new.action for new, old in zip(catalogue, before, strict=False) if new.item_id != old.item_id]


def _check_alone(catalogue: Sequence[Item], where: str) -> None:
    """Raises InputError unless the actions are in order, all ids differ, and each attribute has one kind."""
    seen: dict[str, int] = {}
    kinds: dict[str, tuple[bool, str]] = {}
    for action, item in enumerate(catalogue):
        if item.action != action:
            raise InputError(f"{where}: must list actions in order from 0, got {item.action} at {action}")
        if item.item_id in seen:
            raise InputError(f"{where}: item {item.item_id!r} is both action {seen[item.item_id]} and {action}")
        seen[item.item_id] = action
        if len(item.features) != (expected := len(catalogue[0].features)):
            raise InputError(
                f"{where}: item {item.item_id!r} has {len(item.features)} features, the first has {expected}"
            )
        for name, value in item.attributes.items():
            is_number = isinstance(value, float | int)
            wanted, first = kinds.setdefault(name, (is_number, item.item_id))
            if is_number != wanted:
                kind = "a number" if wanted else "a string"
                raise InputError(
                    f"{where}: item {item.item_id!r}, attributes.{name}: must be {kind} as in item {first!r}, got {value!r}"
                )


_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")


def _item(entry: Any, position: int, where: str) -> Item:
    """The item in one entry of a catalogue file. Raises InputError that names it."""
    if not isinstance(entry, dict):
        raise InputError(f"{where}: entry {position} must be an object, got {entry!r:.80}")
    named = f"{where}: item {entry['item_id']!r:.80}" if "item_id" in entry else f"{where}: entry {position}"
    try:
        return msgspec.convert({"action": position} | entry, Item)
    except msgspec.ValidationError as error:
        fact, _, path = str(error).partition(" - at `")
        path = path.partition("$")[2].removesuffix("`").removeprefix(".")
        if unknown := _UNKNOWN.match(fact):
            known = ", ".join(field.name for field in msgspec.structs.fields(Item))
            raise InputError(f"{named}: unknown field {unknown[1]!r}; an item has {known}") from None
        value = entry.get(path)
        if path.startswith("attributes"):
            path, value = _attribute(entry["attributes"], path)
        got = f", got {value!r:.80}" if value is not None and ", got" not in fact else ""
        raise InputError(f"{named}{f', {path}' if path else ''}: {fact}{got}") from None


def _attribute(attributes: Any, path: str) -> tuple[str, Any]:
    """The name and the value of the attribute that is wrong, for an error at `attributes[...]`."""
    if isinstance(attributes, dict):
        for name, value in attributes.items():
            try:
                msgspec.convert({name: value}, dict[AttributeName, Attribute])
            except msgspec.ValidationError:
                return f"attributes.{name}", value
    return path, attributes
