"""Where metrics go: each sink takes records, plain dictionaries with a "step".

The JSONL file is the record; the console (`logs.py`), TensorBoard and Weights & Biases are views of it.
"""

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from groundling.storage import atomic, files
from groundling.system.logs import Record
from groundling.system.optional import missing_extra, optional_import

log = logging.getLogger(__name__)

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
        atomic.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.sampled_at = max((record["step"] for record in kept if "sample" in record), default=0)
        """The step of the newest sample that was kept; 0: there is none. A run that goes on does not speak twice."""

    def write(self, record: Record) -> None:
        """Append one line."""
        atomic.append_line(self.path, json.dumps(record))

    def close(self) -> None:
        """Nothing is left to do: every line is already in the file."""


MAX_RECORDS = 1 << 30
"""Bytes of a run's records: some millions of lines."""
MAX_LINE = 1 << 20
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
        log.warning(f"{path}: passed over {unread}")
    return found


def _read_or_keep(path: Path) -> list[Record]:
    """The records of a file that is about to be written anew; where it was not read to its end, it is kept besides."""
    found, unread = _read(path)
    if unread:
        number = 1
        while os.path.lexists(kept := path.with_name(f"{path.name}.unread-{number}")):
            number += 1
        atomic.replace(path, kept)
        log.warning(f"{path}: passed over {unread}; the whole file is kept as {kept}")
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
        log.warning(f"{path}: passed over {n_damaged:,} damaged {'line' if n_damaged == 1 else 'lines'}")
    return found, "".join(unread)


def _lines(path: Path, unread: list[str]) -> Iterator[bytes]:
    """The lines of a record, with their ends; of one that is too long to be one, its beginning.

    What was not read is added to `unread`.
    """
    try:
        with files.open_regular(path) as file:
            while file.tell() < MAX_RECORDS and (line := file.readline(MAX_LINE)):
                rest = line
                while rest and not rest.endswith(b"\n") and file.tell() < MAX_RECORDS:
                    rest = file.readline(MAX_LINE)
                yield line if line is rest or not rest.endswith(b"\n") else line + b"\n"
            if file.read(1):
                unread.append(f"what follows its first {MAX_RECORDS:,} bytes")
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
