"""Connections: limits, deadlines, and closing.

A connection has a deadline in every state. A client that has sent its request may half-close the connection
(`shutdown(SHUT_WR)`, `nc -N`) and still gets its response. A client that has left looks the same until it is sent
something, and then resets the connection. So half-closed connections are probed: before a response with the next byte
of what every response begins with, in a stream of events with a comment.

A connection that the server closes before a request is read completely is closed for sending first, and read for a
while: with unread data the kernel would reset it, and the client could lose the response.
"""

import asyncio
import socket
import sys
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.h11_impl import H11Protocol

from groundling.serve.http.errors import ApiError
from groundling.serve.http.framing import strict_connection
from groundling.serve.http.middleware import SECURITY
from groundling.serve.http.outlet import Outlet, reset
from groundling.serve.http.responses import as_json

GRACE_S = 1.0
"""An unread stream ends itself with an error first; the connection is reset this much later."""

LINGER_S = 5.0
"""How long to read a connection whose response was sent before the end of its request."""

PROBE_CHECK_S = 0.2
"""Interval of checks whether the client of a half-closed connection has left."""

FIRST_PROBE_S = 0.1
"""Delay of the first probe; each further delay is three times as long."""


def protocol_for(receive_timeout_s: float, send_timeout_s: float, max_connections: int) -> type[H11Protocol]:
    """A protocol class with these limits."""

    class WithLimits(Limited):
        limits = (receive_timeout_s, send_timeout_s, max_connections)

    return WithLimits


