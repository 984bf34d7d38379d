"""What goes wrong over HTTP, in the one shape that OpenAI's clients read."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: one line: what came, what was expected, what to do.
        code: a name for programs.
        param: the field of the request that is at fault.
        retry_after_s: when to ask again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """As JSON."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        param = None if self.param is None else _printable(self.param)
        return {"error": {"message": _printable(self.message), "type": kind, "param": param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """What goes with it."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if self.code == "unsupported_encoding":
            return {"Accept-Encoding": "gzip"}
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def not_ready(message: str) -> ApiError:
    """The server cannot do this now, and may be able to soon."""
    return ApiError(503, message, "not_ready", retry_after_s=2)


def draining() -> ApiError:
    """The server is shutting down."""
    return ApiError(503, "the server is shutting down", "draining", retry_after_s=2)


def deadline_exceeded() -> ApiError:
    """What is said when `timeout_s` has gone by."""
    return ApiError(503, "the time for this request is up", "deadline_exceeded", retry_after_s=1)


def no_memory(error: Exception) -> ApiError:
    """A text can come to need more memory than the machine has for it; a shorter one may not."""
    return ApiError(400, str(error), "insufficient_memory", "max_tokens")


async def in_time(work: Awaitable[T], timeout_s: float) -> T:
    """Do the work.

    Raises:
        ApiError: 503: it took longer.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        raise deadline_exceeded() from None


def _printable(text: str) -> str:
    """Half a character, as JSON can hold it, has no bytes that could be sent."""
    return text.encode("utf-8", "replace").decode()
