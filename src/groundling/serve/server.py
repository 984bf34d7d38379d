"""How a server ends.

After SIGTERM it drains: what is being written is ended, what comes newly is refused with 503, and after a while all
that is left is broken off with an error. A second signal ends it at once. Either way it exits with 0.
"""

import signal
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from groundling.serve.state import ServerState, State

FLUSH_S = 2
"""For the last errors to be sent, after all was broken off."""


class Server(uvicorn.Server):
    """uvicorn, with an end of our own.

    Args:
        config: of uvicorn.
        server: is drained.
        on_ready: called once, when requests are answered.
    """

    def __init__(self, config: uvicorn.Config, server: ServerState, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._server, self._on_ready = server, on_ready
        self._was_ready = False
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; at the second signal, end."""
        del frame
        if self._until is None:
            self._server.leaves_loading = self._server.state is State.LOADING
            self._server.state = State.DRAINING
            quick = sig == signal.SIGINT and not self._server.n_open
            self._until = time.monotonic() + (0 if quick else self._server.config.drain_s)
        else:
            self._until = 0.0

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second: whether to end now."""
        if await super().on_tick(counter):
            return True
        if self._server.failure is not None:
            return True
        if self._server.state is State.READY and not self._was_ready:
            self._was_ready = True
            self._on_ready()
        if self._until is None or (self._server.n_open and time.monotonic() < self._until):
            return False
        self._server.state = State.STOPPED
        await self._server.stop()  # what is left hears of it
        return True
