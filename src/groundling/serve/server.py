"""How a server ends.

After SIGTERM it drains: what is being written is ended, what comes newly is refused with 503, and after a while all
that is left is broken off with an error. A second signal ends it at once. Either way it exits with 0.
"""

import signal
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from groundling.serve.state import State, Theatre

FLUSH_S = 2
"""For the last errors to be sent, after all was broken off."""


class Server(uvicorn.Server):
    """uvicorn, with an end of our own.

    Args:
        config: of uvicorn.
        theatre: is drained.
        say: is told once, when requests are answered.
    """

    def __init__(self, config: uvicorn.Config, theatre: Theatre, say: Callable[[], None]) -> None:
        super().__init__(config)
        self._theatre, self._say = theatre, say
        self._has_said = False
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; at the second signal, end."""
        del frame
        if self._until is None:
            self._theatre.leaves_loading = self._theatre.state is State.LOADING
            self._theatre.state = State.DRAINING
            quick = sig == signal.SIGINT and not self._theatre.n_open
            self._until = time.monotonic() + (0 if quick else self._theatre.config.drain_s)
        else:
            self._until = 0.0

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second: whether to end now."""
        if await super().on_tick(counter):
            return True
        if self._theatre.failure is not None:
            return True
        if self._theatre.state is State.READY and not self._has_said:
            self._has_said = True
            self._say()
        if self._until is None or (self._theatre.n_open and time.monotonic() < self._until):
            return False
        self._theatre.state = State.STOPPED
        await self._theatre.stop()  # what is left hears of it
        return True
