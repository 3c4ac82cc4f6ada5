"""Makes a project folder: from an example, from the owner's own catalogue, or by asking.

    python -m orchestration.cli init news --example news
    python -m orchestration.cli init shop --catalogue items.csv --context hour=number:12:6 device=phone,desktop city=hashed:16

The first policy serves at once: it is uniform, or draws by the counts of an attribute (`--popularity views`). A folder is
made whole or not at all.
"""

import argparse
import csv
import shutil
import sys
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from contracts import features, items
from contracts.command_line import say
from contracts.errors import InputError
from contracts.features import Category, Feature, FeatureSpec, Hashed, Number
from contracts.items import Item
from contracts.records import one_line
from orchestration import policy_store
from orchestration.project.folder import SETTINGS_NAME, ProjectFolder, decode_settings

if TYPE_CHECKING:
    from contracts.command_line import FlagParser

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_MANNERS = "NAME=number, NAME=number:MEAN:SCALE, NAME=VALUE,VALUE,… or NAME=hashed:BUCKETS"
_INIT = f"""Makes a project folder, with a first policy that serves at once.

    init news --example news                                     an example product, with the app that simulates its users
    init shop --catalogue items.csv --context hour=number:12:6 device=phone,desktop city=hashed:16
    init shop                                                    asks, in a terminal

The catalogue is a CSV file whose first line names the columns, one of them item_id, or a JSON list of items. Every other
column is an attribute: a number, if the first value is one, or a category; title, description and url are texts.

The context is what an app knows when it asks: {_MANNERS}.
A number is scaled to (value - MEAN) / SCALE. Values that are not listed share a place of their own.
"""
SETTINGS = """# How this project serves and learns. A table or a field that is left out has its default.

[serving]
host = "127.0.0.1"
port = 0       # of the predictor; 0: a free one, chosen at each start
page_port = 0  # of the live page

[windows]
window_seconds = {window_seconds:g}         # a policy learns from the decisions of such a stretch of time at once
reward_window_seconds = {reward_window_seconds:g}  # a reward counts if it occurs within this time after its decision
settle_seconds = 1           # how long an event may be on its way into the log
missing_reward = "default"   # silence counts as default_reward; "drop": it says nothing
default_reward = 0.0

[learning]
algorithm = "lin_ucb"        # see python -m trainer.task --help
hyperparameters = {{ tikhonov = 0.3 }}

[exploration]
strategy = "ucb"
alpha = 0.3                  # width of the confidence bound
epsilon = 0.02               # share of decisions drawn uniformly

[probation]
anchor_share = 0.1           # of the decisions, kept by the last confirmed version while a new one is tried
"""


def add_command(subparsers: "argparse._SubParsersAction[FlagParser]") -> None:
    """Adds `init`."""
    parser = subparsers.add_parser("init", description=_INIT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the project; must be empty or not exist")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--example", choices=examples(), help="an example product to start from")
    source.add_argument("--catalogue", type=Path, metavar="FILE", help="your items, .csv or .json")
    spec = parser.add_mutually_exclusive_group()
    spec.add_argument("--context", nargs="+", metavar="FEATURE", help="features of the context")
    spec.add_argument("--features", type=Path, metavar="FILE", help="JSON feature spec of the context")
    parser.add_argument(
        "--popularity",
        metavar="ATTRIBUTE",
        help="attribute that counts how often an item was chosen (default: uniform)",
    )
    parser.add_argument(
        "--reward-window-seconds", type=float, metavar="SECONDS", help="how long a reward may take (default: 30)"
    )
    parser.add_argument(
        "--window-seconds", type=float, metavar="SECONDS", help="length of a training window (default: 60)"
    )
    parser.set_defaults(command=_init)


def examples() -> list[str]:
    """The names of the example products."""
    return sorted(path.parent.name for path in EXAMPLES.glob(f"*/{SETTINGS_NAME}"))


