"""What an answer is written to, and how a connection is broken off."""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

BEGINNING = b"HTTP/1.1 "
"""Of every answer, also of an informational one (100)."""


class Outlet(asyncio.Transport):
    """The transport of one answer, which may begin before the answer is known: with what all answers have in common.

    Args:
        transport: of the connection.
        close: is called when the answer has ended, or cannot go on.
        is_closed: whether nothing more may be written, besides what the transport says of itself.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None], is_closed: Callable[[], bool]) -> None:
        super().__init__()
        self._transport, self._close, self._is_closed = transport, close, is_closed
        self._n_ahead = 0

    def write_ahead(self) -> None:
        """Send the next byte of the beginning, if there is one."""
        self._transport.write(BEGINNING[self._n_ahead : self._n_ahead + 1])
        self._n_ahead = min(self._n_ahead + 1, len(BEGINNING))

    def write(self, data: Any) -> None:
        """Send what is next of the answer, without what was sent ahead."""
        self._transport.write(data[self._n_ahead :])
        self._n_ahead = 0

    def close(self) -> None:
        """End the connection, in the way that the state of the answer asks for."""
        self._close()

    def is_closing(self) -> bool:
        """Whether nothing more may be written."""
        return self._is_closed() or self._transport.is_closing()


def reset(transport: asyncio.Transport) -> None:
    """Break a connection off. What the kernel has not sent is dropped: a client that does not read would keep it."""
    no_time = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
    with suppress(OSError):  # it is closed already
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_time)
    transport.abort()
