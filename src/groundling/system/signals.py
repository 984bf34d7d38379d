"""SIGTERM and Ctrl-C stop training: immediately before the first step, later at the next step boundary, after saving.

Before the first step there may be minutes of work (reading text, training a tokenizer, compiling) but nothing to save.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]
SIGTERM_EXIT_CODE = 128 + signal.SIGTERM


class StopRequest:
    """Whether the process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.can_save = False
        """Whether a step was made; from then on a signal takes effect at the end of the current step."""
        self.ended_at_once = False
        """Whether a signal ended the run before the first step."""

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + signal number, as in shells; 0 without a signal."""
        return 0 if self.signal is None else 128 + self.signal

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal is not None:  # second signal: end immediately, without saving
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
        if self.can_save:
            _write_note("stopping after this step and its checkpoint; a second signal ends it at once")
            return
        self.ended_at_once = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        _write_note("stopped as asked before the first step; there is nothing to save, run it again")
        raise SystemExit(128 + number)


def _write_note(line: str) -> None:
    os.write(2, f"groundling: {line}\n".encode())  # not `print` or `logging`: the signal may have interrupted one


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block, SIGTERM and SIGINT set a flag; a second signal ends the process immediately."""
    request = StopRequest()
    with handled_by(sigterm=request._take, sigint=request._take):
        yield request


@contextmanager
def handled_by(*, sigterm: Handler, sigint: Handler) -> Iterator[None]:
    """Install handlers of SIGTERM and SIGINT within the block."""
    handlers = {signal.SIGTERM: sigterm, signal.SIGINT: sigint}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


ASKED_TO_STOP = "asked to stop"
"""The reason of a run that ended after a signal."""
