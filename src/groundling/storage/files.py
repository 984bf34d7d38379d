"""Open and remove untrusted files.

The files of a run, a bundle or a data set can come from anywhere: a link to /dev/zero, a pipe without a writer, a file
of 100 GB. Checks use the open descriptor, because the file behind a name can change between check and open.

A file inside a folder given by the user must not be a link, so nothing outside the folder is read; the folders
themselves may be links, for example to another disk. Links are allowed (`links=True`) in two layouts, the Hugging Face
hub's cache (`snapshots/X/model.safetensors` links to `../../blobs/`) and folders of texts, and for a path given by the
user. The target must still be a regular file.
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
    """A file that is refused; its text is the reason, without the path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))

    def __str__(self) -> str:
        return str(self.strerror)


class LinkedFileError(RefusedFileError):
    """A link where links are not followed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _refusal("a link"))


def open_regular(path: Path, *, links: bool = False, within: Path | None = None) -> BufferedReader:
    """Open a regular file for reading. Anything else is neither opened nor waited for.

    Args:
        path: the file.
        links: whether the path may be a link.
        within: an ancestor folder; no folder between the two may be a link.

    Raises:
        FileNotFoundError: it does not exist.
        IsADirectoryError: it is a folder.
        RefusedFileError: it is a link or not a regular file.
        OSError: it cannot be opened.
    """
    if within is not None:
        for folder in path.relative_to(within).parents[:-1]:
            _require(within / folder, _status(within / folder, links=False), stat.S_ISDIR)
    return os.fdopen(_descriptor(path, os.O_RDONLY, links), "rb")


def open_to_append(path: Path) -> BufferedWriter:
    """Open a regular file for appending; create it if missing. Raises as `open_regular`."""
    return os.fdopen(_descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, links=False), "ab")


def open_to_replace(path: Path) -> BufferedWriter:
    """Open a regular file for overwriting; create it if missing. Raises as `open_regular`."""
    return os.fdopen(_descriptor(path, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, links=False), "wb")


def require_regular(path: Path) -> None:
    """Check that a path is a regular file. Raises as `open_regular`."""
    _require(path, _status(path, links=False), stat.S_ISREG)


def _descriptor(path: Path, flags: int, links: bool) -> int:
    """Open a regular file; check before opening, too, because opening a device can have side effects."""
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
    except ValueError:  # an impossible name: NUL, a lone surrogate
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
    """Whether a path is a regular file, as `open_regular` requires."""
    try:
        return stat.S_ISREG(_status(path, links))
    except OSError:
        return False


def read_bytes(path: Path, most: int, *, links: bool = False) -> bytes:
    """Read a whole file of at most `most` bytes.

    Raises:
        OSError: as `open_regular`, or the file is larger.
    """
    with open_regular(path, links=links) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        pieces = list[bytes]()
        while n_bytes <= most and (piece := file.read(PIECE_BYTES)):
            pieces.append(piece)
            n_bytes = max(n_bytes, sum(map(len, pieces)))  # files under /proc report size 0
    if n_bytes > most:
        raise RefusedFileError(path, f"it has {n_bytes:,} bytes, and {most:,} are read at most")
    return b"".join(pieces)


def read_text(path: Path, most: int, *, links: bool = False) -> str:
    """Read UTF-8 text of at most `most` bytes, with or without a byte-order mark.

    Raises:
        OSError: as `read_bytes`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, most, links=links).decode("utf-8-sig")


@contextmanager
def held(path: Path, *, links: bool = False) -> Iterator[tuple[Path, BufferedReader]]:
    """Open a file for a library that opens files itself; yield a path that refers to the open file.

    Without /proc (all systems but Linux), it is the original path. Raises as `open_regular`.
    """
    with open_regular(path, links=links) as file:
        own = Path(f"/proc/self/fd/{file.fileno()}")
        yield own if own.exists() else path, file


def remove(path: Path) -> None:
    """Remove a file, a link (not its target), or a folder with its contents, if it exists.

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
