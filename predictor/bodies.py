"""Reads the bodies of requests within the server's limits, decodes them, and encodes answers."""

import math
import re
import zlib
from collections.abc import Mapping
from typing import TypeVar

import msgspec
import zstandard
from fastapi import Request, Response
from starlette.exceptions import HTTPException

from contracts.records import UNREADABLE, describe_error
from predictor import connections

T = TypeVar("T")

_EXACT = 2**53  # below it, a double is exact for every integer

# A client whose connection is closed while it sends cannot read why. So a body up to this many times the limit is read
# and discarded before it is refused.
_READ_TO_THE_END = 10


_ZSTD_STEP_BYTES = 256  # four bytes can make 128 KB, so a step makes 8 MB at most

_JSON = re.compile(r"application/([\w.-]+\+)?json\s*(;.*)?", re.IGNORECASE)


def _number(text: str) -> int | float:
    number = float(text)
    if math.isinf(number):
        raise msgspec.ValidationError("Number out of range")
    return int(number) if number.is_integer() and abs(number) < _EXACT else number


_integral = msgspec.json.Decoder(float_hook=_number)  # reads 3.0 as the integer 3


async def read(request: Request, max_bytes: int, seconds: float) -> bytes:
    """The body of `request`, decompressed.

    Raises HTTPException: 413 for more than `max_bytes`, compressed or not, 408 for one that did not arrive within `seconds`
    (which `predictor.connections` measures), 400 for one that breaks off or cannot be decompressed, 415 for another
    content type than JSON, or a content encoding other than gzip and zstd.
    """
    body, size, more = b"", 0, True
    while more and size <= _READ_TO_THE_END * max_bytes:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "body: broke off")
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size <= max_bytes:
            body = body + chunk if body else chunk
    if connections.overdue(request.scope):
        raise HTTPException(408, f"body: must arrive within {seconds:g} seconds")
    if size > max_bytes:
        raise HTTPException(413, f"body: must be at most {max_bytes} bytes")
    if (kind := request.headers.get("content-type")) is not None and not _JSON.fullmatch(kind):
        raise HTTPException(415, f"content-type: must be application/json, got {kind[:100]!r}")
    encoding = request.headers.get("content-encoding")
    return body if encoding is None else _decompress(body, encoding.strip().lower(), max_bytes)


def _decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """`body` decompressed, without ever holding much more than `max_bytes` of it."""
    try:
        match encoding:
            case "identity":
                return body
            case "gzip":
                gzip = zlib.decompressobj(wbits=31)
                plain = gzip.decompress(body, max_bytes + 1)
                whole = gzip.eof
            case "zstd":
                zstd = zstandard.ZstdDecompressor().decompressobj()
                plain = b""
                for start in range(0, len(body), _ZSTD_STEP_BYTES):
                    if zstd.eof or len(plain) > max_bytes:
                        break
                    plain += zstd.decompress(body[start : start + _ZSTD_STEP_BYTES])
                whole = zstd.eof
            case _:
                raise HTTPException(415, f"content-encoding: must be gzip or zstd, got {encoding[:100]!r}")
    except (zlib.error, zstandard.ZstdError) as error:
        raise HTTPException(400, f"body: is not {encoding}: {error}") from None
    if len(plain) > max_bytes:
        raise HTTPException(413, f"body: must be at most {max_bytes} bytes when decompressed")
    if not whole:
        raise HTTPException(400, f"body: is not {encoding}: it breaks off")
    return plain


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """`body` as the decoder's type. Raises HTTPException 400 with field, fact and value.

    An integer may be written as 3.0: in the protobuf JSON that the Vertex AI SDK sends, every number is a double. 3.5, true
    and "3" are still refused (msgspec's lax mode would take "3"). The strict decoder goes first, because it is faster.
    """
    try:
        try:
            return decoder.decode(body)
        except msgspec.ValidationError:
            return msgspec.convert(_integral.decode(body), decoder.type)
    except UNREADABLE as error:
        raise HTTPException(400, describe_error(error, body)) from None


def answer(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`value` as a JSON response."""
    return Response(msgspec.json.encode(value), status, headers, "application/json")
