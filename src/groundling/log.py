"""Where metrics go: each sink takes records, plain dictionaries with a "step".

The JSONL file is the record; the console, TensorBoard and Weights & Biases are views of it.
"""

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn
from rich.table import Table

from groundling import atomicio, files
from groundling.optional import missing_extra, optional_import

Record = dict[str, Any]
SinkName = Literal["tensorboard", "wandb"]


class Sink(Protocol):
    """Takes records and, at the end, is closed."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """Finish."""


class JsonlSink:
    """One JSON object a line. On resume, what an interrupted run wrote after its last checkpoint is dropped.

    Args:
        path: the file.
        resumed_at: the checkpoint's step, up to which records are kept; None: a new run.
        made_again: at that step itself, records that a run which goes on writes once more.
    """

    def __init__(
        self, path: Path, resumed_at: int | None = None, made_again: Callable[[Record], bool] = lambda _: False
    ) -> None:
        self.path = path
        earlier = [] if resumed_at is None else _read_or_keep(path)
        kept = [r for r in earlier if r["step"] <= resumed_at and not (r["step"] == resumed_at and made_again(r))]
        atomicio.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.sampled_at = max((record["step"] for record in kept if "sample" in record), default=0)
        """The step of the newest sample that was kept; 0: there is none. A run that goes on does not speak twice."""

    def write(self, record: Record) -> None:
        """Append one line."""
        atomicio.append_line(self.path, json.dumps(record))

    def close(self) -> None:
        """Nothing is left to do: every line is already in the file."""


MOST_RECORDS = 1 << 30
"""Bytes of a run's records: some millions of lines."""
MOST_LINE = 1 << 20
"""Bytes of one record."""
NUMBERS = ("step", "loss", "val_loss", "train_loss", "n_tokens", "train_s")
"""What others reckon with, where a record has it."""


def read_records(path: Path) -> list[Record]:
    """The records of a JSONL file.

    A run's record never stops the run: a last line that a crash has cut is passed over, and damaged ones are too, which
    is said.
    """
    found, unread = _read(path)
    if unread:
        say(f"{path}: passed over {unread}")
    return found


def _read_or_keep(path: Path) -> list[Record]:
    """The records of a file that is about to be written anew; where it was not read to its end, it is kept besides."""
    found, unread = _read(path)
    if unread:
        number = 1
        while os.path.lexists(kept := path.with_name(f"{path.name}.unread-{number}")):
            number += 1
        atomicio.replace(path, kept)
        say(f"{path}: passed over {unread}; the whole file is kept as {kept}")
    return found


def _read(path: Path) -> tuple[list[Record], str]:
    """The records of a file, and what of it was not read, and why."""
    found: list[Record] = []
    unread: list[str] = []
    n_damaged, is_last_damaged = 0, False
    for line in _lines(path, unread):
        record = _read_record(line)
        if record is not None:
            found.append(record)
        is_last_damaged = record is None and not line.endswith(b"\n")
        n_damaged += record is None
    n_damaged -= is_last_damaged
    if n_damaged:
        say(f"{path}: passed over {n_damaged:,} damaged {'line' if n_damaged == 1 else 'lines'}")
    return found, "".join(unread)


def _lines(path: Path, unread: list[str]) -> Iterator[bytes]:
    """The lines of a record, with their ends; of one that is too long to be one, its beginning.

    What was not read is added to `unread`.
    """
    try:
        with files.open_regular(path) as file:
            while file.tell() < MOST_RECORDS and (line := file.readline(MOST_LINE)):
                rest = line
                while rest and not rest.endswith(b"\n") and file.tell() < MOST_RECORDS:
                    rest = file.readline(MOST_LINE)
                yield line if line is rest or not rest.endswith(b"\n") else line + b"\n"
            if file.read(1):
                unread.append(f"what follows its first {MOST_RECORDS:,} bytes")
    except FileNotFoundError:
        return
    except OSError as error:
        unread.append(f"all that could not be read ({error.strerror})")


def _read_record(line: bytes) -> Record | None:
    """A line's record; None where it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, a number of 5,000 digits, too deep
        return None
    if not isinstance(record, dict) or "step" not in record:
        return None
    numbers = [record[name] for name in NUMBERS if record.get(name) is not None]
    sound = all(isinstance(n, float) or (type(n) is int and abs(n) < 2**63) for n in numbers)
    return record if sound and isinstance(record["step"], int) else None


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


class TensorBoardSink:
    """TensorBoard's event files. Needs the extra `track`."""

    def __init__(self, folder: Path) -> None:
        self._writer = optional_import("torch.utils.tensorboard", "track", "tensorboard").SummaryWriter(str(folder))

    def write(self, record: Record) -> None:
        """Write each number of the record as a scalar."""
        for key, value in record.items():
            if key != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(key, value, record["step"])

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()


class WandbSink:
    """Weights & Biases. Needs the extra `track`."""

    def __init__(self, folder: Path, config: Record, run_id: str) -> None:
        wandb = optional_import("wandb", "track")
        self._run = wandb.init(project="groundling", dir=str(folder), config=config, id=run_id, resume="allow")

    def write(self, record: Record) -> None:
        """Log the figures of the record at its step."""
        self._run.log({key: value for key, value in record.items() if key != "step"}, step=record["step"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def require_packages(names: Sequence[SinkName]) -> None:
    """Refuse sinks whose package is not there, before anything is done.

    Raises:
        MissingExtraError: a package is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise missing_extra(name, "track")


def optional_sinks(names: Sequence[SinkName], folder: Path, config: Record, run_id: str) -> list[Sink]:
    """The sinks that a user asked for by name.

    Raises:
        MissingExtraError: a package is not installed.
    """
    make: dict[SinkName, Callable[[], Sink]] = {
        "tensorboard": lambda: TensorBoardSink(folder / "tensorboard"),
        "wandb": lambda: WandbSink(folder, config, run_id),
    }
    return [make[name]() for name in names]


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
