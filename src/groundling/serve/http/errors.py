"""Errors over HTTP, in the format of OpenAI's API."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error response.

    Args:
        status: HTTP status.
        message: one line: what was received, what was expected, what to do.
        code: machine-readable name.
        param: the request's field at fault.
        retry_after_s: value of the Retry-After header.
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
        """The JSON body."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        param = None if self.param is None else _printable(self.param)
        return {"error": {"message": _printable(self.message), "type": kind, "param": param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if self.code == "unsupported_encoding":
            return {"Accept-Encoding": "gzip"}
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def not_ready(message: str) -> ApiError:
    """503: not ready yet; retry soon."""
    return ApiError(503, message, "not_ready", retry_after_s=2)


def draining() -> ApiError:
    """503: the server is shutting down."""
    return ApiError(503, "the server is shutting down", "draining", retry_after_s=2)


def deadline_exceeded() -> ApiError:
    """503: the request took longer than `timeout_s`."""
    return ApiError(503, "the request exceeded its time limit", "deadline_exceeded", retry_after_s=1)


def no_memory(error: Exception) -> ApiError:
    """400: the text could need more memory than is available."""
    return ApiError(400, str(error), "insufficient_memory", "max_tokens")


async def in_time(work: Awaitable[T], timeout_s: float) -> T:
    """Await `work`.

    Raises:
        ApiError: 503: it took longer than `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        raise deadline_exceeded() from None


def _printable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()
