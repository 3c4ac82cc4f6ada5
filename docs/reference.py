"""The sections of the reference pages in Markdown, made from the code.

A page holds a line such as `<!-- reference: commands -->`. `docs/conf.py` replaces it by what
`SECTIONS["commands"]()` returns.
"""

import argparse
import ast
import contextlib
import importlib
import inspect
import json
import os
import re
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("beam_jobs", "trainer", "predictor", "orchestration")


def commands() -> str:
    """One section per program: its description, and a table of its flags for each of its commands."""
    parsers = {parser.prog: parser for parser in map(parser_of, programs())}
    return "\n\n".join(commands_of(parser) for _, parser in sorted(parsers.items()))


def programs() -> list[str]:
    """The modules that have a command line of their own, by name."""
    modules = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in modules
        if path.name != "__main__.py" and "\ndef main(argv: " in path.read_text()
    ]


def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser that answers `python -m <program> --help`. Raises RuntimeError if no parser does."""
    asked: list[argparse.ArgumentParser] = []

    def remember(parser: argparse.ArgumentParser, file: Any = None) -> None:
        asked.append(parser)

    # In a container of Vertex AI some defaults differ; the reference shows those outside.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("AIP_")}
    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", remember),
        mock.patch.dict(os.environ, outside, clear=True),
        contextlib.suppress(SystemExit),
    ):
        importlib.import_module(program).main(["--help"])
    if len(asked) != 1:
        raise RuntimeError(f"{program}: expected one parser to answer --help, got {len(asked)}")
    return asked[0]


def commands_of(parser: argparse.ArgumentParser) -> str:
    """The section of one program: what its help says, with a table of flags for the program and each of its commands."""
    parts = [f"## `{parser.prog}`", *_about(parser)]
    if table := _flags(parser):
        parts.append(table)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                parts += [f"### `{parser.prog} {name}`", *_about(command)]
                parts.append(_flags(command) or "No flags.")
    return "\n\n".join(parts)


def _about(parser: argparse.ArgumentParser) -> Iterator[str]:
    return _paragraphs(f"{parser.description or ''}\n\n{parser.epilog or ''}")


def _flags(parser: argparse.ArgumentParser) -> str:
    alternatives = {
        id(action): [_flag(other) for other in group._group_actions]
        for group in parser._mutually_exclusive_groups
        if group.required
        for action in group._group_actions
    }
    formatter = parser._get_formatter()
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
            continue
        required = "one of " + ", ".join(alternatives[id(action)]) if id(action) in alternatives else ""
        if action.required:
            required = "yes"
        help_text = formatter._expand_help(action) if action.help else ""
        rows.append((_flag(action), _value(action), required, _text(help_text)))
    return _table(("flag", "value", "required", "meaning"), rows)


def _flag(action: argparse.Action) -> str:
    return _codes(action.option_strings or [str(action.metavar or action.dest)])


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return _codes(str(choice) for choice in action.choices)
    return _codes([str(action.metavar or action.dest.upper())]) if action.option_strings else ""


def records() -> str:
    """The records, the documents and the settings that the parts share."""
    return _structs(
        "contracts.records", "contracts.windows", "contracts.items", "contracts.features", "contracts.policies"
    )


def requests() -> str:
    """The bodies of the predictor's requests and answers."""
    return _structs("predictor.messages")


def _structs(*modules: str) -> str:
    found = [
        struct
        for module in map(importlib.import_module, modules)
        for struct in vars(module).values()
        if isinstance(struct, type) and issubclass(struct, msgspec.Struct) and struct.__module__ == module.__name__
    ]
    return "\n\n".join(struct_section(struct) for struct in found)


