"""Row 49: asked to stop, it ends what it has begun, refuses what is new, and leaves with 0 and no orphan."""

import signal
import subprocess
import sys
import time

import pytest

from servekit import Served, events, serving, wait_until

pytestmark = pytest.mark.slow

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
def test_running_requests_finish(models) -> None:
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
def test_requests_past_the_drain_deadline_get_an_error(models, second: bool) -> None:
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


LOADS_FOR_EVER = """
import sys, torch
from groundling.serve import state as registry
from groundling.cli import console
def load(*_, **__):
    while True:
        torch.rand(2000, 2000) @ torch.rand(2000, 2000)
registry.load_bundle = load
sys.argv = ["groundling", "serve", sys.argv[1], "--port", "0"]
console()
"""


@pytest.mark.slow
def test_shutdown_does_not_wait_for_a_loading_model(models) -> None:
    """A thread inside PyTorch cannot be broken off, and aborts an interpreter that ends around it."""
    command = [sys.executable, "-c", LOADS_FOR_EVER, str(models["base"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "listening" in process.stderr.readline()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
        assert time.monotonic() - began < 8, "it waited for the thread"
        assert "Abort" not in (said := process.stderr.read()), said
        assert "terminate" not in said


@pytest.mark.slow
def test_a_stop_while_loading_exits_cleanly(models) -> None:
    with serving(*models.values(), *(f"more{n}={models['base']}" for n in range(5)), ready=False) as server:
        assert server.ask("GET", "/ready")[0] == 503
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert not [line for line in server.log() if line["event"] == "ready"]
