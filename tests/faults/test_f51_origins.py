"""Row 51: a page of another site reads nothing, and changes nothing."""

import pytest

from servekit import Served, serving

pytestmark = pytest.mark.slow

BODY = {"model": "base", "prompt": "a", "max_tokens": 1}


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://[",
        "",
        "http://[::1",
        "\u00ff",
        "http://127.0.0.1:1",
        "http://localhost.evil.example",
    ],
)
def test_a_foreign_origin_is_refused(server: Served, origin: str) -> None:
    status, answer, headers = server.ask("POST", "/v1/completions", BODY, headers={"Origin": origin})
    assert (status, answer["error"]["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in headers
    _, _, headers = server.ask("GET", "/v1/models", headers={"Origin": origin})
    assert "access-control-allow-origin" not in headers
    status, _, headers = server.ask(
        "OPTIONS", "/v1/completions", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
    )
    assert status == 405
    assert "access-control-allow-origin" not in headers


def test_the_servers_own_origin_is_accepted(server: Served) -> None:
    own = {"Origin": f"http://127.0.0.1:{server.port}"}
    assert server.ask("POST", "/v1/completions", BODY, headers=own)[0] == 200


def test_an_allowed_origin_is_accepted(models) -> None:
    named = {"Origin": "https://friend.example"}
    with serving(models["base"], "--cors-origins", "https://friend.example", "--safety", "off") as server:
        status, _, headers = server.ask("POST", "/v1/completions", BODY, headers=named)
        assert (status, headers["access-control-allow-origin"]) == (200, "https://friend.example")
        assert "access-control-allow-credentials" not in headers
        assert headers["access-control-expose-headers"] == "Retry-After, X-Request-Id"
        wanted = {"Access-Control-Request-Headers": "authorization,x-stainless-os,x-other"}
        asked = {**named, **wanted, "Access-Control-Request-Method": "POST"}
        status, _, headers = server.ask("OPTIONS", "/v1/completions", headers=asked)
        assert (status, headers["access-control-allow-origin"]) == (204, "https://friend.example")
        allowed = "Authorization, Content-Encoding, Content-Type, x-stainless-os"
        assert headers["access-control-allow-headers"] == allowed
        assert server.ask("POST", "/v1/completions", BODY, headers={"Origin": "https://evil.example"})[0] == 403
