"""Progress lines for work that takes more than two seconds."""

import sys
import threading
import time
from types import TracebackType
from typing import Self

FIRST_S = 2.0
"""Shorter work prints nothing."""
MAX_INTERVAL_S = 20.0
"""The interval between lines doubles up to this."""


class Progress:
    """Prints the task, its progress and the elapsed time to stderr while the block runs.

    A thread prints, so long library calls are covered, too.

    Args:
        what: name of the task, for example "encoding the text".
        total: amount of work in any unit; None if unknown.
        first_s: seconds before the first line.
    """

    def __init__(self, what: str, total: int | None = None, first_s: float | None = None) -> None:
        self.what, self.total, self.done = what, total, 0
        self._pause_s = FIRST_S if first_s is None else first_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._report, daemon=True)

    def advance(self, n: int) -> None:
        """Add `n` to the work done."""
        self.done += n

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _report(self) -> None:
        while not self._ended.wait(self._pause_s):
            seconds, part, left = time.monotonic() - self._start, "", ""
            if self.total and self.done:
                share = min(1.0, self.done / self.total)
                part, left = f"{share:.0%}, ", f", about {seconds * (1 - share) / share:.0f} s left"
            print(f"groundling: {self.what}: {part}{seconds:.0f} s so far{left}", file=sys.stderr)
            self._pause_s = min(MAX_INTERVAL_S, 2 * self._pause_s)
