import msgspec
import pytest

from contracts import documents
from contracts.errors import InputError


class Thing(msgspec.Struct):
    schema_version: int
    values: dict[str, int]


def test_the_same_document_has_the_same_bytes() -> None:
    one, other = Thing(1, {"a": 1, "b": 2}), Thing(1, {"b": 2, "a": 1})
    assert documents.encode(one) == documents.encode(other)
    assert documents.encode(one).endswith(b"}\n")
    assert documents.decode(documents.encode(one), Thing, "thing", "file", newest=1) == one


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "file: not a thing: "),
        (b'{"schema_version": 1}', r"file: not a thing: .*`values`"),
        (b'{"schema_version": 2, "values": {}}', "file: schema_version 2 is newer than this code's 1"),
    ],
)
def test_another_document_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        documents.decode(data, Thing, "thing", "file", newest=1)
