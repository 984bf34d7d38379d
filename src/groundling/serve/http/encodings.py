"""Decode request bodies: UTF-8, optionally compressed with gzip. Other encodings are refused by name."""

import re
import zlib

from starlette.datastructures import Headers

from groundling.serve.http.errors import ApiError

GZIP = ("gzip", "x-gzip")
"""Synonyms (RFC 9110, 8.4.1.3)."""
READ_AT_ONCE = 4096
"""Bytes per call: the rest after each gzip member is copied, which for whole bodies would take quadratic time."""
UTF_8 = ("utf-8", "utf8", "us-ascii", "ascii")


def check_encodings(headers: Headers) -> bool:
    """Whether the body is compressed with gzip, according to the headers.

    Raises:
        ApiError: 415: another encoding, or more than one.
    """
    given = ", ".join(headers.getlist("content-encoding"))
    encodings = [word for word in (part.strip().lower() for part in given.split(",")) if word not in ("", "identity")]
    if len(encodings) > 1 or not set(encodings) <= set(GZIP):
        message = f"Content-Encoding is {given[:100]!r}; send the body uncompressed, or compressed once with gzip"
        raise ApiError(415, message, "unsupported_encoding")
    return bool(encodings)


def decompressed(body: bytes, max_bytes: int) -> bytes:
    """Decompress a gzip body; never more than `max_bytes`.

    Raises:
        ApiError: 400: invalid or truncated gzip; 413: too large.
    """
    pieces: list[bytes] = []
    room, place = max_bytes, 0
    while place < len(body):  # members are concatenated (RFC 1952, 2.2)
        reader = zlib.decompressobj(wbits=31)
        while not reader.eof:
            compressed = body[place : place + READ_AT_ONCE]
            if not compressed:
                raise ApiError(400, "the gzip body is truncated; send all of it", "invalid_encoding")
            try:
                pieces.append(reader.decompress(compressed, room + 1))
            except zlib.error as error:
                message = f"the body is not gzip, as Content-Encoding says: {error}"
                raise ApiError(400, message, "invalid_encoding") from None
            room -= len(pieces[-1])
            if room < 0:
                message = f"the body has more than {max_bytes:,} bytes when decompressed; send less"
                raise ApiError(413, message, "request_too_large")
            place += len(compressed) - len(reader.unused_data)
        while body[place : place + 1] == b"\0":  # padding
            place += 1
    return b"".join(pieces)


def check_text(body: bytes, headers: Headers) -> None:
    """Check that a body is UTF-8, and that its Content-Type names no other charset.

    Raises:
        ApiError: 400 or 415; the message names the first invalid byte.
    """
    found = re.search(r"charset\s*=\s*\"?([^\";\s]*)", headers.get("content-type", ""), re.IGNORECASE)
    charset = found[1] if found else ""
    if charset and charset.lower() not in UTF_8 and not body.isascii():
        place = next(place for place, byte in enumerate(body) if byte > 127)
        message = f"the body is in {charset[:40]!r}, and byte {place} is 0x{body[place]:02X}; send JSON in UTF-8"
        raise ApiError(415, message, "unsupported_media_type")
    try:
        body.decode("utf-8")
        wrong = body.find(0)  # as in UTF-16 and UTF-32; JSON has no NUL
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        message = f"the body is not UTF-8: byte {wrong} is 0x{body[wrong]:02X}; send JSON in UTF-8"
        raise ApiError(400, message, "invalid_json")