def struct_section(struct: type[msgspec.Struct]) -> str:
    """The section of one struct: its docstring, and a table of its fields."""
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    rows = []
    if info.tag_field is not None:
        rows.append((f"`{info.tag_field}`", f"`{_json(info.tag)}`", "", "", "The kind of the record."))
    for field in info.fields:
        kind, bounds, description = _describe(field.type)
        rows.append((f"`{field.encode_name}`", kind, bounds, _default(field), _text(description)))
    parts = [f"## {struct.__name__}", *_paragraphs(inspect.cleandoc(struct.__doc__ or ""))]
    parts.append(_table(("field", "type", "bounds", "default", "meaning"), rows))
    return "\n\n".join(parts)


def _default(field: msgspec.inspect.Field) -> str:
    if field.required:
        return "required"
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    return f"`{_json(value)}`"


def _describe(kind: msgspec.inspect.Type) -> tuple[str, str, str]:
    """The type, the bounds and the description of a field, as text."""
    match kind:
        case msgspec.inspect.Metadata():
            name, bounds, inner = _describe(kind.type)
            return name, bounds, (kind.extra_json_schema or {}).get("description", inner)
        case msgspec.inspect.UnionType():
            names, limits, texts = zip(*map(_describe, kind.types), strict=True)
            return " or ".join(names), "; ".join(filter(None, limits)), "; ".join(filter(None, texts))
        case msgspec.inspect.ListType():
            name, bounds, _ = _describe(kind.item_type)
            lengths = _lengths(kind, "elements")
            return f"list of {name}", "; ".join(filter(None, (lengths, bounds and f"each {bounds}"))), ""
        case msgspec.inspect.DictType():
            name, bounds, _ = _describe(kind.value_type)
            return f"object of {name} by {_describe(kind.key_type)[0]}", bounds and f"each {bounds}", ""
        case msgspec.inspect.LiteralType():
            return f"one of {_codes(map(_json, kind.values))}", "", ""
        case msgspec.inspect.StructType():
            name = kind.cls.__name__
            return f"[{name}](#{name.lower()})", "", ""
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            ends = (("≥", kind.ge), (">", kind.gt), ("≤", kind.le), ("<", kind.lt))
            bounds = ", ".join(f"{sign} {end:,.6g}" for sign, end in ends if end is not None)
            return ("integer" if isinstance(kind, msgspec.inspect.IntType) else "number"), bounds, ""
        case msgspec.inspect.StrType():
            pattern = f"matches `{kind.pattern}`" if kind.pattern else ""
            return "string", "; ".join(filter(None, (_lengths(kind, "characters"), pattern))), ""
        case msgspec.inspect.DateTimeType():
            return "time", "with a time zone" if kind.tz else "", ""
        case msgspec.inspect.BytesType():
            return "bytes", _lengths(kind, "bytes"), ""
        case msgspec.inspect.BoolType():
            return "true or false", "", ""
        case msgspec.inspect.NoneType():
            return "null", "", ""
        case _:
            raise TypeError(f"no words for {kind}")


def _lengths(kind: Any, unit: str) -> str:
    low, high = kind.min_length, kind.max_length
    if low is not None and low == high:
        return f"{low:,} {unit}"
    if high is None:
        return f"at least {low:,} {unit}" if low else ""
    return f"{low or 0:,} to {high:,} {unit}"


def tables() -> str:
    """The tables of the warehouse: what makes a row unique, and their columns."""
    from contracts import schemas

    parts = []
    for table in schemas.TABLES:
        rows = [(f"`{name}`", kind, mode, _text(text)) for name, kind, mode, text in schemas.columns(table.record)]
        parts += [
            f"## {table.name}",
            f"Partitioned by day of {_codes([table.partitioned_by])}, clustered by {_codes(table.clustered_by)}. Readers"
            f" deduplicate rows by {_codes(table.key)} and keep the earliest.",
            _table(("column", "type", "mode", "meaning"), rows),
        ]
    return "\n\n".join(parts)


