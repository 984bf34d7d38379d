"""Row 45: what is no request is refused with 400 or 415, and tells nothing of the inside."""

import pytest
from starlette.testclient import TestClient

from groundling.serve.app import create_app
from groundling.serve.config import ServeConfig
from groundling.serve.state import ServerState
from groundling.system.logs import EventLog
from servekit import Served, wait_until

BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"5",
    b"\xff\xfe\x00",
    b'{"model": "base", "prompt": "\\ud800"}',
    b'{"model": "base\\ud800", "prompt": "a"}',
    b'{"model": "base", "prompt": "a", "\\ud800": 1}',
    b'{"model": "base", "prompt": "a", "stop": ["\\udfff"]}',
    b'{"model": "base", "prompt": "a", "user": "\\ud83d"}',
    b'{"model": "base", "prompt": "a"} trailing',
    b'{"model": "base\\u0000", "prompt": "a"}',
]


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES, ids=str)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_an_invalid_body(server: Served, path: str, body: bytes) -> None:
    status, answer, _ = server.ask("POST", path, raw=body)
    assert status in (400, 404)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer["error"]["message"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_another_content_type(server: Served, kind: str) -> None:
    body = b'{"model": "base", "prompt": "a"}'
    status, answer, _ = server.ask("POST", "/v1/completions", raw=body, headers={"Content-Type": kind})
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/completions", 405), ("GET", "/nothing", 404)])
def test_another_method(server: Served, method: str, path: str, status: int) -> None:
    found, answer, _ = server.ask(method, path)
    assert found == status
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.slow
def test_quotes_of_a_request_are_short(server: Served) -> None:
    method = "A" * 5000
    status, answer, headers = server.ask(method, "/" + "b" * 5000)
    assert status == 404
    assert len(answer["error"]["message"]) < 300
    logged: list[dict] = []
    wait_until(
        lambda: logged.extend(line for line in server.log() if line.get("id") == headers["x-request-id"]) or logged
    )
    assert len(str(logged[0])) < 300


def test_a_bug_is_a_json_error(tmp_path) -> None:
    """It has a name, the headers that all have, and is counted as what it is."""
    server = ServerState(ServeConfig(paths=(str(tmp_path / "nothing"),), safety="off", rankings=tmp_path / "r.sqlite"))
    app, path = create_app(server, EventLog((tmp_path / "log").open("w"))), "/v1/bug"
    app.add_api_route(path, lambda: 1 // 0)
    answer = TestClient(app, base_url="http://localhost").get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "ZeroDivisionError" not in answer.text
    assert {"x-request-id", "content-security-policy", "x-content-type-options"} <= set(answer.headers)
    assert b'requests_total{route="/v1/bug",status="500"} 1.0' in server.metrics.text()
    log = (tmp_path / "log").read_text()
    assert "ZeroDivisionError" in log
    assert log.count(answer.headers["x-request-id"]) == 2
