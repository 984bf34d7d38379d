"""A server in the tests' own process: its model thread can be held, and clients can leave when a test wants it."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from groundling.serve.app import create_app
from groundling.serve.config import ServeConfig
from groundling.serve.state import ServerState, State
from groundling.system.logs import EventLog


class House:
    """The server, and a client of it."""

    def __init__(self, client: TestClient, server: ServerState) -> None:
        self.client, self.server = client, server

    def held(self, act: Callable[[threading.Event], Awaitable[None]]) -> None:
        """Do something in the server's event loop, while its model thread waits for an event."""
        go_on = threading.Event()

        async def act_held() -> None:
            waiting = asyncio.ensure_future(self.server.worker.call(lambda: go_on.wait(20)))
            try:
                await act(go_on)
            finally:
                go_on.set()
                await waiting

        assert self.client.portal is not None
        self.client.portal.call(act_held)

    async def leave(self, when: asyncio.Event, method: str, path: str, body: Any = None) -> None:
        """Ask, and be gone at a moment when there is no answer yet. In the server's event loop."""
        data = b"" if body is None else json.dumps(body).encode()
        parts = [{"type": "http.request", "body": data, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if parts:
                return parts.pop()
            await when.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                assert message["status"] == 499

        path, _, query = path.partition("?")
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "root_path": ""}
        scope |= {
            "query_string": query.encode(),
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        }
        scope |= {"client": ("127.0.0.1", 1), "server": ("localhost", 80), "scheme": "http", "http_version": "1.1"}
        await self.client.app({**scope, "asgi": {"version": "3.0"}}, receive, send)


async def comes_to_hold(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for something to hold, while the event loop goes on."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


@contextmanager
def house_of(folder: Path, *paths: object, **changes: Any) -> Iterator[House]:
    """A house that is ready, until the block ends; what it writes goes into the folder."""
    settings = {"safety": "off", "device": "cpu", "rankings": folder / "kept.sqlite", "runs": folder / "runs"}
    server = ServerState(ServeConfig(paths=tuple(map(str, paths)), **{**settings, **changes}))
    with (folder / "log").open("w") as log:
        app = create_app(server, EventLog(log))
        with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
            while server.state is not State.READY:
                assert server.failure is None
            yield House(client, server)
