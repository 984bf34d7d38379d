"""The uvicorn server with graceful shutdown.

After SIGTERM the server drains: running requests are completed, new ones get 503, and after `drain_s` the rest is ended
with an error. A second signal ends it at once. Either way it exits with 0.
"""

import signal
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from groundling.serve.state import ServerState, State

FLUSH_S = 2
"""Time to send the last errors after everything was ended."""


class Server(uvicorn.Server):
    """uvicorn's server, with draining.

    Args:
        config: of uvicorn.
        server: to drain.
        on_ready: called once, when the models are loaded.
    """

    def __init__(self, config: uvicorn.Config, server: ServerState, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._server, self._on_ready = server, on_ready
        self._was_ready = False
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; at the second signal, stop."""
        del frame
        if self._until is None:
            self._server.stopped_while_loading = self._server.state is State.LOADING
            self._server.state = State.DRAINING
            quick = sig == signal.SIGINT and not self._server.n_open
            self._until = time.monotonic() + (0 if quick else self._server.config.drain_s)
        else:
            self._until = 0.0

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop now; called ten times a second."""
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
        await self._server.stop()  # ends open streams with an error
        return True
