"""stdout and stderr that never raise.

`guarded` wraps a whole command. Inside it `print`, rich and others write to `sys.stdout` and `sys.stderr` as usual:

- A character missing from the encoding (cp1252 in a Windows pipe, ASCII) is written as an escape such as \\u2192, and
  one line on stderr at the end reports this.
- A broken pipe (`| head -1`) or a stream closed from the start (`>&-`) is not an error. Output is dropped, the work
  continues, and the exit code is that of the work: `verify-checkpoint RUN | head -1` still fails on damage.
- Any other failure (a full disk) is reported immediately in one line on stderr. The work continues, because its files
  matter more than its output, and the exit code is not 0.
- Failures of stderr are silent and do not change the exit code.

A long-running command that produces only output writes with `put` and ends when nobody reads it.
"""

import codecs
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TextIO, cast

ESCAPE = "groundling.escape"
"""Name of our encoding error handler."""
KEPT_HANDLERS = ("backslashreplace", "ignore", "namereplace", "replace", "xmlcharrefreplace")
"""Error handlers that never raise; if PYTHONIOENCODING selects one of them, it is kept."""
UNBREAKABLE = "groundling-"
"""Name prefix of threads that cannot be interrupted; the process exits without waiting for them."""
CLOSED = "this stream was closed when the process started"


class OutputEnded(Exception):  # noqa: N818  # like StopIteration: often no error
    """stdout accepts no more output. The guard knows the reason and whether it is an error."""


class _SafeRaw(io.RawIOBase):
    """Forwards bytes to a raw stream until that fails, then drops them."""

    def __init__(self, raw: io.RawIOBase | None, error_stream: TextIO | None = None) -> None:
        self._raw, self._error_stream = raw, error_stream
        self.name, self.mode = getattr(raw, "name", os.devnull), "wb"
        self.ended = raw is None
        self.failed = False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._raw is not None and self._raw.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self._raw is None:
            raise io.UnsupportedOperation(CLOSED)
        # UTF-16 needs it to write a byte-order mark only at the start of a file.
        return self._raw.seek(offset, whence)

    def isatty(self) -> bool:
        return self._raw is not None and self._raw.isatty()

    def fileno(self) -> int:
        if self._raw is None:
            raise io.UnsupportedOperation(CLOSED)
        return self._raw.fileno()

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        n_bytes = len(left)
        while not self.ended and left:
            assert self._raw is not None
            try:
                n_written = self._raw.write(left)
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                self._end(error)
                break
            if n_written is None:  # a full pipe that another process made non-blocking
                with suppress(OSError, ValueError):
                    select.select([], [self._raw], [], 1.0)
                continue
            left = left[n_written:]
        return n_bytes

    def _end(self, error: Exception) -> None:
        self.ended = True
        self.failed = not _reader_left(error)
        if self.failed and self._error_stream is not None:
            reason = getattr(error, "strerror", None) or error
            text = f"groundling: error: standard output cannot be written: {reason}; send it elsewhere"
            print(text, file=self._error_stream, flush=True)


def _reader_left(error: Exception) -> bool:
    if isinstance(error, ConnectionError):  # BrokenPipeError is one
        return True
    return sys.platform == "win32" and getattr(error, "errno", None) == errno.EINVAL  # a broken pipe on Windows


class Guard:
    """The state of stdout."""

    def __init__(self, stdout: TextIO | None, stderr: TextIO) -> None:
        self._escaped, self._stderr = False, stderr
        codecs.register_error(ESCAPE, self._escape)
        self.stream, self._raw = _safe(stdout, error_stream=stderr, errors=ESCAPE)

    def _escape(self, error: UnicodeError) -> tuple[str | bytes, int]:
        self._escaped = True
        return codecs.backslashreplace_errors(error)

    def settle(self, code: int) -> int:
        """Flush, report escaped characters, and return the exit code, given that of the work."""
        with suppress(OSError, ValueError):
            self.stream.flush()
        ended = self._raw is not None and self._raw.ended
        encoding = self.stream.encoding
        if self._escaped and not ended and not encoding.lower().startswith("utf"):
            print(
                f"groundling: standard output is {encoding}, which lacks some of these characters; they were written "
                "as \\x, \\u or \\U and a number; set PYTHONIOENCODING=utf-8 to get the characters",
                file=self._stderr,
                flush=True,
            )
        failed = self._raw is not None and self._raw.failed
        return code or int(failed)


def _safe(
    stream: TextIO | None, error_stream: TextIO | None = None, errors: str | None = None
) -> tuple[TextIO, _SafeRaw | None]:
    """Replace a stream by one that never raises. A stream that is not a file (a notebook's, a test's) is kept."""
    if stream is None:
        nothing = _SafeRaw(None)
        return io.TextIOWrapper(io.BufferedWriter(nothing), encoding="utf-8", errors="backslashreplace"), nothing
    inner = _raw_of(stream)
    if isinstance(inner, _SafeRaw):  # a command inside a command
        return stream, inner
    if not isinstance(stream, io.TextIOWrapper) or not isinstance(inner, io.RawIOBase):
        return stream, None
    with suppress(OSError, ValueError):
        stream.flush()
    raw = _SafeRaw(inner, error_stream)
    safe = io.TextIOWrapper(
        cast(BinaryIO, raw) if inner is stream.buffer else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors if errors is None or stream.errors in KEPT_HANDLERS else errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    return safe, raw


def _raw_of(stream: TextIO) -> object:
    """The raw stream below a text stream; `python -u` has no buffer between the two."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


@contextmanager
def guarded() -> Iterator[Guard]:
    """Make `sys.stdout` and `sys.stderr` safe within the block, and open `sys.stdin` if it is missing."""
    before = sys.stdin, sys.stdout, sys.stderr
    missing = None
    if sys.stdin is None:
        sys.stdin = missing = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    sys.stderr, _ = _safe(before[2])
    guard = Guard(before[1], sys.stderr)
    sys.stdout = guard.stream
    try:
        yield guard
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdin, sys.stdout, sys.stderr = before
        if missing is not None:
            missing.close()


def put(text: str) -> None:
    """Write to stdout and flush.

    Raises:
        OutputEnded: stdout is closed or has failed.
    """
    sys.stdout.write(text)
    sys.stdout.flush()
    raw = _raw_of(sys.stdout)
    if isinstance(raw, _SafeRaw) and raw.ended:
        raise OutputEnded


def claim_descriptors() -> None:
    """Open the null device for each of stdin, stdout and stderr that is closed.

    Otherwise the next opened file would get, for example, descriptor 2, and libraries would write warnings into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            taken = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
            os.set_inheritable(taken, True)