class Limited(H11Protocol):
    """Closes connections that are idle, slow, unread, abandoned, or above the limit."""

    limits: tuple[float, float, int]
    """Seconds to receive a request, seconds to leave a response unread, and connections at once."""

    lingers = False
    """Whether the last response is written, and further data is dropped."""
    _drops = False
    """Whether data arrived after the last request."""
    _half_closed = False
    """Whether the client has closed its sending side."""
    _timer: asyncio.TimerHandle | None = None
    _waits_for: type[h11.IDLE] | type[h11.SEND_BODY] | None = None
    _idle_since = 0.0
    _send_timer: asyncio.TimerHandle | None = None
    _probe_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = strict_connection()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits[2] and not self._make_room():
            transport.abort()
            return
        # asyncio sets TCP_NODELAY only for sockets made with IPPROTO_TCP. Without it, the body of a response waits
        # until the client acknowledges the head: 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Pause as soon as the client has not taken something, so that its deadline covers the last bytes, too.
        transport.set_write_buffer_limits(high=0)
        self._watch()

    def data_received(self, data: bytes) -> None:
        self._drops = self.lingers or self.conn.their_state is h11.MUST_CLOSE
        if self._drops:
            return
        super().data_received(data)
        self._watch()

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.cycle.transport = Outlet(self.transport, self.end_response, lambda: self.lingers)
            self.scope["extensions"] = {}
            if self._half_closed:
                self._probe(FIRST_PROBE_S)
        if self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) < HIGH_WATER_LIMIT:
            self.flow.resume_reading()  # to notice that the client leaves
        if self._half_closed and not self._awaits_response():
            self.transport.close()

    def _should_upgrade(self) -> bool:
        return False

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection open for the response to a complete request."""
        is_first, self._half_closed = not self._half_closed, True
        if not self._awaits_response():
            return False
        if is_first:
            self._probe(FIRST_PROBE_S)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._unwatch_sending()
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        super().connection_lost(exc)

    # Half-closed connections

    def _awaits_response(self) -> bool:
        """Whether a complete request waits for its response; an incomplete one is refused."""
        if self.lingers or self.transport.is_closing():
            return False
        state = self.conn.their_state
        if state is h11.IDLE and self.conn.trailing_data[0]:
            self.refuse("the connection was closed in the middle of the headers")
        elif state is h11.SEND_BODY and not self._has_responded():
            self.refuse("the connection was closed in the middle of the body")
        return state not in (h11.IDLE, h11.SEND_BODY, h11.ERROR) and not self._has_responded()

    def _has_responded(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _probe(self, wait_s: float, *, waited_s: float = 0.0) -> None:
        """Probe a half-closed connection, and reset it when its client has left."""
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        if self.transport.is_closing() or self._has_responded():
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if waited_s >= wait_s:
            self._send_filler()
            wait_s, waited_s = 3 * wait_s, 0.0
        next_s = min(PROBE_CHECK_S, wait_s - waited_s)
        self._probe_timer = self.loop.call_later(next_s, lambda: self._probe(wait_s, waited_s=waited_s + next_s))

    def _send_filler(self) -> None:
        filler = cast(dict[str, Any], self.cycle.scope["extensions"]).get("filler")
        if not self.cycle.response_started:
            cast(Outlet, self.cycle.transport).write_ahead()
        elif filler and not self.transport.get_write_buffer_size():
            self.transport.write(self.conn.send(h11.Data(data=filler)))

    # Closing

    def end_response(self) -> None:
        """Close the connection after a response, or in the middle of one."""
        has_unread = self._drops or self.flow.read_paused or self.conn.trailing_data[0]
        if not self._has_responded():
            reset(self.transport)
        elif self.conn.their_state is h11.SEND_BODY or has_unread:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Close for sending, and read until the client closes or the time is up."""
        if self.transport.is_closing() or self.lingers:
            return
        if self._half_closed:
            self.transport.close()
            return
        self._unwatch()
        self.lingers, self._idle_since = True, self.loop.time()
        try:
            self.transport.write_eof()
        except OSError:  # the client has left
            self.transport.abort()
            return
        self.flow.resume_reading()
        self._timer = self.loop.call_later(LINGER_S, self._end_linger)

    def _end_linger(self) -> None:
        if self.transport.get_write_buffer_size():  # still being sent; `_check_sending` watches it
            self._timer = self.loop.call_later(LINGER_S, self._end_linger)
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse invalid HTTP in JSON, with the same headers as any other error."""
        fault = sys.exception()
        status = fault.error_status_hint if isinstance(fault, h11.RemoteProtocolError) else 400
        self.refuse(f"this cannot be read as HTTP/1.1: {str(fault or msg)[:200]}", status)

    def refuse(self, message: str, status: int = 400) -> None:
        """Send an error, and close the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # another response has begun
            self._linger() if self._has_responded() else reset(self.transport)
            return
        is_head = self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"
        outlet = self.transport
        if not self._has_responded():  # nothing else will respond
            outlet, self.cycle.disconnected = self.cycle.transport, True
            self.cycle.message_event.set()
        body = as_json(ApiError(status, message, "bad_request").body())
        own = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        headers = [(name.encode(), value.encode()) for name, value in {**own, **SECURITY}.items()]
        reason = HTTPStatus(status).phrase.encode()
        events = [
            h11.Response(status_code=status, headers=headers, reason=reason),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        for event in events[:1] + events[2:] if is_head else events:
            outlet.write(self.conn.send(event) or b"")
        self._linger()

    # Deadlines

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch_sending()

    def _watch_sending(self) -> None:
        n_left = self.transport.get_write_buffer_size()
        self._send_timer = self.loop.call_later(self.limits[1] + GRACE_S, self._check_sending, n_left)

    def _unwatch_sending(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _check_sending(self, n_before: int) -> None:
        """Reset if nothing was sent since the last check: a close would keep waiting."""
        if self.transport.get_write_buffer_size() < n_before:
            self._watch_sending()
        else:
            reset(self.transport)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._idle_since = self.loop.time()
        # Between two requests only the keep-alive deadline applies.
        if self.conn.their_state is not h11.IDLE or self.conn.trailing_data[0]:
            self._watch()

    def _make_room(self) -> bool:
        """Close the longest idle connection, if any; first those whose responses are sent."""
        idle = [one for one in cast("set[Limited]", self.connections) if one._is_idle()]
        for one in sorted(idle, key=lambda one: (one.transport.get_write_buffer_size() > 0, one._idle_since))[:1]:
            one.transport.abort()
        return bool(idle)

    def _is_idle(self) -> bool:
        """Whether the last request is answered and the next has not begun."""
        is_between = self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE
        is_done = self.lingers or (is_between and self.cycle is not None and not self._waits_for)
        return is_done and not self.transport.is_closing()

    def _watch(self) -> None:
        """Start or end the deadline for a head, or for the rest of a body that was not read before its response.

        Single bytes do not extend it. Bodies that are read have the deadline of `bodies.BodyLimit`.
        """
        if self.lingers:
            return
        state = self.conn.their_state
        waits_for = state if state is h11.IDLE or (state is h11.SEND_BODY and self._has_responded()) else None
        if waits_for is self._waits_for:
            return
        self._unwatch()
        if waits_for is not None:
            self._waits_for = waits_for
            self._timer = self.loop.call_later(self.limits[0], self._too_slow)

    def _unwatch(self) -> None:
        self._waits_for = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.conn.their_state is self._waits_for and not self.transport.is_closing():
            self.transport.close()
