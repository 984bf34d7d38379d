"""Row 48: who does not read, or does not say what it wants, costs the others nothing, and is left after a while."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from servekit import Served, serving, wait_until


@pytest.fixture(scope="module")
def impatient(models):
    words = ("--send-timeout-s", 1, "--receive-timeout-s", 1, "--max-tokens", 200_000, "--safety", "off")
    with serving(models["base"], *words) as server:
        yield server


def _is_closed(sock: socket.socket) -> bool:
    sock.settimeout(0.01)
    try:
        while data := sock.recv(4096):
            assert data
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def _n_sockets_at_rest(server: Served) -> int:
    time.sleep(0.2)  # the last answer's connection may still be open
    return _n_sockets(server)


def _n_sockets(server: Served) -> int:
    return sum(os.path.realpath(f).startswith(f"/proc/{server.process.pid}/fd/socket") for f in _files(server))


def _files(server: Served) -> list[Path]:
    return list(Path(f"/proc/{server.process.pid}/fd").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [True, False], ids=["a stream", "a whole answer"])
def test_who_never_reads_is_left(impatient: Served, streamed: bool) -> None:
    """Also when all is written: what waits to be sent costs memory, and the connection is one of few."""
    aborted = impatient.metric("groundling_aborted_total")
    n_before = _n_sockets_at_rest(impatient)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", impatient.port))
    asked = {"model": "base", "prompt": "a", "max_tokens": 2900, "logprobs": 20, "stream": streamed, "n": 8}
    body = json.dumps(asked).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}"
    sock.sendall(head.encode() + b"\r\n\r\n" + body)
    wait_until(lambda: impatient.metric("groundling_active") == 8)
    wait_until(lambda: impatient.metric("groundling_active") == 0, 60)
    wait_until(lambda: _n_sockets(impatient) == n_before)
    if streamed:
        assert impatient.metric("groundling_aborted_total") == aborted + 1
        assert "slow_reader" in [line.get("aborted") for line in impatient.log()]
    sock.close()


@pytest.mark.slow
def test_who_reads_slowly_gets_all_of_it(impatient: Served) -> None:
    asked = {"model": "base", "prompt": "a", "max_tokens": 1000, "logprobs": 20, "n": 8}
    sock = impatient.open_stream({**asked, "stream": False})
    data = b""
    begun = time.monotonic()
    while piece := sock.recv(1 << 16):
        data += piece
        time.sleep(0.01)
        head, _, body = data.partition(b"\r\n\r\n")
        if len(body) == int(head.lower().partition(b"content-length: ")[2].split()[0]):
            break
    assert time.monotonic() - begun > 1
    assert json.loads(body)["usage"]["completion_tokens"] == 8000


def test_half_open_connections_hinder_nobody_and_end(impatient: Served) -> None:
    starts = [b"", b"POST", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ", b"GET /health HTTP/1.1\r\n"]
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 50\r\n\r\n{"
    socks = []
    for start in [*starts, head] * 10:
        socks.append(socket.create_connection(("127.0.0.1", impatient.port)))
        socks[-1].sendall(start)
    begun = time.monotonic()
    assert impatient.ask("POST", "/v1/completions", {"model": "base", "prompt": "a", "max_tokens": 5})[0] == 200
    assert time.monotonic() - begun < 25  # one after the other, each is given a second
    wait_until(lambda: all(_is_closed(sock) for sock in socks))


def test_a_head_that_trickles_in_is_not_waited_for(impatient: Served) -> None:
    sock = socket.create_connection(("127.0.0.1", impatient.port))
    begun = time.monotonic()
    with pytest.raises(OSError):  # noqa: PT012
        for letter in b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X-Slow: a\r\n" * 100:
            sock.sendall(bytes([letter]))
            time.sleep(0.05)
    assert time.monotonic() - begun < 30  # all of it would take 57
