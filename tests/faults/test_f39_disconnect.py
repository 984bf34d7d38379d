"""Row 39: who leaves is not written for any more: generation stops within a token, and the place is free."""

import asyncio
import json
import socket
import time

import pytest

from groundling.bundle import load_bundle
from groundling.sample.choose import SamplingConfig
from groundling.sample.engine import Engine
from groundling.sample.sequences import row_generator
from groundling.serve.handover import Take
from groundling.serve.worker import Load, Worker
from servekit import Served, wait_until

LONG = {"model": "base", "prompt": "Who", "max_tokens": 90_000}


def gone(server: Served) -> bool:
    return server.metric("groundling_active") == 0 and server.metric("groundling_queue") == 0


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_that_is_closed_ends(server: Served, n: int) -> None:
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


def test_a_whole_answer_that_nobody_waits_for_ends(server: Served) -> None:
    aborted = server.metric("groundling_aborted_total")
    body = json.dumps(LONG).encode()
    sock = socket.create_connection(("127.0.0.1", server.port))
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    wait_until(lambda: server.metric("groundling_active") == 1)
    sock.close()
    wait_until(lambda: gone(server), 1.0)
    assert server.metric("groundling_aborted_total") == aborted + 1


def test_who_waits_in_the_queue_can_leave_too(server: Served) -> None:
    streams = [server.open_stream({**LONG, "n": 8}) for _ in range(4)]
    wait_until(lambda: server.metric("groundling_queue") == 16)
    for stream in reversed(streams):
        stream.close()
    wait_until(lambda: gone(server), 2.0)


class Fickle(Take):
    """Is cancelled while somebody looks."""

    n_looks = 0

    @property
    def cancelled(self) -> bool:
        self.n_looks += 1
        return self.n_looks > 1

    @cancelled.setter
    def cancelled(self, value: bool) -> None:
        pass


def test_no_place_is_lost_however_late_somebody_leaves(models) -> None:
    async def leave() -> Load:
        engine, config = Engine(load_bundle(models["base"]).model), SamplingConfig(max_new_tokens=100_000)
        worker = Worker(1, 10)
        worker.start(lambda _: None)
        writes, left, leaves = (
            kind(number, [1], config, row_generator(0, 0)) for number, kind in enumerate((Take, Take, Fickle))
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
