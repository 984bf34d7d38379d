"""Strict parsing of HTTP/1.1: refuse what h11 accepts but other servers may parse differently.

If a proxy and the server disagree on where a request ends, a client can smuggle requests (RFC 9112, 11.2).
"""

import re
from collections.abc import Callable, Sequence
from typing import cast

import h11
from h11._receivebuffer import ReceiveBuffer  # private: the checks must run before h11 parses

from groundling.serve.http.middleware import HEADER_BYTES

FAULTS = re.compile(
    rb"(?P<lf>(?<!\r)\n)|(?P<cr>\r(?!\n|\Z))|(?P<fold>\n[ \t])|(?P<control>[\x00-\x08\x0b\x0c\x0e-\x1f\x7f])"
)
DESCRIPTIONS = {
    "lf": "a line ends in LF without CR",
    "cr": "a CR is not followed by LF",
    "fold": "a header is folded over two lines",
}
VERSION = re.compile(rb" HTTP/([0-9]\.[0-9])$")


def strict_connection() -> h11.Connection:
    """h11's server connection with strict parsing."""
    connection = h11.Connection(h11.SERVER, HEADER_BYTES)
    connection._receive_buffer = StrictBuffer(lambda: connection.their_state is h11.IDLE)
    return connection


class StrictBuffer(ReceiveBuffer):
    """h11's receive buffer, accepting only CRLF line ends.

    Args:
        is_head: whether the next lines are a request's head rather than trailers.
    """

    def __init__(self, is_head: Callable[[], bool]) -> None:
        super().__init__()
        self._is_head = is_head
        self._n_extension_bytes = 0

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """All lines up to an empty one; None: incomplete.

        Raises:
            LocalProtocolError: they violate HTTP/1.1.
        """
        searched = max(0, self._multiple_lines_search - 3)
        if self._data[:2] == b"\r\n":
            self._extract(2)
            return []
        place = self._data.find(b"\r\n\r\n", searched)
        end = len(self._data) if place < 0 else place + 4
        _refuse_faults(self._data, searched, end)
        if place < 0:
            self._multiple_lines_search = end
            return None
        lines = bytes(self._extract(end)[:-4]).split(b"\r\n")
        if self._is_head():
            self._n_extension_bytes = 0
            _check_head(lines)
        return cast("list[bytearray]", lines)

    def maybe_extract_next_line(self) -> bytearray | None:
        """The first line of a chunk; None: incomplete.

        Raises:
            LocalProtocolError: an illegal byte, or the chunk extensions of the body are too long.
        """
        line = super().maybe_extract_next_line()
        if line is not None:
            _refuse_faults(line, 0, len(line))
            self._n_extension_bytes += len(line.partition(b";")[2])
            if self._n_extension_bytes > HEADER_BYTES:
                raise h11.LocalProtocolError(f"the chunk extensions have more than {HEADER_BYTES:,} bytes")
        return line


def _refuse_faults(data: bytearray, start: int, end: int) -> None:
    found = FAULTS.search(data, start, end)
    if found is not None:
        kind = found.lastgroup or ""
        raise h11.LocalProtocolError(DESCRIPTIONS.get(kind, f"illegal byte 0x{found[0][0]:02X} in the headers"))


def _check_head(lines: Sequence[bytes]) -> None:
    """Check what h11 does not: the HTTP version, and conflicting body lengths."""
    if len(lines[0]) > HEADER_BYTES:
        raise h11.LocalProtocolError(f"the request line has more than {HEADER_BYTES:,} bytes", error_status_hint=414)
    version = VERSION.search(lines[0])
    if version is not None and version[1] not in (b"1.0", b"1.1"):
        raise h11.LocalProtocolError(f"HTTP/{version[1].decode()} is not supported, only HTTP/1.0 and HTTP/1.1")
    names = {line.partition(b":")[0].lower() for line in lines[1:]}
    if b"transfer-encoding" in names:
        if b"content-length" in names:
            raise h11.LocalProtocolError("both Content-Length and Transfer-Encoding are set")
        if version is not None and version[1] == b"1.0":
            raise h11.LocalProtocolError("HTTP/1.0 does not support Transfer-Encoding")
