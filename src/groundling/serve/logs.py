"""The server's log: an object of JSON a line, on stderr. It holds no prompt, no reply and no key, unless asked to."""

import json
import logging
import sys
import time
from typing import Any, TextIO


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
