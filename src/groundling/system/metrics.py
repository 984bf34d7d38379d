"""Metrics: a run writes records, plain dictionaries with a "step", to sinks; readers read them back.

metrics.jsonl is the record; the console (`console.py`), TensorBoard and Weights & Biases are views of it.
"""

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from groundling.storage import atomic, files
from groundling.system.logs import Record
from groundling.system.optional import missing_extra, optional_import

log = logging.getLogger(__name__)

SinkName = Literal["tensorboard", "wandb"]


class Sink(Protocol):
    """A destination of records."""

    def write(self, record: Record) -> None:
        """Write one record."""

    def close(self) -> None:
        """Flush and close."""


class MetricsWriter:
    """Writes each record to all sinks of a run; ranks other than the first have none."""

    def __init__(self) -> None:
        self.sinks: list[Sink] = []

    def write(self, record: Record) -> None:
        """Write one record."""
        for sink in self.sinks:
            sink.write(record)

    @property
    def sampled_at(self) -> int:
        """Step of the last sample in metrics.jsonl; 0: none."""
        return max((sink.sampled_at for sink in self.sinks if isinstance(sink, JsonlSink)), default=0)

    def close(self) -> None:
        """Close the sinks."""
        while self.sinks:
            self.sinks.pop(0).close()


class JsonlSink:
    """One JSON object a line. A resumed run first drops the records after its checkpoint.

    Args:
        path: the file.
        resumed_at: the checkpoint's step, up to which records are kept; None: a new run.
        rewritten: which records of that very step to drop as well, because the resumed run writes them again.
    """

    def __init__(
        self, path: Path, resumed_at: int | None = None, rewritten: Callable[[Record], bool] = lambda _: False
    ) -> None:
        self.path = path
        earlier = [] if resumed_at is None else _read_or_keep(path)
        kept = [r for r in earlier if r["step"] <= resumed_at and not (r["step"] == resumed_at and rewritten(r))]
        atomic.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.sampled_at = max((record["step"] for record in kept if "sample" in record), default=0)
        """Step of the last sample that was kept, so that a resumed run does not draw it again; 0: none."""

    def write(self, record: Record) -> None:
        """Append one line."""
        atomic.append_line(self.path, json.dumps(record))

    def close(self) -> None:
        """Do nothing: each line is already in the file."""


MAX_BYTES = 1 << 30
"""Maximum bytes read from a metrics file: a few million records."""
MAX_LINE = 1 << 20
"""Maximum bytes of one record."""
NUMBERS = ("step", "loss", "val_loss", "train_loss", "n_tokens", "train_s")
"""Keys whose values must be numbers."""


class RecordReader:
    """Reads the records of a metrics file that may still grow, in any number of pieces.

    Args:
        file: open for reading bytes.
        position: where to start: the beginning of a line.
    """

    def __init__(self, file: BinaryIO, position: int = 0) -> None:
        self._file = file
        self.position = position
        """Offset of the next record."""
        self.n_damaged = 0
        """Lines skipped because they hold no record."""

    def read(self, limit: int) -> Iterator[Record]:
        """Yield the records of lines that begin before byte `limit`. An incomplete last line is left unread."""
        self._file.seek(self.position)
        while self.position < limit:
            line = self._file.readline(MAX_LINE)
            if not line.endswith(b"\n") and len(line) < MAX_LINE:
                return
            self.position += len(line)
            is_whole = line.endswith(b"\n")
            if not is_whole and not self._skip_line(limit):
                return
            record = parse_record(line) if is_whole else None
            self.n_damaged += record is None
            if record is not None:
                yield record

    def unfinished(self) -> Record | None:
        """The record of a last line without a newline; None if it is truncated."""
        self._file.seek(self.position)
        return parse_record(self._file.readline(MAX_LINE))

    def _skip_line(self, limit: int) -> bool:
        """Skip the rest of a line that is too long, up to `limit`; whether it ended before."""
        while self.position < limit and (piece := self._file.readline(MAX_LINE)):
            self.position += len(piece)
            if piece.endswith(b"\n"):
                return True
        return False


def parse_record(line: bytes) -> Record | None:
    """Parse one line; None if it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, a number of 5,000 digits, nested too deep
        return None
    if not isinstance(record, dict) or "step" not in record:
        return None
    numbers = [record[name] for name in NUMBERS if record.get(name) is not None]
    sound = all(isinstance(n, float) or (type(n) is int and abs(n) < 2**63) for n in numbers)
    return record if sound and isinstance(record["step"], int) else None


def read_records(path: Path) -> list[Record]:
    """Read a metrics file. Damaged lines are skipped with a warning; a truncated last line, without one."""
    records, unread = _read(path)
    if unread:
        log.warning(f"{path}: skipped {unread}")
    return records


def _read_or_keep(path: Path) -> list[Record]:
    """The records of a file that is about to be replaced; if part of it could not be read, the file is kept aside."""
    records, unread = _read(path)
    if unread:
        number = 1
        while os.path.lexists(kept := path.with_name(f"{path.name}.unread-{number}")):
            number += 1
        atomic.replace(path, kept)
        log.warning(f"{path}: skipped {unread}; the whole file is kept as {kept}")
    return records


def _read(path: Path) -> tuple[list[Record], str]:
    """Return a file's records, and a description of what could not be read ("" if nothing)."""
    records: list[Record] = []
    try:
        with files.open_regular(path) as file:
            reader = RecordReader(file)
            records += reader.read(MAX_BYTES)
            unread = ""
            if reader.position >= MAX_BYTES:
                file.seek(reader.position)
                unread = f"what follows its first {MAX_BYTES:,} bytes" if file.read(1) else ""
            elif (last := reader.unfinished()) is not None:
                records.append(last)
    except FileNotFoundError:
        return [], ""
    except OSError as error:
        return records, f"all that could not be read ({error.strerror})"
    if reader.n_damaged:
        lines = "line" if reader.n_damaged == 1 else "lines"
        log.warning(f"{path}: skipped {reader.n_damaged:,} damaged {lines}")
    return records, unread


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
