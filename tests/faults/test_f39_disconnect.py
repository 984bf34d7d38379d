"""Row 39: who leaves is not written for any more: generation stops within a token, and the place is free."""

import asyncio
import json
import socket
import time

import pytest

from groundling.bundle import load_bundle
from groundling.sample.engine import Engine
from groundling.sample.request import row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.serve.decode.stream import SampleRequest
from groundling.serve.decode.worker import Load, Worker
from servekit import Served, wait_until

pytestmark = pytest.mark.slow

LONG = {"model": "base", "prompt": "Who", "max_tokens": 90_000}


def gone(server: Served) -> bool:
    return server.metric("groundling_active") == 0 and server.metric("groundling_queue") == 0


@pytest.mark.parametrize("n", [1, 3])
def test_a_closed_stream_stops_decoding(server: Served, n: int) -> None:
    aborted = server.metric("groundling_aborted_total")
    stream = server.open_stream({**LONG, "n": n})
    assert stream.recv(200).startswith(b"HTTP/1.1 200")
    wait_until(lambda: server.metric("groundling_active") == n)
    stream.close()
    wait_until(lambda: gone(server), 1.0)
    assert server.metric("groundling_aborted_total") == aborted + 1
    written = server.metric("groundling_tokens_total")
    time.sleep(0.2)
    assert server.metric("groundling_tokens_total") == written


def test_a_closed_request_stops_decoding(server: Served) -> None:
    aborted = server.metric("groundling_aborted_total")
    body = json.dumps(LONG).encode()
    sock = socket.create_connection(("127.0.0.1", server.port))
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    wait_until(lambda: server.metric("groundling_active") == 1)
    sock.close()
    wait_until(lambda: gone(server), 1.0)
    assert server.metric("groundling_aborted_total") == aborted + 1


def test_a_waiting_client_can_disconnect(server: Served) -> None:
    streams = [server.open_stream({**LONG, "n": 8}) for _ in range(4)]
    wait_until(lambda: server.metric("groundling_queue") == 16)
    for stream in reversed(streams):
        stream.close()
    wait_until(lambda: gone(server), 2.0)


def test_disconnecting_after_the_head_frees_the_place_in_the_queue(server: Served) -> None:
    """Nothing is unread then, so that its kernel says nothing but that no more will come."""
    writers = [server.open_stream({**LONG, "n": 8}) for _ in range(2)]
    wait_until(lambda: server.metric("groundling_active") == 16)
    waits = server.open_stream(LONG)
    wait_until(lambda: server.metric("groundling_queue") == 1)
    assert waits.recv(1 << 16).endswith(b"\r\n\r\n")
    waits.close()
    wait_until(lambda: server.metric("groundling_queue") == 0, 2.0)
    for writer in writers:
        writer.close()
    wait_until(lambda: gone(server), 2.0)


def _told(sock: socket.socket) -> bytes:
    told = b""
    while piece := sock.recv(1 << 16):
        told += piece
    return told


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_half_closed_connection_gets_its_response(server: Served, version: str) -> None:
    """As by `nc -N`: whole, streamed, and also when the answer takes long enough for the connection to be tried."""
    for streamed, n_tokens in ((False, 2), (False, 10_000), (True, 5000)):
        body = json.dumps({**LONG, "max_tokens": n_tokens, "stream": streamed, "ignore_eos": True}).encode()
        head = f"POST /v1/completions HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
            sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            sock.shutdown(socket.SHUT_WR)
            told, _, text = _told(sock).partition(b"\r\n\r\n")
        assert told.startswith(b"HTTP/1.1 200 OK\r\n")
        if streamed:
            assert b"data: [DONE]" in text
        else:
            assert json.loads(text)["usage"]["completion_tokens"] == n_tokens
    if version == "1.1":
        health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for rest, status in ((b"", b"200"), (health[:-2], b"400"), (b"POST / HTTP/1.1\r\nHost: localhost\r\n", b"400")):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
                sock.sendall(2 * health + rest)
                sock.shutdown(socket.SHUT_WR)
                answers = _told(sock).split(b"HTTP/1.1 ")[1:]
            assert [answer[:3] for answer in answers] == [b"200", b"200"] + [status] * (rest != b"")
            assert not rest or b"in the middle of the headers" in answers[-1]


class Fickle(SampleRequest):
    """Is cancelled while somebody looks."""

    n_looks = 0

    @property
    def cancelled(self) -> bool:
        self.n_looks += 1
        return self.n_looks > 1

    @cancelled.setter
    def cancelled(self, value: bool) -> None:
        pass


def test_no_place_is_leaked_by_a_late_disconnect(models) -> None:
    async def leave() -> Load:
        engine, config = Engine(load_bundle(models["base"]).model), SamplingConfig(max_new_tokens=100_000)
        worker = Worker(1, 10)
        worker.start(lambda _: None)
        writes, left, leaves = (
            kind(number, [1], config, row_generator(0, 0))
            for number, kind in enumerate((SampleRequest, SampleRequest, Fickle))
        )
        first = worker.submit(engine, "one", [writes], 60)
        left.cancelled = True
        worker.submit(engine, "other", [left, leaves], 60)
        while worker.load.waiting and leaves.n_looks < 4:
            await asyncio.sleep(0.01)
        first.cancel()
        while worker.load.active:
            await asyncio.sleep(0.01)
        load = worker.load
        await worker.stop()
        return load

    assert asyncio.run(leave()) == (0, 0)
