"""Atomic, durable writes: all files that must survive a crash are written here.

A file or folder gets its final name only when it is complete and on disk: write under a temporary name, fsync the
file, rename, fsync the parent folder. Each operation is announced to `observers` first, so tests can crash at each of
them or check their order. Longer than 300 lines, because all writers share the announcements and the error messages.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import filelock

from groundling.errors import StorageError
from groundling.storage import files

PIECE_BYTES = 1 << 16
"""Files are written in pieces of this size, each announced, so a crash in mid-file can be tested."""

HASHED_BYTES = 1 << 20
"""Files are hashed in pieces of this size."""

TEMPORARY_PREFIX = ".tmp-"
"""Prefix of unfinished files, which the owner of the folder may remove."""

observers: list[Callable[[str, Path], None]] = []
"""Called with (operation, path) before each operation. Used by tests only."""


class _KillPoint:
    """`GROUNDLING_KILL_AT=operation@part-of-path#n`: SIGKILL this process at the n-th such operation.

    For crash tests in real processes, without cleanup or flushing.
    """

    def __init__(self, spec: str | None) -> None:
        self.operation, self.part, self.left = "", "", 0
        if spec:
            self.operation, _, rest = spec.partition("@")
            self.part, _, count = rest.partition("#")
            self.left = int(count or 1)

    def visit(self, operation: str, path: Path) -> None:
        if self.left and operation == self.operation and self.part in str(path):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


_kill_point = _KillPoint(os.environ.get("GROUNDLING_KILL_AT"))


def _announce(operation: str, path: Path) -> None:
    _kill_point.visit(operation, path)
    for observer in observers:
        observer(operation, path)


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Convert an error of writing to a one-line StorageError."""
    try:
        yield
    except (StorageError, filelock.Timeout):
        raise
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EFBIG: "the file is larger than this process or file system allows",
            errno.EACCES: "no permission",
            errno.EPERM: "no permission",
            errno.EROFS: "the file system is read-only",
        }
        if isinstance(error, files.RefusedFileError):
            raise StorageError(f"cannot write {path}: {error}; remove it, and run again") from error
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        hint = "free some room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose a folder you can write to"
        raise StorageError(f"cannot write {path}: {reason}; {hint} and run again") from error


class _AnnouncedFile:
    """A binary file whose writes are announced."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE_BYTES):
            _announce("write", self._path)
            self._file.write(view[start : start + PIECE_BYTES])
        return len(view)

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)


@contextmanager
def open_atomic(path: Path) -> Iterator[_AnnouncedFile]:
    """Open a binary file that replaces `path` if the block succeeds, and is discarded otherwise.

    Raises:
        StorageError: the file could not be written; `path` is unchanged.
    """
    with new_file(path) as temporary, temporary.open("xb") as file:
        yield _AnnouncedFile(file, temporary)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` if the block succeeds.

    For libraries that open files themselves; their writes are not announced.

    Raises:
        StorageError: the file could not be written; `path` is unchanged.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")
    with _clear_errors(path):
        if path.exists() and not (path.is_file() or path.is_dir()):  # replacing /dev/null would break the machine
            raise StorageError(f"cannot write {path}: it is a device or a pipe; give the name of a file and run again")
        try:
            _announce("open", temporary)
            yield temporary
            _announce("fsync", temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            replace(temporary, path)
        except Exception:
            files.remove(temporary)
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, atomically and durably."""
    with open_atomic(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to `path`, atomically and durably."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path`, atomically and durably."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        write_text(path, f"{text}\n")
    except UnicodeEncodeError:  # a lone surrogate, from a file name that is not UTF-8
        write_text(path, f"{json.dumps(value, indent=2)}\n")


MAX_JSON = 256 << 20
"""Bytes; ten times the largest published tokenizers."""
MAX_JSON_DEPTH = 100
"""Levels of nesting; protects recursive code."""


def read_json(path: Path, most: int = MAX_JSON, *, links: bool = False) -> Any:
    """Read an untrusted JSON file: a regular file of bounded size, with or without a byte-order mark.

    Args:
        path: the file.
        most: maximum size in bytes.
        links: see `files.open_regular`.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is not valid JSON, or nested too deep.
    """
    try:
        value = json.loads(files.read_text(path, most, links=links))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        below = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, (dict, list)))
        level = [item for items in below for item in items if isinstance(item, (dict, list))]
        if not level:
            return value
    raise ValueError("it is nested too deep")


def write_note(path: Path, text: str) -> None:
    """Write a small file that need not survive a crash. An existing file, or a link itself, is removed first."""
    with _clear_errors(path):
        files.remove(path)
        with files.open_to_replace(path) as file:
            file.write(text.encode())


