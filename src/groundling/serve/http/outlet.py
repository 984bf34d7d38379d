"""Transport of a response, and resetting connections."""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

BEGINNING = b"HTTP/1.1 "
"""Common to all responses, informational ones (100) included."""


class Outlet(asyncio.Transport):
    """Transport of one response; can send the bytes that all responses begin with before the response is known.

    Args:
        transport: of the connection.
        close: called when the response has ended or failed.
        is_closed: whether writing is over, besides the transport's own state.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None], is_closed: Callable[[], bool]) -> None:
        super().__init__()
        self._transport, self._close, self._is_closed = transport, close, is_closed
        self._n_ahead = 0

    def write_ahead(self) -> None:
        """Send the next byte of `BEGINNING`, if any is left."""
        self._transport.write(BEGINNING[self._n_ahead : self._n_ahead + 1])
        self._n_ahead = min(self._n_ahead + 1, len(BEGINNING))

    def write(self, data: Any) -> None:
        """Send data of the response, without the bytes sent ahead."""
        self._transport.write(data[self._n_ahead :])
        self._n_ahead = 0

    def close(self) -> None:
        """Close the connection as the state of the response requires."""
        self._close()

    def is_closing(self) -> bool:
        """Whether writing is over."""
        return self._is_closed() or self._transport.is_closing()


def reset(transport: asyncio.Transport) -> None:
    """Reset a connection, and drop what the kernel has not sent: a client that does not read would hold it."""
    no_time = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
    with suppress(OSError):  # already closed
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_time)
    transport.abort()
