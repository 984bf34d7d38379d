"""Row 43: what is too long, too deep or too large is refused early, and costs no memory."""

import http.client
import json
import select
from contextlib import suppress

import pytest

from prockit import resident_bytes
from servekit import TALK, Served

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"


def test_a_prompt_beyond_the_context(server: Served) -> None:
    for path, body in (
        ("/v1/completions", {"model": "base", "prompt": "a" * 65}),
        (CHAT, {"model": "talker", "messages": [{"role": "user", "content": "a" * 62}]}),
        (CHAT, {"model": "talker", "messages": [TALK, {"role": "assistant", "content": "a"}] * 20 + [TALK]}),
    ):
        status, answer, _ = server.ask("POST", path, body)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    status, _, _ = server.ask("POST", "/v1/completions", {"model": "base", "prompt": "a" * 64, "max_tokens": 2})
    assert status == 200, "what just fits is taken"


@pytest.mark.parametrize(
    "messages", [[], None, {}, "hello", [TALK] * 10_001, [{}], [[TALK]]], ids=lambda m: str(m)[:20]
)
def test_invalid_conversations(server: Served, messages: object) -> None:
    status, answer, _ = server.ask("POST", CHAT, {"model": "talker", "messages": messages})
    assert (status, answer["error"]["param"].split(".")[0]) == (400, "messages")


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000, "[" * 50_000 + "]" * 50_000])
def test_deeply_nested_json(server: Served, deep: str) -> None:
    assert server.ask("POST", CHAT, raw=deep.encode())[0] == 400
    nested = b'{"model": "base", "prompt": "a", "logit_bias": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001
    assert server.ask("POST", "/v1/completions", raw=nested)[0] == 400


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_20_mb(server: Served, chunked: bool) -> None:
    before = resident_bytes(server.process.pid)
    n_told = 0
    for _ in range(3):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.putrequest("POST", CHAT)
        connection.putheader("Content-Type", "application/json")
        connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", "20000000")))
        connection.endheaders()
        piece = b"a" * 100_000
        with suppress(OSError):  # it hangs up, as it should
            for _ in range(200):
                if select.select([connection.sock], [], [], 0)[0]:
                    break
                connection.send(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        with suppress(OSError):  # the answer can be lost with the connection
            response = connection.getresponse()
            assert response.status == 413
            assert json.loads(response.read())["error"]["code"] == "request_too_large"
            n_told += 1
        connection.close()
    assert n_told > 0
    assert resident_bytes(server.process.pid) - before < 30_000_000
    assert server.ask("GET", "/health")[0] == 200


def test_headers_are_bounded_too(server: Served) -> None:
    try:
        status = server.ask("GET", "/health", headers={"X-Long": "a" * 100_000})[0]
    except (OSError, http.client.HTTPException):
        status = 431
    assert status in (400, 431)
    assert server.ask("GET", "/health")[0] == 200
