"""Output for people: the progress of a run and status lines on stderr, tables on stdout."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn
from rich.table import Table

from groundling.system.logs import FIGURES, ConsoleHandler, Record, format_record


class ConsoleSink:
    """Shows the progress of a run: on a terminal a bar with the latest figures, elsewhere lines.

    A line is printed for each evaluation and, without a terminal, for every tenth training record. Until the sink is
    closed, log messages are printed above the bar.

    Args:
        n_steps: steps of the whole run.
        first_step: step at which this process starts.
        plain_every_s: without a terminal, also print a record if the last line is this many seconds old.
    """

    PLAIN_EVERY = 10
    """Without a terminal, print every n-th training record."""

    def __init__(self, n_steps: int, first_step: int = 0, plain_every_s: float = math.inf) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._seen = 0
        self._plain_every_s, self._printed_at = plain_every_s, 0.0
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._progress = Progress(
                *columns, TimeElapsedColumn(), TextColumn("ETA"), TimeLeftColumn(), console=self.console
            )
            self._task = self._progress.add_task("step", total=n_steps, completed=first_step)
            self._progress.start()
        ConsoleHandler.print_above_bar = self.print

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    def write(self, record: Record) -> None:
        """Show one record. Generated samples are logged elsewhere."""
        if "sample" in record:
            return
        text = format_record(record, FIGURES)
        if self._progress is None:
            self._seen += 1
            is_late = time.monotonic() - self._printed_at >= self._plain_every_s
            if "val_loss" in record or is_late or (self._seen - 1) % self.PLAIN_EVERY == 0:
                self._printed_at = time.monotonic()
                eta = f"  ETA {record['eta_s']:.0f} s" if "eta_s" in record else ""
                self.print(f"step {record['step']}: {text}{eta}")
            return
        self._progress.update(self._task, completed=record["step"])
        if "val_loss" in record:
            self.print(f"step {record['step']}: {text}")
        else:
            self._progress.update(self._task, description=text)

    def close(self) -> None:
        """Remove the bar."""
        if ConsoleHandler.print_above_bar == self.print:
            ConsoleHandler.print_above_bar = None
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def busy(text: str) -> Iterator[None]:
    """Show that something takes a while: a spinner on a terminal, one line elsewhere."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        print(text, file=sys.stderr, flush=True)
        yield
        return
    with console.status(text):
        yield


def print_table(table: Table) -> None:
    """Print a table to stdout; in a file or a pipe, which have no width, it is 110 characters wide."""
    Console(width=None if Console().is_terminal else 110).print(table)
