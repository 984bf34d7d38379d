"""Logging: plain lines on stderr for people, or events as JSON lines.

Every module logs to `logging.getLogger(__name__)`. The commands configure the logger "groundling". The library
configures nothing, so only warnings are shown, by logging's last resort.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

Record = dict[str, Any]
"""Figures of one training step, by name."""

PACKAGE = "groundling"
DECODER = "groundling.sample"
"""Logger of the decoding backend; printed only by verbs that show one text as it is generated."""
FIGURES = {
    "val_loss": "validation loss {val_loss:.4f} (best {best_val_loss:.4f})",
    "train_loss": "training loss {train_loss:.4f}",
    "loss": "loss {loss:.4f}",
    "tokens_per_s": "{tokens_per_s:,.0f} tokens/s",
    "utilisation": "utilisation {utilisation:.0%}",
    "memory_mb": "{memory_mb:,.0f} MB",
}
"""Figures of pretraining shown on the console, in order, and their formats."""


class ConsoleHandler(logging.Handler):
    """Prints messages on the current `sys.stderr`; under torchrun only on the first rank."""

    print_above_bar: Callable[[str], None] | None = None
    """Prints a line above the progress bar while one is shown."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this is the first rank."""
        return os.environ.get("RANK", "0") == "0" and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message. Errors are not caught: the command's stderr cannot fail (see output.py)."""
        line = self.format(record)
        if ConsoleHandler.print_above_bar is not None:
            ConsoleHandler.print_above_bar(line)
        else:
            print(line, file=sys.stderr, flush=True)


@contextmanager
def console_logging() -> Iterator[None]:
    """Print messages from INFO up on stderr within the block, and nowhere else."""
    logger, decoder = logging.getLogger(PACKAGE), logging.getLogger(DECODER)
    before = logger.handlers, logger.level, logger.propagate, decoder.level
    logger.handlers, logger.propagate = [ConsoleHandler()], False
    logger.setLevel(logging.INFO)
    decoder.setLevel(logging.WARNING)
    try:
        yield
    finally:
        ConsoleHandler.print_above_bar = None
        logger.handlers, level, logger.propagate, decoder_level = before
        logger.setLevel(level)
        decoder.setLevel(decoder_level)


def show_decoder() -> None:
    """Also print which backend decodes."""
    logging.getLogger(DECODER).setLevel(logging.INFO)


class EventLog:
    """Writes events as JSON lines.

    JSON escapes control characters, so input can neither forge a line nor move the terminal's cursor.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file

    def write(self, event: str, level: str = "info", **fields: Any) -> None:
        """Write one line."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"time": now, "level": level, "event": event, **fields}, default=str)
        print(line, file=self._file or sys.stderr, flush=True)


class JsonHandler(logging.Handler):
    """Writes warnings and errors of loggers to an event log."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        fields = {"error": repr(record.exc_info[1])} if record.exc_info else {}
        self._log.write("library", record.levelname.lower(), logger=record.name, message=record.getMessage(), **fields)


def log_as_json(log: EventLog, *loggers: str) -> None:
    """Send warnings and errors of these loggers to an event log, and nowhere else."""
    for name in loggers:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [JsonHandler(log)], False


def format_record(record: Record, figures: Mapping[str, str] | None = None) -> str:
    """A record in one line.

    Args:
        record: of a training step.
        figures: which figures to show, with their formats; None: all but the step and the learning rate's factor.
    """
    if figures is not None:
        return ", ".join(template.format(**record) for name, template in figures.items() if name in record)
    shown = {name: value for name, value in record.items() if name not in ("step", "lr_factor")}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
    )
