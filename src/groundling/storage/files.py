"""Open and remove files that others may have made: one function for each.

What lies in the folder of a run, a bundle or a data set can come from anybody: a link to /dev/zero, a pipe to which
nobody writes, a file of 100 GB. A file is judged by its descriptor: what is looked at under a name can be another file
when that name is opened.

A file inside a folder that a user names is never a link, and so leads to nothing outside that folder; the folders
themselves may be links, to another disk for example. Two layouts have links, and are read with `links=True`: the
Hugging Face hub's cache, whose `snapshots/X/model.safetensors` is a link to `../../blobs/`, and folders of texts.
So is a path that the user names himself. There, too, a file has to be a regular one.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path

PIECE_BYTES = 1 << 20
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_ALWAYS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class RefusedFileError(OSError):
    """A file that is not opened, or not read; as text the reason, without the path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))

    def __str__(self) -> str:
        return str(self.strerror)


class LinkedFileError(RefusedFileError):
    """A link where none is followed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _refusal("a link"))


def open_regular(path: Path, *, links: bool = False, within: Path | None = None) -> BufferedReader:
    """Open a regular file to read its bytes. Nothing that is no regular file is waited for, or opened at all.

    Args:
        path: of the file.
        links: whether the name may be that of a link.
        within: a folder above the file; no folder between the two may be a link.

    Raises:
        FileNotFoundError: it is not there.
        IsADirectoryError: it is a folder.
        RefusedFileError: it is a link or no regular file.
        OSError: it cannot be opened.
    """
    if within is not None:
        for folder in path.relative_to(within).parents[:-1]:
            _require(within / folder, _status(within / folder, links=False), stat.S_ISDIR)
    return os.fdopen(_descriptor(path, os.O_RDONLY, links), "rb")


def open_to_append(path: Path) -> BufferedWriter:
    """Open a regular file to add bytes to its end, or make it. Raises as `open_regular`."""
    return os.fdopen(_descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, links=False), "ab")


def open_to_replace(path: Path) -> BufferedWriter:
    """Open a regular file to write it anew, or make it. Raises as `open_regular`."""
    return os.fdopen(_descriptor(path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, links=False), "wb")


def require_regular(path: Path) -> None:
    """Check what is there before others open it. Raises as `open_regular`."""
    _require(path, _status(path, links=False), stat.S_ISREG)


def _descriptor(path: Path, flags: int, links: bool) -> int:
    """The descriptor of a regular file, which was one before it was opened, too: to open a device can set it going."""
    try:
        _require(path, _status(path, links), stat.S_ISREG)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    try:
        descriptor = os.open(path, flags | _ALWAYS | (0 if links else _NOFOLLOW), 0o666)
    except OSError as error:
        if not links and error.errno in (errno.ELOOP, errno.EMLINK):
            raise LinkedFileError(path) from None
        raise
    try:
        _require(path, os.fstat(descriptor).st_mode, stat.S_ISREG)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _status(path: Path, links: bool) -> int:
    try:
        return path.stat(follow_symlinks=links).st_mode
    except ValueError:  # a name that no file can have: NUL, half of a surrogate pair
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), ascii(str(path))) from None


def _require(path: Path, mode: int, is_right: Callable[[int], bool]) -> None:
    if is_right(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISLNK(mode):
        raise LinkedFileError(path)
    raise RefusedFileError(path, _refusal(next((name for test, name in _KINDS if test(mode)), "something else")))


def _refusal(kind: str) -> str:
    return f"it is {kind}, and a regular file is expected"


def is_regular(path: Path, *, links: bool = False) -> bool:
    """Whether a regular file is there: what `open_regular` would open, if it may."""
    try:
        return stat.S_ISREG(_status(path, links))
    except OSError:
        return False


def read_bytes(path: Path, most: int, *, links: bool = False) -> bytes:
    """Read a whole file of at most `most` bytes.

    Raises:
        OSError: as `open_regular`, or it is larger.
    """
    with open_regular(path, links=links) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        pieces = list[bytes]()
        while n_bytes <= most and (piece := file.read(PIECE_BYTES)):
            pieces.append(piece)
            n_bytes = max(n_bytes, sum(map(len, pieces)))  # files under /proc do not say how long they are
    if n_bytes > most:
        raise RefusedFileError(path, f"it has {n_bytes:,} bytes, and {most:,} are read at most")
    return b"".join(pieces)


def read_text(path: Path, most: int, *, links: bool = False) -> str:
    """Read UTF-8 text of at most `most` bytes, with or without a byte-order mark.

    Raises:
        OSError: as `read_bytes`.
        UnicodeDecodeError: it is something else than UTF-8.
    """
    return read_bytes(path, most, links=links).decode("utf-8-sig")


@contextmanager
def held(path: Path, *, links: bool = False) -> Iterator[tuple[Path, BufferedReader]]:
    """Open a file for a library that opens files itself, and return a name for it that is of this very file.

    Where the system has no such names (all but Linux), it is the path. Raises as `open_regular`.
    """
    with open_regular(path, links=links) as file:
        own = Path(f"/proc/self/fd/{file.fileno()}")
        yield own if own.exists() else path, file


def remove(path: Path) -> None:
    """Remove what is there, if anything is: a file, a folder with all in it; of a link the link alone.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(path)  # follows no links
    else:
        path.unlink(missing_ok=True)
