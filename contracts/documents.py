"""JSON documents with a schema version: what `policy.json` and a window's `manifest.json` have in common."""

from typing import Protocol, TypeVar

import msgspec

from contracts.errors import InputError


class Document(Protocol):
    """A record that says which version of its schema it was written by."""

    @property
    def schema_version(self) -> int:
        """From 1."""


D = TypeVar("D", bound=Document)


def decode(data: bytes, kind: type[D], what: str, where: str, newest: int) -> D:
    """The document in `data`. Raises InputError: `where` is not `what`, or is newer than schema version `newest`."""
    try:
        document = msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise InputError(f"{where}: not a {what}: {error}") from None
    if (found := document.schema_version) > newest:
        raise InputError(f"{where}: schema_version {found} is newer than this code's {newest}")
    return document


def encode(document: msgspec.Struct) -> bytes:
    """`document` as indented JSON, the same bytes for the same document."""
    return msgspec.json.format(msgspec.json.encode(document, order="deterministic"), indent=2) + b"\n"