def metrics() -> str:
    """What the predictor serves to Prometheus, as one scrape of a server that has answered one request shows it."""
    from prometheus_client.parser import text_string_to_metric_families

    from contracts.records import Decision
    from predictor.event_log import Counters
    from predictor.metrics import Metrics, render
    from predictor.publisher import Status

    server = Metrics()
    server.request("/predict", 200, 0.001)
    server.decided(
        [
            Decision(
                decision_id="01890000-0000-7000-8000-000000000000",
                decided_at=datetime(2026, 1, 1, tzinfo=UTC),
                policy_version="uniform",
                observation=[0.0],
                action=0,
                propensity=1.0,
            )
        ]
    )
    text = render(server, Counters(1, 1, 0, 0, 0), 0, False, Status()).decode()
    rows = []
    for family in text_string_to_metric_families(text):
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append((f"`{name}`", family.type, _codes(labels), _text(family.documentation)))
    return _table(("metric", "type", "labels", "meaning"), rows)


def modules() -> str:
    """The modules of each package, and the first paragraph of what each says about itself."""
    rows: dict[str, list[tuple[str, ...]]] = {}
    for path in sorted(path for package in ("contracts", *PACKAGES) for path in (ROOT / package).rglob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        if path.stem not in ("__init__", "__main__"):
            package = ".".join(path.parent.relative_to(ROOT).parts)
            rows.setdefault(package, []).append((_code(path.stem), _text(text.partition("\n\n")[0])))
    return "\n\n".join(
        f"## {package}\n\n{_table(('module', 'contents'), rows[package])}" for package in sorted(rows, key=_depth)
    )


def _depth(package: str) -> tuple[int, str]:
    return ("contracts", *PACKAGES).index(package.partition(".")[0]), package


def permissions() -> str:
    """The rights that Terraform grants to each account, and the calls that need them."""
    folder = ROOT / "infra" / "rights"
    rights = json.loads((folder / "rights.json").read_text())
    accounts = [(name, _text(does)) for name, does in rights["accounts"].items()]
    granted = []
    for right in rights["rights"]:
        inside = [*(f"{name}/" for name in right.get("folders", [])), *right.get("files", [])]
        where = f"{right['on']}: {', '.join(inside)}" if inside else right["on"]
        kept = f", except {', '.join(right['except'])}" if "except" in right else ""
        granted.append((right["account"], _code(right["role"]), _text(where + kept)))
    calls = [
        (_text(", ".join(call["accounts"])), _text(call["code"]), _codes(call["calls"]), _codes(call["permissions"]))
        for call in tomllib.loads((folder / "calls.toml").read_text())["calls"]
    ]
    return "\n\n".join(
        (
            "## Accounts\n\n" + _table(("account", "what it does"), accounts),
            "## Rights\n\n" + _table(("account", "role", "on"), granted),
            "## Calls\n\n" + _table(("account", "code", "calls", "permissions"), calls),
        )
    )


SECTIONS: dict[str, Callable[[], str]] = {
    section.__name__: section for section in (commands, records, requests, tables, metrics, modules, permissions)
}


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table without the columns that are empty in each row; "" without rows."""
    rows = list(rows)
    kept = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    lines = [[columns[index] for index in kept], ["---"] * len(kept), *([row[index] for index in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _paragraphs(text: str) -> Iterator[str]:
    """A docstring as Markdown: prose as prose, what is indented or laid out in columns as it is."""
    for paragraph in text.strip("\n").split("\n\n"):
        if re.search(r"^ |\S {2,}\S", paragraph, re.MULTILINE):
            yield f"```text\n{textwrap.dedent(paragraph)}\n```"
        elif paragraph.strip():
            yield _text(paragraph)


def _text(text: str) -> str:
    """Plain text as Markdown on one line, in which only backticks mean something."""
    parts = " ".join(text.split()).split("`")
    escaped = [re.sub(r"([<>*_\[\]|\\])", r"\\\1", part) for part in parts[::2]]
    code = [*map(_code, parts[1::2]), ""]
    return "".join(piece for pair in zip(escaped, code, strict=True) for piece in pair)


def _codes(names: Iterable[str]) -> str:
    return ", ".join(map(_code, names))


def _code(text: str) -> str:
    escaped = text.replace("|", "\\|")  # or it would end a table's cell
    return f"`{escaped}`"


def _json(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
