"""Row 48: who does not read, or does not say what it wants, costs the others nothing, and is left after a while."""

import asyncio
import contextlib
import json
import socket
import time
from http import HTTPStatus

import pytest
import uvicorn
from uvicorn.server import ServerState

from groundling.serve.cli import listen
from groundling.serve.config import ServeConfig
from groundling.serve.http.protocol import protocol_for
from prockit import n_sockets
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
    return n_sockets(server.process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [True, False], ids=["a stream", "a whole answer"])
def test_a_client_that_never_reads_is_disconnected(impatient: Served, streamed: bool) -> None:
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
    wait_until(lambda: n_sockets(impatient.process.pid) == n_before)
    if streamed:
        assert impatient.metric("groundling_aborted_total") == aborted + 1
        assert "slow_reader" in [line.get("aborted") for line in impatient.log()]
    sock.close()


@pytest.mark.slow
def test_a_reader_of_a_byte_at_a_time_loses_the_connection_with_the_stream(impatient: Served) -> None:
    """Each byte that is taken is progress; what is not decoded for any more is not sent, either."""
    n_before, aborted = _n_sockets_at_rest(impatient), impatient.metric("groundling_aborted_total")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", impatient.port))
    asked = {"model": "base", "prompt": "a", "max_tokens": 2900, "logprobs": 20, "stream": True, "n": 8}
    body = json.dumps(asked).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    until = time.monotonic() + 60
    while impatient.metric("groundling_aborted_total") == aborted:
        assert time.monotonic() < until
        assert sock.recv(1)
    wait_until(lambda: n_sockets(impatient.process.pid) == n_before)
    with pytest.raises(ConnectionResetError):  # noqa: PT012  # the kernel, too, has let go of what was not read
        while sock.recv(1 << 16):
            pass
    sock.close()


@pytest.mark.slow
def test_a_slow_reader_gets_the_whole_response(impatient: Served) -> None:
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


@pytest.mark.slow
def test_half_open_connections_block_no_client_and_end(impatient: Served) -> None:
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


@pytest.mark.slow
def test_a_trickling_head_hits_the_deadline(impatient: Served) -> None:
    sock = socket.create_connection(("127.0.0.1", impatient.port))
    begun = time.monotonic()
    with pytest.raises(OSError):  # noqa: PT012
        for letter in b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X-Slow: a\r\n" * 100:
            sock.sendall(bytes([letter]))
            time.sleep(0.05)
    assert time.monotonic() - begun < 30  # all of it would take 57


HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED += b"Transfer-Encoding: chunked\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n"
STATES = {
    "nothing said": (b"", b""),
    "in the head": (HEALTH, b"X"),
    "in the head of a second request": (HEALTH + b"\r\n", b"G"),
    "in the body": (POST + b"Host: localhost\r\n\r\n", b"{"),
    "in the body of a GET that is answered": (HEALTH + b"Content-Length: 1000000\r\n\r\n", b"x"),
    "in the body of a DELETE": (HEALTH.replace(b"GET", b"DELETE") + b"Content-Length: 1000000\r\n\r\n", b"x"),
    "in a chunk": (HEALTH + b"Transfer-Encoding: chunked\r\n\r\nfffff\r\n", b"x"),
    "between chunks": (HEALTH + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", b""),
    "in the body of another host's": (POST + b"Host: elsewhere\r\n\r\n", b"{"),
    "in the body of another page's": (POST + b"Host: localhost\r\nOrigin: http://elsewhere\r\n\r\n", b"{"),
    "before a body that waits to be asked for": (HEALTH + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n", b""),
    "half closed in the head": (HEALTH, None),
    "half closed after a request": (HEALTH + b"\r\n", None),
}


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_a_connection_has_a_deadline_in_every_state(impatient: Served, state: str) -> None:
    """However it is kept from ending: 300 of them, each of which reads what comes and then sends one byte more."""
    begins, more = STATES[state]
    socks = [socket.create_connection(("127.0.0.1", impatient.port)) for _ in range(300)]
    for sock in socks:
        sock.sendall(begins)
    for sock in socks:
        sock.settimeout(0.2 if begins.endswith(b"\r\n\r\n") and b"POST" not in begins else 0.001)
        with contextlib.suppress(OSError):
            sock.recv(1 << 16)
        with contextlib.suppress(OSError):
            sock.sendall(more) if more is not None else sock.shutdown(socket.SHUT_WR)
    assert impatient.ask("POST", "/v1/completions", {"model": "base", "prompt": "a", "max_tokens": 5})[0] == 200
    wait_until(lambda: all(_is_closed(sock) for sock in socks))
    assert impatient.ask("GET", "/health")[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b"nonsense\r\n\r\n", 400, "illegal request line"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Missing mandatory Host: header"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "multiple Host: headers"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n", 400, "illegal header line"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400, "bad Content-Length"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "Only Transfer-Encoding: chunked"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000, 431, "Receive buffer too long"),
        (b"GET /health HTTP/1.1\nHost: localhost\n\n", 400, "a line ends in LF without CR"),
        (HEALTH + b"X: a\nY: b\r\n\r\n", 400, "a line ends in LF without CR"),
        (HEALTH + b"X: a\rY: b\r\n\r\n", 400, "a CR is not followed by LF"),
        (HEALTH + b"X: a\r\n b\r\n\r\n", 400, "a header is folded"),
        (HEALTH + b"X: a\x01b\r\n\r\n", 400, "illegal byte 0x01"),
        (HEALTH + b"X: a\0b\r\n\r\n", 400, "illegal byte 0x00"),
        (HEALTH + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "conflicting Content-Length"),
        (HEALTH + b"Content-Length: +5\r\n\r\nhello", 400, "bad Content-Length"),
        (HEALTH + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "both Content-Length and"),
        (b"GET /health HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "HTTP/1.0 does not support"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "HTTP/2.0 is not supported"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "the request line has more than"),
        (b"GET /health\r\n\r\n", 400, "illegal request line: b'GET /health'"),
        (CHUNKED + b"1;" + b"a" * 9000 + b"\r\n{\r\n1;" + b"a" * 9000 + b"\r\n}\r\n", 400, "chunk extensions"),
        (CHUNKED + b"1;" + b"a" * 3_000_000 + b"\r\n", 431, "Receive buffer too long"),
        (CHUNKED + b"1;a\rb\r\n{\r\n", 400, "a CR is not followed by LF"),
        (CHUNKED + b"2\r\n{}\r\n0\r\nX: a\nY: b\r\n\r\n", 400, "a line ends in LF without CR"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(1, 200)) + b"\r\n\r\n", 400, "illegal"),
    ],
)
def test_invalid_http_gets_a_json_error(impatient: Served, sent: bytes, status: int, said: str) -> None:
    """And with the headers of all answers; then the connection is closed."""
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=60) as sock:
        sock.sendall(sent)
        answer = b""
        while piece := sock.recv(1 << 16):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert error["message"].startswith("this cannot be read as HTTP/1.1: ")
    assert said in error["message"]
    assert error["code"] == "bad_request"
    assert head.startswith(b"HTTP/1.1 %d %s\r\n" % (status, HTTPStatus(status).phrase.encode()))
    assert b"nosniff" in head
    assert b"\r\nconnection: close" in head.lower()


@pytest.mark.slow
def test_a_response_is_not_lost_to_unread_data(impatient: Served) -> None:
    """What a connection leaves unread when it is closed makes the kernel reset it, and the client lose the answer."""
    foreign = b"POST / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://elsewhere\r\nContent-Length: 3000000\r\n\r\n"
    last = HEALTH + b"Connection: close\r\n\r\n"
    for sent, status in (
        (foreign, b"403"),
        (foreign.replace(b"3000000", b"2"), b"403"),
        (last, b"200"),
        (b"x", b"431"),
    ):
        with socket.create_connection(("127.0.0.1", impatient.port), timeout=60) as sock:
            sock.sendall(sent + b"x" * 3_000_000)
            answer = b""
            while piece := sock.recv(1 << 16):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert answer.endswith(b"}")


@pytest.mark.slow
def test_idle_connections_make_room_for_new_ones(models) -> None:
    with serving(models["base"], "--max-connections", 20, "--safety", "off") as server:
        socks = []
        for _ in range(60):
            socks.append(socket.create_connection(("127.0.0.1", server.port)))
            socks[-1].sendall(HEALTH + b"\r\n")
            assert socks[-1].recv(1 << 16).startswith(b"HTTP/1.1 200"), "refused though others are idle"
        assert sum(not _is_closed(sock) for sock in socks) <= 20
        assert all(_is_closed(sock) for sock in socks[:40]), "the longest idle go first"


def test_a_response_body_does_not_wait_for_the_ack_of_its_head() -> None:
    """Nagle's algorithm would add 40 ms to each answer but the first of a connection."""

    async def no_delay_of(listening: socket.socket) -> int:
        made = []
        state = ServerState()
        config = uvicorn.Config(lambda *_: None, http=protocol_for(1, 1, 9), ws="none", lifespan="off", log_config=None)
        config.load()
        protocol = protocol_for(1, 1, 9)

        def make() -> asyncio.Protocol:
            made.append(protocol(config=config, server_state=state, app_state={}))
            return made[-1]

        server = await asyncio.get_running_loop().create_server(make, sock=listening)
        async with server:
            _, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            while not made or made[0].transport is None:
                await asyncio.sleep(0.01)
            told = made[0].transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            writer.close()
            made[0].transport.abort()
            return told

    assert asyncio.run(no_delay_of(listen(ServeConfig(paths=("x",), port=0))))
