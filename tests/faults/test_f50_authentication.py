"""Row 50: without a key nothing is told but that the server lives, whatever the path or the way."""

import http.client
import json
import socket

import pytest
from starlette.routing import Route

from groundling.errors import ConfigError
from groundling.serve.app import create_app
from groundling.serve.config import ServeConfig
from groundling.serve.pages import PAGES
from groundling.serve.state import ServerState
from groundling.system.logs import EventLog
from servekit import Served, serving

OPEN = {"/health", "/ready", "/static/{name}", *PAGES}
KEY = "a-long-secret-key"


@pytest.fixture(scope="module")
def guarded(models, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"# ours\n{KEY}\nanother-key-of-ours\n")
    with serving(models["base"], "--api-key-file", keys, "--safety", "off") as server:
        yield server


def every_route(models, tmp_path):
    app = create_app(ServerState(ServeConfig(paths=(str(models["base"]),), rankings=tmp_path / "r.sqlite")), EventLog())
    pending, found = list(app.routes), []
    while pending:
        route = pending.pop()
        if isinstance(route, Route):
            found.append(route)
        else:
            pending += getattr(route, "original_router", route).routes
    return found


@pytest.mark.slow
def test_each_route_needs_a_key(guarded: Served, models, tmp_path) -> None:
    routes = every_route(models, tmp_path)
    assert len(routes) > len(OPEN)
    for route in routes:
        if route.path in OPEN:
            continue
        path = route.path.replace("{", "").replace("}", "").replace(":path", "")
        for method in route.methods:
            body = {} if method in ("POST", "PUT", "PATCH") else None
            status, answer, headers = guarded.ask(method, path, body)
            assert status == 401, (method, path)
            assert headers["www-authenticate"] == "Bearer"
            assert method == "HEAD" or answer["error"]["code"] == "invalid_api_key"


REFUSED = {
    "a body that does not come": (b"POST", b"Content-Length: 1000\r\n", b""),
    "a body that is too large": (b"POST", b"Content-Length: 4000000\r\n", b"x" * 4_000_000),
    "chunks without end": (b"PUT", b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n"),
    "a body that waits to be asked for": (b"POST", b"Expect: 100-continue\r\nContent-Length: 9\r\n", b""),
    "a body that a GET has": (b"GET", b"Content-Length: 1000\r\n", b""),
    "another key": (b"POST", b"Authorization: Bearer another-key\r\nContent-Length: 1000\r\n", b""),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSED)
def test_a_body_is_read_after_the_key(guarded: Served, what: str) -> None:
    """Without one, the answer comes at once and all of it, and then the connection is closed."""
    method, headers, body = REFUSED[what]
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=5) as sock:  # a body has 10 s to come
        sock.sendall(method + b" /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n" + body)
        answer = b""
        while piece := sock.recv(1 << 16):
            answer += piece
    head, _, text = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401" if method != b"GET" else b"HTTP/1.1 405")
    assert b"\r\nconnection: close" in head.lower()
    assert b"nosniff" in head
    assert json.loads(text)["error"]["code"] == ("invalid_api_key" if method != b"GET" else "method_not_allowed")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(OPEN - {"/static/{name}"}))
def test_open_routes_hold_no_user_data(guarded: Served, path: str) -> None:
    assert guarded.ask("GET", path)[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        ("Bearer another-key-of-ours", 200),
        (f"Bearer {KEY[:-1]}", 401),
        (f"Bearer {KEY}x", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
        ("Bearer ", 401),
        ("Bearer # ours", 401),
        ("Bearer caf\xe9", 401),
    ],
)
def test_only_a_whole_key_opens(guarded: Served, header: str, status: int) -> None:
    assert guarded.ask("GET", "/v1/models", headers={"Authorization": header})[0] == status


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["//v1/models", "/v1//models", "/V1/models", "/v1/models/", "/v1/../v1/models", "/%76%31/models"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_no_spelling_bypasses_the_key(guarded: Served, path: str, method: str) -> None:
    assert guarded.ask(method, path)[0] in (401, 404, 405)


@pytest.mark.slow
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "[::2]", "127.0.0.1@evil"]
)
def test_a_name_that_is_not_ours_is_refused(server: Served, host: str) -> None:
    """A page whose name was bound to this machine's address would else be let in."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.putrequest("GET", "/v1/models", skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    assert connection.getresponse().status in (400, 403)
    connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_other_machines_need_a_key(models, host: str, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("GROUNDLING_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="no key is set"):
        ServeConfig(paths=("a",), host=host).require_safe()
    ServeConfig(paths=("a",), host=host, api_key=(KEY,)).require_safe()
    for local in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        ServeConfig(paths=("a",), host=local).require_safe()


@pytest.mark.parametrize("text", ["", "# only words\n", "short\n", "with a space in it\n", "caf\xe9-caf\xe9\n"])
def test_a_file_that_holds_no_key_is_refused(tmp_path, text: str) -> None:
    (tmp_path / "keys").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="key"):
        ServeConfig(paths=("a",), api_key_file=tmp_path / "keys").keys()
