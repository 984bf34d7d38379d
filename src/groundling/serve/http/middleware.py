"""What every request passes first, below all routes: which host it names, and from which page it comes.

Plain ASGI, so that no route can be forgotten. Each answers with an error of its own before anything else is read.
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
"""What a load balancer asks, by whatever name or address it knows; the answer is nobody's secret."""
WITH_BODY = ("POST", "PUT", "PATCH")
ALLOWED_HEADERS = ("Authorization", "Content-Encoding", "Content-Type")
"""What a page of another site may set, if its origin is allowed."""
CLIENTS_OWN = "x-stainless-"
"""What the headers begin with in which OpenAI's client tells of itself."""
HEADER_BYTES = 16_384
"""Of a request, until its body."""


def error_response(error: ApiError) -> Response:
    """An error as an answer."""
    return Response(as_json(error.body()), error.status, error.headers(), "application/json")


def closing_response(error: ApiError) -> Response:
    """An error as an answer, after which the connection ends: what was not read cannot be told from a next request."""
    response = error_response(error)
    response.headers["Connection"] = "close"
    return response


class RequestLog:
    """Outermost: counts requests, gives each a name, and tells what came of it when it has ended.

    Args:
        app: what comes after; what it fails with becomes an answer like any other.
        when_over: is told a request's status, and how long it took.
        when_failed: is told what nobody has caught, and says what to answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        when_over: Callable[[Scope, int, float], None],
        when_failed: Callable[[Scope, Exception], ApiError],
    ) -> None:
        self._app, self._when_over, self._when_failed = app, when_over, when_failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
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
                    headers["Connection"] = "close"  # nobody reads that body
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, with_headers)
        except Exception as error:
            answer = self._when_failed(scope, error)
            if status:  # half of an answer is out, and no other can follow
                raise
            await error_response(answer)(scope, receive, with_headers)
        finally:
            self._when_over(scope, status, time.monotonic() - began)


class Origins:
    """Refuses requests to other hosts' names (DNS rebinding), and changes that foreign pages ask for (CSRF).

    A request without a Host (HTTP/1.0) is not refused for it: every browser sends one.

    Why not Starlette's TrustedHostMiddleware and CORSMiddleware: they answer in plain text, not in OpenAI's error
    format, cannot exempt probes, read no IPv6 host, and cannot allow request headers by prefix.

    Args:
        app: what comes after.
        hosts: names that we go by; none: any.
        allowed: origins of pages that may call; they get CORS headers.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str], allowed: Collection[str]) -> None:
        self._app, self._hosts = app, {host_name(host) for host in hosts if host}
        self._allowed = {origin.lower().rstrip("/") for origin in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        fault = _read_target(scope)
        if fault is not None:
            await closing_response(fault)(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._goes_by(headers, scope["path"]):
            message = f"this server is not called {host[:100]!r}; allow the name with --allowed-hosts"
            await closing_response(ApiError(403, message, "host_not_allowed"))(scope, receive, send)
            return
        n_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if n_bytes > HEADER_BYTES:
            message = f"the headers have {n_bytes:,} bytes, and {HEADER_BYTES:,} are read at most"
            await closing_response(ApiError(431, message, "headers_too_large"))(scope, receive, send)
            return
        foreign = origin is not None and not self._is_own(origin, host)
        may = origin is not None and origin.lower() in self._allowed
        if foreign and not may and scope["method"] in CHANGING:
            message = "a page of another site may not do this; allow its origin with --cors-origins"
            await closing_response(ApiError(403, message, "origin_not_allowed"))(scope, receive, send)
            return
        if not (foreign and may):
            await self._app(scope, receive, send)
            return
        assert origin is not None
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            answer = Response(status_code=204, headers=_cors(origin))
            answer.headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE"
            asked = headers.get("access-control-request-headers", "").split(",")
            told = [name for name in map(str.strip, asked) if name.lower().startswith(CLIENTS_OWN)]
            answer.headers["Access-Control-Allow-Headers"] = ", ".join([*ALLOWED_HEADERS, *told])
            await answer(scope, receive, send)
            return

        async def with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_cors(origin))
            await send(message)

        await self._app(scope, receive, with_cors)

    def _goes_by(self, headers: Headers, path: str) -> bool:
        """Whether a request calls us by a name of ours, or needs none."""
        given = headers.getlist("host")
        return not self._hosts or path in PROBES or not given or host_name(given[0]) in self._hosts

    @staticmethod
    def _is_own(origin: str, host: str) -> bool:
        try:
            return bool(host) and urlsplit(origin).netloc.lower() == host.lower()
        except ValueError:  # no address at all
            return False


def _read_target(scope: Scope) -> ApiError | None:
    """Normalise the request target to a path; return the error if it is not valid.

    A proxy may be sent the whole address, whose host then counts in place of the header Host (RFC 9112, 3.2.2).
    """
    raw = scope.get("raw_path") or scope["path"].encode()
    if raw.startswith(b"/"):
        return None
    scheme, _, rest = raw.partition(b"://")
    host, _, path = rest.partition(b"/")
    if scheme.lower() not in (b"http", b"https") or not host:
        shown = raw[:100].decode("ascii", "replace")
        return ApiError(400, f"the target is {shown!r}; it has to be a path like /v1/models", "bad_request")
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
    """A host's name, in one spelling, without its port: of `LOCALHOST.:8000`, `[0:0::1]` and `::1`.

    What is no host is returned as it is, and is nobody's name.
    """
    name, has_port, port = host.rpartition(":")
    if not has_port or not port.isdecimal() or (":" in name and not name.endswith("]")):
        name = host
    inside = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        return str(ipaddress.ip_address(inside.partition("%")[0]))
    except ValueError:
        return name.lower().removesuffix(".")