def create(
    folder: Path, catalogue: list[Item], spec: FeatureSpec, settings: str, popularity: str | None = None
) -> ProjectFolder:
    """Makes the project folder with a first policy that serves, all of it or nothing.

    Args:
      folder: must be empty or not exist.
      catalogue: the items.
      spec: of the context.
      settings: the text of `project.toml`.
      popularity: the attribute that counts how often an item was chosen; None: the first policy is uniform.

    Raises InputError.
    """
    from trainer import untrained

    _check_empty(folder)
    decode_settings(settings, SETTINGS_NAME)
    counts = None if popularity is None else [_count(item, popularity) for item in catalogue]
    made = ProjectFolder(folder.absolute().parent / f".{folder.absolute().name}.{uuid.uuid4().hex}")
    try:
        try:
            made.policies.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"FOLDER: {folder} cannot be made: {error.strerror}") from None
        made.project_toml.write_text(settings)
        made.catalogue.write_bytes(items.encode(catalogue))
        made.features.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")
        for path in (made.events, made.windows, made.logs):
            path.mkdir()
        card = untrained.write(made.policies, catalogue, spec, counts)
        reason = "the first policy, trained on nothing"
        policy_store.roll_out(made.policies, card.version, reason, datetime.now(UTC))
        if folder.is_dir():
            folder.rmdir()  # it is empty
        made.root.replace(folder)
    finally:
        shutil.rmtree(made.root, ignore_errors=True)
    return ProjectFolder(folder)


def read_csv(path: Path) -> list[Item]:
    """The items of a CSV file. Raises InputError that names the line, the field and the value."""
    where = f"catalogue: {path}"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            names = next(rows, [])
            if "item_id" not in names or len(set(names)) < len(names):
                raise InputError(f"{where}, line 1: different column names expected, one of them item_id, got {names}")
            entries: list[dict[str, Any]] = []
            lines: list[int] = []
            for row in rows:
                if not row:
                    continue
                if len(row) != len(names):
                    raise InputError(f"{where}, line {rows.line_num}: {len(names)} fields expected, got {len(row)}")
                entries.append(dict(zip(names, row, strict=True)))
                lines.append(rows.line_num)
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{where}: not a CSV file: {error}") from None
    numbers = _columns_of_numbers([name for name in names if name != "item_id"], entries)
    made = [_entry(entry, numbers, f"{where}, line {line}") for entry, line in zip(entries, lines, strict=True)]
    for line, one in zip(lines, made, strict=True):
        items.decode(msgspec.json.encode([one]), f"{where}, line {line}")  # alone, so that its line is named
    return items.decode(msgspec.json.encode(made), where)


def parse_feature(text: str) -> Feature:
    """The feature that a word such as `device=phone,desktop` describes. Raises InputError."""
    name, equals, manner = text.partition("=")
    kind, *numbers = manner.split(":")
    fields: dict[str, Any]
    try:
        match kind, numbers:
            case "number", []:
                fields = {"kind": "number"}
            case "number", [mean, scale]:
                fields = {"kind": "number", "mean": float(mean), "scale": float(scale)}
            case "hashed", [buckets]:
                fields = {"kind": "hashed", "buckets": int(buckets)}
            case _ if equals and "," in manner:
                fields = {"kind": "category", "values": manner.split(",")}
            case _:
                raise ValueError
        return msgspec.convert(fields | {"name": name}, Number | Category | Hashed)
    except msgspec.ValidationError as error:
        raise InputError(f"--context: {_MANNERS} expected ({one_line(str(error))}), got {text!r}") from None
    except ValueError:
        raise InputError(f"--context: {_MANNERS} expected, got {text!r}") from None


def parse_context(words: Sequence[str]) -> FeatureSpec:
    """The spec of features as the command line describes them, with a constant. Raises InputError."""
    listed = [parse_feature(word) for word in words]
    try:
        return FeatureSpec(features=listed)
    except ValueError as error:
        raise InputError(f"--context: {error}") from None