def append_line(path: Path, line: str) -> None:
    """Append one line. A crash can lose or truncate this line only."""
    with _clear_errors(path):
        _announce("append", path)
        with files.open_to_append(path) as file:
            file.write(f"{line}\n".encode())


def replace(source: Path, target: Path) -> None:
    """Rename within one file system, durably."""
    _announce("replace", target)
    source.replace(target)
    fsync_folder(target.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable; a no-op on Windows, which cannot open folders."""
    _announce("fsync_folder", folder)
    with suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` if the block succeeds.

    Raises:
        StorageError: a write failed; `path` does not exist.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}")
    with _clear_errors(path):
        try:
            _announce("mkdir", temporary)
            temporary.mkdir(parents=True)
            yield temporary
            for folder in sorted({file.parent for file in temporary.rglob("*")}):
                fsync_folder(folder)
            replace(temporary, path)
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def remove_tree(path: Path) -> None:
    """Remove a folder. It is renamed first, so a partly removed folder is never taken for a complete one."""
    renamed = path.with_name(f"{TEMPORARY_PREFIX}removed-{path.name}-{uuid.uuid4().hex[:8]}")
    with _clear_errors(path):
        if path.is_symlink():  # remove the link, not its target
            _announce("unlink", path)
            path.unlink()
            return
        replace(path, renamed)
        for file in sorted(renamed.rglob("*"), reverse=True):
            _announce("unlink", file)
            file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
        renamed.rmdir()


def sweep_temporaries(folder: Path) -> list[str]:
    """Remove temporary files that a crash left in `folder`; return their names. The caller must hold its lock."""
    leftovers = sorted(folder.glob(TEMPORARY_PREFIX + "*"))
    for leftover in leftovers:
        _announce("unlink", leftover)
        with _clear_errors(leftover):
            files.remove(leftover)
    return [leftover.name for leftover in leftovers]


def remove(path: Path) -> None:
    """Remove a file, a link (not its target), or a folder with its contents (see `remove_tree`), if it exists.

    Raises:
        StorageError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
        return
    with _clear_errors(path):
        files.remove(path)


@contextmanager
def locked(path: Path, timeout_s: float = -1) -> Iterator[None]:
    """Hold a file lock, which is released when the process ends, however it ends.

    Args:
        path: the lock file, created if missing.
        timeout_s: how long to wait for another process; -1: forever.

    Raises:
        filelock.Timeout: another process holds it.
        StorageError: the path is a link or not a regular file, or cannot be created.
    """
    lock = filelock.FileLock(path)
    with _clear_errors(path):
        # filelock creates a missing file; on a disk without locks, the new file itself is the lock.
        with suppress(FileNotFoundError):
            files.require_regular(path)
        lock.acquire(timeout=timeout_s)
    try:
        yield
    finally:
        lock.release()


def require_room(folder: Path, n_bytes: int) -> None:
    """Check that there is enough disk space for a large write.

    Raises:
        StorageError: fewer than `n_bytes` are free in the file system of `folder`.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise StorageError(
            f"cannot write to {folder}: {n_bytes / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB are free; "
            "free some room and run again"
        )


def require_apart(source: Path, target: Path) -> None:
    """Check that a command does not overwrite its input.

    Raises:
        StorageError: source and target are the same file.
    """
    if source.exists() and target.exists() and source.samefile(target):
        raise StorageError(f"{target} is the input; choose another name for the output")


def make_folder(path: Path) -> Path:
    """Create a writable folder with its parents, and return it.

    Raises:
        StorageError: it cannot be created or written to.
    """
    with _clear_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f"{TEMPORARY_PREFIX}probe-{uuid.uuid4().hex[:8]}"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have removed it meanwhile
    return path


def sha256_of(
    path: Path, advance: Callable[[int], None] = lambda _: None, *, links: bool = False, within: Path | None = None
) -> str:
    """Return the SHA-256 of a file as a hex string; `advance` is called with the number of bytes of each piece.

    See `files.open_regular` for the other arguments and the errors.
    """
    digest = hashlib.sha256()
    with files.open_regular(path, links=links, within=within) as file:
        while piece := file.read(HASHED_BYTES):
            digest.update(piece)
            advance(len(piece))
    return digest.hexdigest()


def cache_folder() -> Path:
    """Folder of downloads and prepared data: `GROUNDLING_CACHE`, or `groundling` in the user's cache folder."""
    if chosen := os.environ.get("GROUNDLING_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "groundling"
