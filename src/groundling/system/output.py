"""Standard output and standard error that cannot fail: what happens when nothing can be written to them.

`guarded` stands around a whole command, once. Inside it `print`, rich and everything else write to `sys.stdout` and
`sys.stderr` as ever, and:

- A character that the encoding lacks (cp1252 in a Windows pipe, ASCII) is written as an escape such as \\u2192; at
  the end one line on stderr says so.
- A reader that has left (`| head -1`) and a stream that was closed from the start (`>&-`) are no error. What is
  written to them is dropped, the work goes on, and the exit code is the work's own: `verify-checkpoint RUN | head -1`
  still fails for a damaged checkpoint.
- Any other failure (a full disk) is said in one line on stderr, at once; the work goes on, for its files matter more
  than its report; and the exit code is not 0.
- stderr fails silently: there is nowhere to say it, and it changes no exit code.

A command that is nothing but its output, and would go on for long, writes with `put` and ends when nothing arrives.
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
"""The name of our error handler of encodings."""
KEPT_HANDLERS = ("backslashreplace", "ignore", "namereplace", "replace", "xmlcharrefreplace")
"""What PYTHONIOENCODING may ask for in its place: error handlers that never raise."""
UNBREAKABLE = "groundling-"
"""What the names of threads begin with that cannot be broken off: the process ends without waiting for them."""
CLOSED = "this stream was closed from the start"


class OutputEnded(Exception):  # noqa: N818  # like StopIteration: often no error
    """Nothing more can be written to stdout. Why, and whether that is an error, the guard knows."""


class _SafeRaw(io.RawIOBase):
    """Passes bytes on to a raw stream until that fails; then takes all and drops it."""

    def __init__(self, raw: io.RawIOBase | None, told: TextIO | None = None) -> None:
        self._raw, self._told = raw, told
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
        return self._raw.seek(offset, whence)  # asked by UTF-16: a byte-order mark stands at a file's beginning only

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
            except (OSError, ValueError) as error:  # ValueError: somebody has closed it
                self._end(error)
                break
            if n_written is None:  # a pipe that does not block (another process set it so), and is full
                with suppress(OSError, ValueError):
                    select.select([], [self._raw], [], 1.0)
                continue
            left = left[n_written:]
        return n_bytes

    def _end(self, error: Exception) -> None:
        self.ended = True
        self.failed = not _reader_left(error)
        if self.failed and self._told is not None:
            reason = getattr(error, "strerror", None) or error
            print(f"groundling: error: standard output cannot be written: {reason}; send it elsewhere", file=self._told)
            self._told.flush()


def _reader_left(error: Exception) -> bool:
    if isinstance(error, ConnectionError):  # BrokenPipeError is one
        return True
    return sys.platform == "win32" and getattr(error, "errno", None) == errno.EINVAL  # so Windows reports it


class Guard:
    """What has become of stdout by now."""

    def __init__(self, stdout: TextIO | None, stderr: TextIO) -> None:
        self._escaped, self._stderr = False, stderr
        codecs.register_error(ESCAPE, self._escape)
        self.stream, self._raw = _safe(stdout, told=stderr, errors=ESCAPE)

    def _escape(self, error: UnicodeError) -> tuple[str | bytes, int]:
        self._escaped = True
        return codecs.backslashreplace_errors(error)

    def settle(self, code: int) -> int:
        """Write what is left, say what was escaped, and return the exit code, given the work's own."""
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
    stream: TextIO | None, told: TextIO | None = None, errors: str | None = None
) -> tuple[TextIO, _SafeRaw | None]:
    """A stream in place of another one, which cannot fail. One that is no file (a notebook's, a test's) stays."""
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
    raw = _SafeRaw(inner, told)
    made = io.TextIOWrapper(
        cast(BinaryIO, raw) if inner is stream.buffer else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors if errors is None or stream.errors in KEPT_HANDLERS else errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    return made, raw


def _raw_of(stream: TextIO) -> object:
    """What its bytes go to in the end; `python -u` has no buffer between."""
    buffer = getattr(stream, "buffer", None)
    return getattr(buffer, "raw", buffer)


@contextmanager
def guarded() -> Iterator[Guard]:
    """Let `sys.stdout` and `sys.stderr` be safe inside the block, and `sys.stdin` be there; then as they were."""
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
    """Write to stdout, at once.

    Raises:
        OutputEnded: it does not arrive.
    """
    sys.stdout.write(text)
    sys.stdout.flush()
    raw = _raw_of(sys.stdout)
    if isinstance(raw, _SafeRaw) and raw.ended:
        raise OutputEnded


def claim_descriptors() -> None:
    """Open the null device where a process was started without standard input, output or error.

    Else the next file that is opened becomes, say, standard error, and warnings of libraries are written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            taken = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(taken, True)
