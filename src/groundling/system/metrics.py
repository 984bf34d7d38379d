"""Metric sinks: each takes records, plain dictionaries with a "step".

The JSONL file is the authoritative record; the console (`console.py`), TensorBoard and Weights & Biases are views.
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
    """A destination for records."""

    def write(self, record: Record) -> None:
        """Write one record."""

    def close(self) -> None:
        """Flush and close."""


class JsonlSink:
    """One JSON object per line. On resume, records after the last checkpoint are dropped.

    Args:
        path: the file.
        resumed_at: step of the checkpoint, up to which records are kept; None: a new run.
        made_again: selects records of that very step which the resumed run will write again.
    """

    def __init__(
        self, path: Path, resumed_at: int | None = None, made_again: Callable[[Record], bool] = lambda _: False
    ) -> None:
        self.path = path
        earlier = [] if resumed_at is None else _read_or_keep(path)
        kept = [r for r in earlier if r["step"] <= resumed_at and not (r["step"] == resumed_at and made_again(r))]
        atomic.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.sampled_at = max((record["step"] for record in kept if "sample" in record), default=0)
        """Step of the latest sample kept, 0 if none: a resumed run does not repeat it."""

    def write(self, record: Record) -> None:
        """Append one line."""
        atomic.append_line(self.path, json.dumps(record))

    def close(self) -> None:
        """Do nothing: each line is already in the file."""


MAX_RECORDS = 1 << 30
"""Bytes of a run's record file: millions of lines."""
MAX_LINE = 1 << 20
"""Bytes of one record."""
NUMBERS = ("step", "loss", "val_loss", "train_loss", "n_tokens", "train_s")
"""Fields that must be numbers if present."""


def read_records(path: Path) -> list[Record]:
    """Read the records of a JSONL file.

    Never fails: a last line cut by a crash is skipped, and so are damaged lines, with a warning.
    """
    found, unread = _read(path)
    if unread:
        log.warning(f"{path}: passed over {unread}")
    return found


def _read_or_keep(path: Path) -> list[Record]:
    """Read the records of a file that will be rewritten; keep a copy if part of it could not be read."""
    found, unread = _read(path)
    if unread:
        number = 1
        while os.path.lexists(kept := path.with_name(f"{path.name}.unread-{number}")):
            number += 1
        atomic.replace(path, kept)
        log.warning(f"{path}: passed over {unread}; the whole file is kept as {kept}")
    return found


def _read(path: Path) -> tuple[list[Record], str]:
    """The records of a file, and a description of what could not be read."""
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
    """Lines with their line ends, each truncated to MAX_LINE; descriptions of unread parts are added to `unread`."""
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
    """Parse a line; None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, a number of 5,000 digits, nested too deep
        return None
    if not isinstance(record, dict) or "step" not in record:
        return None
    numbers = [record[name] for name in NUMBERS if record.get(name) is not None]
    sound = all(isinstance(n, float) or (type(n) is int and abs(n) < 2**63) for n in numbers)
    return record if sound and isinstance(record["step"], int) else None


class TensorBoardSink:
    """Writes TensorBoard event files. Needs the extra `track`."""

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
    """Logs to Weights & Biases. Needs the extra `track`."""

    def __init__(self, folder: Path, config: Record, run_id: str) -> None:
        wandb = optional_import("wandb", "track")
        self._run = wandb.init(project="groundling", dir=str(folder), config=config, id=run_id, resume="allow")

    def write(self, record: Record) -> None:
        """Log the record at its step."""
        self._run.log({key: value for key, value in record.items() if key != "step"}, step=record["step"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def require_packages(names: Sequence[SinkName]) -> None:
    """Check that the packages of these sinks are installed.

    Raises:
        MissingExtraError: a package is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise missing_extra(name, "track")


def optional_sinks(names: Sequence[SinkName], folder: Path, config: Record, run_id: str) -> list[Sink]:
    """Create sinks by name.

    Raises:
        MissingExtraError: a package is not installed.
    """
    make: dict[SinkName, Callable[[], Sink]] = {
        "tensorboard": lambda: TensorBoardSink(folder / "tensorboard"),
        "wandb": lambda: WandbSink(folder, config, run_id),
    }
    return [make[name]() for name in names]
