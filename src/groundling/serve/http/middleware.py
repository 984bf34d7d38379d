"""Middleware for every request: request log, Host and Origin checks.

Plain ASGI, so it covers all routes. Requests are refused before their body is read.
"""

import ipaddress
import time
import uuid
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundling.serve.http.errors import ApiError
from groundling.serve.http.responses import as_json

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
CHANGING = ("POST", "PUT", "PATCH", "DELETE")
PROBES = ("/health", "/ready")
"""Exempt from the Host check: a load balancer may use any name or address."""
WITH_BODY = ("POST", "PUT", "PATCH")
ALLOWED_HEADERS = ("Authorization", "Content-Encoding", "Content-Type")
"""Request headers that allowed origins may set."""
CLIENT_HEADER_PREFIX = "x-stainless-"
"""Prefix of the headers that OpenAI's client adds to describe itself."""
HEADER_BYTES = 16_384
"""Largest request head."""


def error_response(error: ApiError) -> Response:
    """The response for an error."""
    return Response(as_json(error.body()), error.status, error.headers(), "application/json")


def closing_response(error: ApiError) -> Response:
    """The response for an error that closes the connection: the unread body must not be parsed as a request."""
    response = error_response(error)
    response.headers["Connection"] = "close"
    return response


class RequestLog:
    """Outermost middleware: gives each request an id, and reports its status and duration.

    Args:
        app: the next application; its unhandled exceptions become error responses.
        on_end: called with a request's status and duration in seconds.
        on_exception: called with an unhandled exception; returns the error to send.
    """

    def __init__(
        self,
        app: ASGIApp,
        on_end: Callable[[Scope, int, float], None],
        on_exception: Callable[[Scope, Exception], ApiError],
    ) -> None:
        self._app, self._on_end, self._on_exception = app, on_end, on_exception

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: forward the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        notes: dict[str, Any] = {"id": uuid.uuid4().hex[:16]}
        scope["notes"] = notes

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = notes["id"]
                if status >= 400 and scope["method"] not in WITH_BODY and _has_body(scope):
                    headers["Connection"] = "close"  # its body is not read
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, with_headers)
        except Exception as error:
            answer = self._on_exception(scope, error)
            if status:  # the response has begun
                raise
            await error_response(answer)(scope, receive, with_headers)
        finally:
            self._on_end(scope, status, time.monotonic() - began)


class HostAndOriginCheck:
    """Rejects requests with an unknown Host (DNS rebinding), and state changes from other sites' pages (CSRF).

    Requests without a Host (HTTP/1.0) are accepted: every browser sends one.

    Why not Starlette's TrustedHostMiddleware and CORSMiddleware: they answer in plain text, not in OpenAI's error
    format, cannot exempt probes, read no IPv6 host, and cannot allow request headers by prefix.

    Args:
        app: the next application.
        hosts: accepted host names; empty: any.
        allowed: allowed origins; they get CORS headers.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], allowed: Collection[str]) -> None:
        self._app, self._hosts = app, {host_name(host) for host in hosts if host}
        self._allowed = {origin.lower().rstrip("/") for origin in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: forward the request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        fault = _read_target(scope)
        if fault is not None:
            await closing_response(fault)(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._accepts_host(headers, scope["path"]):
            message = f"the host {host[:100]!r} is not allowed; allow it with --allowed-hosts"
            await closing_response(ApiError(403, message, "host_not_allowed"))(scope, receive, send)
            return
        n_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if n_bytes > HEADER_BYTES:
            message = f"the headers have {n_bytes:,} bytes, and the limit is {HEADER_BYTES:,}"
            await closing_response(ApiError(431, message, "headers_too_large"))(scope, receive, send)
            return
        foreign = origin is not None and not self._is_own(origin, host)
        is_allowed = origin is not None and origin.lower() in self._allowed
        if foreign and not is_allowed and scope["method"] in CHANGING:
            message = "a page of another site may not do this; allow its origin with --cors-origins"
            await closing_response(ApiError(403, message, "origin_not_allowed"))(scope, receive, send)
            return
        if not (foreign and is_allowed):
            await self._app(scope, receive, send)
            return
        assert origin is not None
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            answer = Response(status_code=204, headers=_cors(origin))
            answer.headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE"
            requested = headers.get("access-control-request-headers", "").split(",")
            from_client = [name for name in map(str.strip, requested) if name.lower().startswith(CLIENT_HEADER_PREFIX)]
            answer.headers["Access-Control-Allow-Headers"] = ", ".join([*ALLOWED_HEADERS, *from_client])
            await answer(scope, receive, send)
            return

        async def with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_cors(origin))
            await send(message)

        await self._app(scope, receive, with_cors)

    def _accepts_host(self, headers: Headers, path: str) -> bool:
        """Whether a request's Host is accepted or not needed."""
        given = headers.getlist("host")
        return not self._hosts or path in PROBES or not given or host_name(given[0]) in self._hosts

    @staticmethod
    def _is_own(origin: str, host: str) -> bool:
        try:
            return bool(host) and urlsplit(origin).netloc.lower() == host.lower()
        except ValueError:  # not a host
            return False


def _read_target(scope: Scope) -> ApiError | None:
    """Normalize the request target to a path; return an error if it is invalid.

    The host of an absolute target replaces the Host header (RFC 9112, 3.2.2).
    """
    raw = scope.get("raw_path") or scope["path"].encode()
    if raw.startswith(b"/"):
        return None
    scheme, _, rest = raw.partition(b"://")
    host, _, path = rest.partition(b"/")
    if scheme.lower() not in (b"http", b"https") or not host:
        shown = raw[:100].decode("ascii", "replace")
        return ApiError(400, f"the target is {shown!r}; it must be a path like /v1/models", "bad_request")
    scope["path"], scope["raw_path"] = unquote("/" + path.decode("ascii", "replace")), b"/" + path
    others = [(name, value) for name, value in scope["headers"] if name != b"host"]
    scope["headers"] = [*others, (b"host", host)]
    return None


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""


def _cors(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "Retry-After, X-Request-Id",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Vary": "Origin",
    }


def host_name(host: str) -> str:
    """Normalize a host and drop its port, for example `LOCALHOST.:8000`, `[0:0::1]` and `::1`.

    An invalid host is returned unchanged, and matches no accepted name.
    """
    name, has_port, port = host.rpartition(":")
    if not has_port or not port.isdecimal() or (":" in name and not name.endswith("]")):
        name = host
    inside = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        return str(ipaddress.ip_address(inside.partition("%")[0]))
    except ValueError:
        return name.lower().removesuffix(".")
