"""What people and log collectors read: lines and progress on stderr, tables on stdout, events as JSON lines."""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn
from rich.table import Table


class EventLog:
    """Writes events. What comes from outside is escaped by JSON: no line can be forged, and no terminal be moved."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file

    def write(self, event: str, level: str = "info", **fields: Any) -> None:
        """Write one line."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"time": now, "level": level, "event": event, **fields}, default=str)
        print(line, file=self._file or sys.stderr, flush=True)


class LibraryLog(logging.Handler):
    """Takes what libraries log into ours."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        fields = {"error": repr(record.exc_info[1])} if record.exc_info else {}
        self._log.write("library", record.levelname.lower(), logger=record.name, message=record.getMessage(), **fields)


Record = dict[str, Any]


class ConsoleSink:
    """A bar with the newest figures on a terminal; a line for each evaluation, and now and then one, elsewhere.

    Args:
        n_steps: of the whole run.
        first_step: where it begins.
        plain_every_s: without a terminal, also print a record that comes this many seconds after the last line.
    """

    PLAIN_EVERY = 10
    """Without a terminal, print every n-th training record."""

    def __init__(self, n_steps: int, first_step: int = 0, plain_every_s: float = math.inf) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._seen = 0
        self._plain_every_s, self._said_at = plain_every_s, 0.0
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._progress = Progress(
                *columns, TimeElapsedColumn(), TextColumn("ETA"), TimeLeftColumn(), console=self.console
            )
            self._task = self._progress.add_task("step", total=n_steps, completed=first_step)
            self._progress.start()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def write(self, record: Record) -> None:
        """Show one record. A sample is none of its figures: whoever took it says it."""
        if "sample" in record:
            return
        text = describe(record)
        if self._progress is None:
            self._seen += 1
            is_late = time.monotonic() - self._said_at >= self._plain_every_s
            if "val_loss" in record or is_late or (self._seen - 1) % self.PLAIN_EVERY == 0:
                self._said_at = time.monotonic()
                eta = f"  ETA {record['eta_s']:.0f} s" if "eta_s" in record else ""
                self.say(f"step {record['step']}: {text}{eta}")
            return
        self._progress.update(self._task, completed=record["step"])
        if "val_loss" in record:
            self.say(f"step {record['step']}: {text}")
        else:
            self._progress.update(self._task, description=text)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()


def describe(record: Record) -> str:
    """A record's figures in one line."""
    parts = []
    if "val_loss" in record:
        parts.append(f"validation loss {record['val_loss']:.4f} (best {record['best_val_loss']:.4f})")
    if "train_loss" in record:
        parts.append(f"training loss {record['train_loss']:.4f}")
    if "loss" in record:
        parts.append(f"loss {record['loss']:.4f}")
    if "tokens_per_s" in record:
        parts.append(f"{record['tokens_per_s']:,.0f} tokens/s")
    if "utilisation" in record:
        parts.append(f"utilisation {record['utilisation']:.0%}")
    if "memory_mb" in record:
        parts.append(f"{record['memory_mb']:,.0f} MB")
    return ", ".join(parts)


def say(text: str) -> None:
    """Print one line for people, on stderr: stdout is for results."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def busy(text: str) -> Iterator[None]:
    """Say what takes a while; on a terminal it stands there, moving, until the block ends."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        say(text)
        yield
        return
    with console.status(text):
        yield


def print_table(table: Table) -> None:
    """Print a table to stdout; in a file or a pipe, which have no width, it is 110 characters wide."""
    Console(width=None if Console().is_terminal else 110).print(table)
