"""Connections to an application of a few lines: no answer is lost, and nothing waits for ever."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from groundling.serve.http import protocol as serving_protocol
from groundling.serve.http.protocol import protocol_for

LARGE = 48 << 20
"""Bytes of an answer: more than the kernels on both sides hold."""
HEAD = b"Host: localhost\r\n\r\n"
LATE_S = 10.0
"""Much later than what is waited for, and much sooner than an idle connection is closed."""


class App:
    """Answers /large and /small, and notes when the client of /wait has left."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"]
        if path == "/wait":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left.set()
            return
        body = bytes(LARGE) if path == "/large" else b"small"
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def listening(app: App, max_connections: int = 9) -> AsyncIterator[int]:
    """A server in this process, with little time for heads and a minute for what is not read; its port."""
    made, state = protocol_for(0.2, 60, max_connections), ServerState()
    config = uvicorn.Config(app, http=made, ws="none", lifespan="off", log_config=None, timeout_keep_alive=60)
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: made(config=config, server_state=state, app_state={}), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


async def ask(port: int, sent: bytes, limit: int = 1 << 16) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has sent something, whose kernel takes little of what comes."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
    writer.write(sent)
    return reader, writer


async def body_of(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    n_left = n_bytes = int(head.partition(b"content-length: ")[2].split()[0])
    while n_left:
        piece = await reader.read(1 << 20)
        assert piece, f"{n_left:,} bytes of {n_bytes:,} are missing"
        n_left -= len(piece)
    return n_bytes


def test_a_connection_with_an_unsent_response_is_not_closed_for_room() -> None:
    """All that it has not taken would be lost."""

    async def use() -> None:
        async with listening(App(), max_connections=2) as port:
            slow, slow_writer = await ask(port, b"GET /large HTTP/1.1\r\n" + HEAD)
            await slow.readexactly(9)
            idle, idle_writer = await ask(port, b"GET /small HTTP/1.1\r\n" + HEAD)
            assert await body_of(idle) == 5
            new, new_writer = await ask(port, b"GET /small HTTP/1.1\r\n" + HEAD)
            assert await body_of(new) == 5
            assert await body_of(slow) == LARGE
            assert await idle.read() == b""
            for writer in (slow_writer, idle_writer, new_writer):
                writer.close()

    asyncio.run(use())


def test_a_response_is_complete_despite_unread_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_protocol, "LINGER_S", 0.05)

    async def use() -> None:
        async with listening(App()) as port:
            reader, writer = await ask(port, b"GET /large HTTP/1.0\r\n\r\n" + b"\r\n" * 9)
            await reader.readexactly(9)
            await asyncio.sleep(0.2)
            assert await body_of(reader) == LARGE
            assert await asyncio.wait_for(reader.read(), LATE_S) == b""
            writer.close()

    asyncio.run(use())


def test_a_client_that_leaves_is_noticed_though_it_sent_more_than_one_request() -> None:
    async def leave(more: bytes) -> None:
        app = App()
        async with listening(app) as port:
            _, writer = await ask(port, b"GET /wait HTTP/1.1\r\n" + HEAD)
            for piece in (more, more):
                await asyncio.sleep(0.03)
                writer.write(piece)
            await asyncio.sleep(0.03)
            writer.close()
            await asyncio.wait_for(app.left.wait(), LATE_S)

    async def use() -> None:
        await asyncio.gather(*map(leave, (b"\r\n", b"GET /small HTTP/1.1\r\n" + HEAD, b"x" * 20_000)))

    asyncio.run(use())


def test_a_head_that_began_behind_a_request_has_its_deadline() -> None:
    async def use() -> None:
        async with listening(App()) as port:
            reader, writer = await ask(port, b"GET /small HTTP/1.1\r\n" + HEAD + b"GET /sm")
            assert await body_of(reader) == 5
            assert await asyncio.wait_for(reader.read(), LATE_S) == b""
            writer.close()

    asyncio.run(use())
