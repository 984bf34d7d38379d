"""Responses that end when the client disconnects: complete ones, and streams of server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from groundling.serve.http.errors import ApiError

T = TypeVar("T")
COMMENT = b":\n\n"
"""A comment in a stream of events, ignored by clients."""


class Gone(Exception):  # noqa: N818  # not an error: control flow
    """The client has disconnected or stopped reading; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and cancel it when the client disconnects.

    Raises:
        Gone: the client has disconnected.
    """
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone("disconnect")
    finally:
        for future in (task, leaving):
            future.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await future


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events: `data: JSON` for each chunk, then `data: [DONE]`.

    An error after the first byte is an event of its own, and ends the stream without `[DONE]`.

    Args:
        chunks: lists of chunks to send.
        send_timeout_s: how long a client may leave data unread.
        on_end: called with the reason for an early end, or None.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncIterator[list[dict[str, Any]]],
        send_timeout_s: float,
        on_end: Callable[[str | None], None],
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._send_timeout_s, self._on_end = chunks, send_timeout_s, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: send the events."""
        scope.get("extensions", {})["filler"] = COMMENT  # for probes of the connection, see protocol.py
        reason: str | None = "error"
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            reason = await unless_gone(receive, self._pump(send))
        except Gone as gone:
            reason = gone.reason
        finally:
            self._on_end(reason)

    async def _pump(self, send: Send) -> str | None:
        reason = None
        try:
            async for chunks in self._chunks:
                await self._send(send, b"".join(_event(chunk) for chunk in chunks))
            last = b"data: [DONE]\n\n"
        except ApiError as error:
            last, reason = _event(error.body()), error.code or "error"
        try:
            await self._send(send, last, more=False)
        except Gone as gone:
            return reason or gone.reason
        return reason

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise Gone("slow_reader") from None


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + as_json(value) + b"\n\n"


def as_json(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
