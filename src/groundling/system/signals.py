"""SIGTERM and Ctrl-C ask training to stop: at once before the first step, then at the next step boundary, after saving.

Reading a text, training a tokenizer, compiling and the first step can take minutes, and leave nothing to be saved.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]
SIGTERM_EXIT_CODE = 128 + signal.SIGTERM


class StopRequest:
    """Whether, and by which signal, the process was asked to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.can_save = False
        """Whether a step was made: from then on a signal waits for the end of the step under way."""
        self.ended_at_once = False
        """Whether a signal came before that, and has ended the run."""

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells say it: whoever started the run sees that it is not finished."""
        return 0 if self.signal is None else 128 + self.signal

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.signal is not None:  # asked twice: at once, without saving
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
        if self.can_save:
            _write_note("stopping when this step is done, and saved; once more ends it at once")
            return
        self.ended_at_once = True
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        _write_note("stopped as asked before the first step; there is nothing to save, run it again")
        raise SystemExit(128 + number)


def _write_note(line: str) -> None:
    os.write(2, f"groundling: {line}\n".encode())  # `print` may be what the signal came into


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside this block SIGTERM and SIGINT only set a flag; a second one ends the process at once."""
    request = StopRequest()
    with handled_by(sigterm=request._take, sigint=request._take):
        yield request


@contextmanager
def handled_by(*, sigterm: Handler, sigint: Handler) -> Iterator[None]:
    """Inside this block SIGTERM and SIGINT are handled so; after it as before."""
    handlers = {signal.SIGTERM: sigterm, signal.SIGINT: sigint}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


ASKED_TO_STOP = "asked to stop"
"""Why a run ends after a signal."""
