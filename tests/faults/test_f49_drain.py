"""Row 49: asked to stop, it ends what it has begun, refuses what is new, and leaves with 0 and no orphan."""

import signal
import time

import pytest

from servekit import Served, events, serving, wait_until

LONG = {"model": "base", "prompt": "a", "max_tokens": 4000, "seed": 1}


def read_all(sock) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    body, rest = b"", data.partition(b"\r\n\r\n")[2]
    while rest:  # chunked
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return body


def begin(server: Served, body: dict):
    sock = server.open_stream(body)
    wait_until(lambda: server.metric("groundling_active") == 1)
    return sock


@pytest.mark.slow
def test_what_was_begun_is_ended(models) -> None:
    with serving(models["base"], "--safety", "off") as server:
        sock = begin(server, LONG)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.ask("GET", "/ready")[0] == 503)
        assert server.ask("GET", "/health")[0] == 200
        status, answer, headers = server.ask("POST", "/v1/completions", LONG)
        assert (status, answer["error"]["code"]) == (503, "draining")
        assert "retry-after" in headers
        *chunks, last = events(read_all(sock))
        assert last == "[DONE]"
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("second", [False, True], ids=["the time is up", "a second signal"])
def test_what_does_not_end_in_time_is_told_so(models, second: bool) -> None:
    words = ("--max-tokens", 1_000_000, "--drain-s", 30 if second else 1, "--safety", "off")
    with serving(models["base"], *words) as server:
        sock = begin(server, {**LONG, "max_tokens": 900_000})
        server.process.send_signal(signal.SIGTERM)
        if second:
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        last = events(read_all(sock))[-1]
        assert last["error"]["code"] == "draining"
        assert server.process.wait(60) == 0
        assert time.monotonic() - begun < 25


@pytest.mark.slow
def test_asked_to_stop_while_models_are_loaded_it_leaves_well(models) -> None:
    with serving(*models.values(), *(f"more{n}={models['base']}" for n in range(5)), ready=False) as server:
        assert server.ask("GET", "/ready")[0] == 503
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert not [line for line in server.log() if line["event"] == "ready"]
