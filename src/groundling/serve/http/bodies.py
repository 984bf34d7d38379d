"""Read request bodies: after the key is checked, complete, with limits of size and time."""

import asyncio
from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundling.serve.http.encodings import check_encodings, check_text, decompressed
from groundling.serve.http.errors import ApiError
from groundling.serve.http.middleware import WITH_BODY, closing_response


class RequireKey:
    """Rejects requests with a body but no valid key before the body is read.

    Args:
        app: the next application.
        check: raises ApiError unless an Authorization header has a valid key.
    """

    def __init__(self, app: ASGIApp, check: Callable[[str], object]) -> None:
        self._app, self._check = app, check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: forward the request, or refuse it."""
        if scope["type"] == "http" and scope["method"] in WITH_BODY:
            try:
                self._check(Headers(scope=scope).get("authorization", ""))
            except ApiError as error:
                await closing_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyLimit:
    """Reads complete JSON bodies, with limits of size and time.

    Args:
        app: the next application; it receives the body in one message.
        max_bytes: size limit of a body.
        timeout_s: time limit for receiving it.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app, self._max_bytes, self._timeout_s = app, max_bytes, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: forward the request, or refuse it."""
        if scope["type"] != "http" or scope["method"] not in WITH_BODY:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check(headers)
            is_gzip = check_encodings(headers)
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(receive)
            if is_gzip and body:
                body = await run_in_threadpool(decompressed, body, self._max_bytes)
            check_text(body or b"", headers)
        except TimeoutError:
            error = ApiError(408, f"the body did not arrive within {self._timeout_s:g} s", "request_timeout")
            await closing_response(error)(scope, receive, send)
            return
        except ApiError as error:
            await closing_response(error)(scope, receive, send)
            return
        if body is None:  # client disconnected
            return
        unread = [body]

        async def replay() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await receive()

        await self._app(scope, replay, send)

    def _check(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise self._too_large()
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            problem = f"is {kind[:100]!r}" if kind else "is missing"
            raise ApiError(415, f"Content-Type {problem}; send application/json", "unsupported_media_type")

    async def _read(self, receive: Receive) -> bytes | None:
        pieces, n_bytes = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            n_bytes += len(pieces[-1])
            if n_bytes > self._max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(pieces)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self._max_bytes:,} bytes; send less", "request_too_large")