def _init(arguments: argparse.Namespace) -> int:
    folder = arguments.folder
    _check_empty(folder)
    if arguments.example is not None:
        made = _from_example(folder, arguments)
    else:
        if arguments.catalogue is None:
            _ask_for_all(arguments)
        spec = features.read_spec(arguments.features) if arguments.features else parse_context(arguments.context or [])
        settings = SETTINGS.format(
            window_seconds=60.0 if arguments.window_seconds is None else arguments.window_seconds,
            reward_window_seconds=30.0 if arguments.reward_window_seconds is None else arguments.reward_window_seconds,
        )
        made = create(folder, read_catalogue(arguments.catalogue), spec, settings, arguments.popularity)
    card = policy_store.champion(made.policies)
    assert card is not None
    say(f"{folder}: {len(made.items())} items, {made.spec().dim} numbers per context, first policy {card.version}")
    say(f"Start it:  python -m orchestration.cli up {folder}")
    return 0


def _from_example(folder: Path, arguments: argparse.Namespace) -> ProjectFolder:
    for name in ("context", "features", "window_seconds", "reward_window_seconds"):
        if getattr(arguments, name) is not None:
            raise InputError(f"--{name.replace('_', '-')}: not with --example, which has its own; edit {SETTINGS_NAME}")
    example = ProjectFolder(EXAMPLES / arguments.example)
    return create(folder, example.items(), example.spec(), example.project_toml.read_text(), arguments.popularity)


def read_catalogue(path: Path) -> list[Item]:
    """The items of a .csv or .json file. Raises InputError."""
    match path.suffix.lower():
        case ".csv":
            return read_csv(path)
        case ".json":
            return items.read(path)
        case _:
            raise InputError(f"--catalogue: a .csv or a .json file expected, got {path}")


def _ask_for_all(arguments: argparse.Namespace) -> None:
    if not sys.stdin.isatty():
        raise InputError(
            "--example or --catalogue: one of them expected where there is no terminal to ask on, got none"
        )
    arguments.catalogue = _ask(
        "Your items, a .csv or .json file: ", lambda text: read_catalogue(Path(text)) and Path(text)
    )
    if not arguments.context and not arguments.features:
        say(f"What does your app know when it asks? One feature per line: {_MANNERS}. An empty line ends the list.")
        arguments.context = []
        while word := input("Feature: ").strip():
            try:
                parse_context([*arguments.context, word])
            except InputError as error:
                say(str(error))
            else:
                arguments.context.append(word)
    if arguments.reward_window_seconds is None:
        text = "Within how many seconds does a reward come? [30] "
        arguments.reward_window_seconds = _ask(text, lambda answer: float(answer or 30))


def _ask(question: str, read: Callable[[str], Any]) -> Any:
    """The answer that `read` takes; asks again until it does."""
    while True:
        try:
            return read(input(question).strip())
        except ValueError as error:  # InputError is one
            say(str(error))


def _check_empty(folder: Path) -> None:
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"FOLDER: an empty folder, or one that does not exist, expected, got {folder}")
    except OSError as error:
        raise InputError(f"FOLDER: {folder} cannot be read: {error.strerror}") from None


def _columns_of_numbers(names: Sequence[str], entries: Sequence[dict[str, Any]]) -> set[str]:
    """The columns whose first value is a number."""
    firsts = {name: next((entry[name] for entry in entries if entry[name]), "") for name in names}
    return {name for name, first in firsts.items() if name not in items.TEXTS and _number(first) is not None}


def _entry(row: dict[str, str], numbers: set[str], where: str) -> dict[str, Any]:
    """A row as an entry of a catalogue in JSON. Values that are empty are left out."""
    entry: dict[str, Any] = {"item_id": row["item_id"]}
    if row.get("status"):
        entry["status"] = row["status"]
    attributes: dict[str, Any] = {}
    for name, text in row.items():
        if name in ("item_id", "status") or not text:
            continue
        if name in numbers:
            if (number := _number(text)) is None:
                raise InputError(f"{where}, {name}: a number expected as in the first row, got {text!r:.80}")
            attributes[name] = number
        else:
            attributes[name] = text
    return entry | {"attributes": attributes}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _count(item: Item, attribute: str) -> float:
    count = items.numbers_of(item).get(attribute)
    if count is None or not count >= 0:
        found = item.attributes.get(attribute, "nothing")
        raise InputError(
            f"--popularity: a count of at least 0 expected in attributes.{attribute} of each item, got {found!r} in"
            f" {item.item_id!r}"
        )
    return count
