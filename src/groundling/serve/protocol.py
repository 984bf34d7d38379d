"""How connections are kept: not too many, and none that takes for ever to say what it wants; and how a server ends.

After SIGTERM it drains: what is being written is ended, what comes newly is refused with 503, and after a while all
that is left is broken off with an error. A second signal ends it at once. Either way it exits with 0.
"""

import asyncio
import signal
import time
from collections.abc import Callable
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from groundling.serve.registry import State, Theatre

FLUSH_S = 2
"""For the last errors to be sent, after all was broken off."""

GRACE_S = 1.0
"""A stream ends by itself when it is not read, and says why; the connection is broken off after that."""


def protocol_for(receive_timeout_s: float, send_timeout_s: float, max_connections: int) -> type[H11Protocol]:
    """HTTP/1.1, with limits."""

    class Limited(H11Protocol):
        """Closes connections that do not say what they want, that are not read, and those that are too many."""

        _timer: asyncio.TimerHandle | None = None
        _send_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.abort()
                return
            # Anything that the client has not taken is waited for, also the last of what was written before a close.
            transport.set_write_buffer_limits(high=0)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            self._unwatch_sending()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_sending()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._unwatch_sending()

        def _watch_sending(self) -> None:
            n_left = self.transport.get_write_buffer_size()
            self._send_timer = self.loop.call_later(send_timeout_s + GRACE_S, self._look_at_sending, n_left)

        def _unwatch_sending(self) -> None:
            if self._send_timer is not None:
                self._send_timer.cancel()
                self._send_timer = None

        def _look_at_sending(self, n_before: int) -> None:
            """Who has read nothing of it does not read; closing would wait for him, and keep all that is unsent."""
            if self.transport.get_write_buffer_size() < n_before:
                self._watch_sending()
            else:
                self.transport.abort()

        def _watch(self) -> None:
            """A request's head has to be there in time; how it trickles in makes no difference."""
            if self.conn.their_state is not h11.IDLE:
                self._unwatch()
            elif self._timer is None:
                self._timer = self.loop.call_later(receive_timeout_s, self._too_slow)

        def _unwatch(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                self.transport.close()

    return Limited


class Server(uvicorn.Server):
    """uvicorn, with an end of our own.

    Args:
        config: of uvicorn.
        theatre: is drained.
        say: is told once, when requests are answered.
    """

    def __init__(self, config: uvicorn.Config, theatre: Theatre, say: Callable[[], None]) -> None:
        super().__init__(config)
        self._theatre, self._say = theatre, say
        self._has_said = False
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; at the second signal, end."""
        del frame
        if self._until is None:
            self._theatre.state = State.DRAINING
            quick = sig == signal.SIGINT and not self._theatre.n_open
            self._until = time.monotonic() + (0 if quick else self._theatre.config.drain_s)
        else:
            self._until = 0.0

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second: whether to end now."""
        if await super().on_tick(counter):
            return True
        if self._theatre.failure is not None:
            return True
        if self._theatre.state is State.READY and not self._has_said:
            self._has_said = True
            self._say()
        if self._until is None or (self._theatre.n_open and time.monotonic() < self._until):
            return False
        self._theatre.state = State.STOPPED
        await self._theatre.worker.stop()  # what is left hears of it
        return True
