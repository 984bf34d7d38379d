"""Row 45: what is no request is refused with 400 or 415, and tells nothing of the inside."""

import pytest

from servekit import Served

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


@pytest.mark.parametrize("body", BODIES, ids=str)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_body_that_is_no_request(server: Served, path: str, body: bytes) -> None:
    status, answer, _ = server.ask("POST", path, raw=body)
    assert status in (400, 404)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_another_kind_of_body(server: Served, kind: str) -> None:
    body = b'{"model": "base", "prompt": "a"}'
    status, answer, _ = server.ask("POST", "/v1/completions", raw=body, headers={"Content-Type": kind})
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/completions", 405), ("GET", "/nothing", 404)])
def test_another_way(server: Served, method: str, path: str, status: int) -> None:
    found, answer, _ = server.ask(method, path)
    assert found == status
    assert answer["error"]["type"] == "invalid_request_error"
