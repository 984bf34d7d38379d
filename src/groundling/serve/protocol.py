"""How connections are kept: not too many, and none that takes for ever to say what it wants; and how a server ends.

After SIGTERM it drains: what is being written is ended, what comes newly is refused with 503, and after a while all
that is left is broken off with an error. A second signal ends it at once. Either way it exits with 0.
"""

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from groundling.serve.errors import ApiError
from groundling.serve.guard import SECURITY
from groundling.serve.registry import State, Theatre
from groundling.serve.respond import as_json

FLUSH_S = 2
"""For the last errors to be sent, after all was broken off."""

GRACE_S = 1.0
"""A stream ends by itself when it is not read, and says why; the connection is broken off after that."""


def protocol_for(receive_timeout_s: float, send_timeout_s: float, max_connections: int) -> type[H11Protocol]:
    """HTTP/1.1, with limits."""

    class Limited(H11Protocol):
        """Closes connections that do not say what they want, that are not read, and those that are too many."""

        _timer: asyncio.TimerHandle | None = None
        _waits_for: type[h11.IDLE] | type[h11.SEND_BODY] | None = None
        _idle_since = 0.0
        _send_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > max_connections and not self._make_room():
                transport.abort()
                return
            # asyncio does so only for sockets made with IPPROTO_TCP. Without it, the body of an answer waits until the
            # client acknowledges the head: 40 ms.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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

        def send_400_response(self, msg: str) -> None:
            """Answer what is not HTTP as everything else is answered: in JSON, with the same headers."""
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # half of another answer is out
                self.transport.close()
                return
            fault = sys.exception()
            status = fault.error_status_hint if isinstance(fault, h11.RemoteProtocolError) else 400
            error = ApiError(status, f"this cannot be read as HTTP/1.1: {fault or msg}", "bad_request")
            body = as_json(error.body())
            own = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
            headers = [(name.encode(), value.encode()) for name, value in {**own, **SECURITY}.items()]
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._idle_since = self.loop.time()
            if self.conn.their_state is h11.SEND_BODY:
                self._watch()

        def _make_room(self) -> bool:
            """Close the connection that has been idle for longest after an answer, if there is one."""
            idle = [one for one in cast("set[Limited]", self.connections) if one._is_idle()]
            for one in sorted(idle, key=lambda one: one._idle_since)[:1]:
                one.transport.abort()
            return bool(idle)

        def _is_idle(self) -> bool:
            """Whether it was answered, and nothing of a next request has come."""
            is_between = self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE
            return is_between and self.cycle is not None and not self._waits_for and not self.transport.is_closing()

        def _watch(self) -> None:
            """Start or end the deadline of a head, or of the rest of a body that was not read before its answer.

            Bytes that trickle in do not move it. A body that is read has the deadline of `guard.Bodies`.
            """
            state = self.conn.their_state
            is_answered = self.cycle is None or self.cycle.response_complete
            waits_for = state if state is h11.IDLE or (state is h11.SEND_BODY and is_answered) else None
            if waits_for is self._waits_for:
                return
            self._unwatch()
            if waits_for is not None:
                self._waits_for = waits_for
                self._timer = self.loop.call_later(receive_timeout_s, self._too_slow)

        def _unwatch(self) -> None:
            self._waits_for = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            if self.conn.their_state is self._waits_for and not self.transport.is_closing():
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
            self._theatre.leaves_loading = self._theatre.state is State.LOADING
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
        await self._theatre.stop()  # what is left hears of it
        return True
