"""A crash-safe SQLite file shared by threads and processes.

Commits are durable: the write-ahead log is synced at every commit (`synchronous=FULL`). Writers wait for each other
(`BEGIN IMMEDIATE` and a busy timeout) for at most five seconds. Every error is one line that names the file.
"""

import shlex
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from groundling.data.formats import HEAD_BYTES, SQLITE, binary_format
from groundling.errors import DataError, StorageError
from groundling.storage import files

BUSY_S = 5.0
APPLICATION_ID = 0x47726E64
"""`application_id` in the file header: "Grnd"."""


class Database:
    """An open database, safe to share between threads.

    Args:
        path: the file; created if missing.
        migrations: statements that bring schema version n to n + 1; missing ones are run.
        timeout_s: timeout for locks of other processes; None: BUSY_S.

    Raises:
        DataError: the file is damaged, belongs to another program, or has a newer schema.
        StorageError: it cannot be opened or written.
    """

    def __init__(self, path: Path, migrations: Sequence[Sequence[str]], timeout_s: float | None = None) -> None:
        self.path, self._migrations = path, migrations
        self._timeout_s = BUSY_S if timeout_s is None else timeout_s
        self._lock = threading.RLock()
        with self._translated_errors():
            # `isolation_level=None`: no implicit transactions.
            self._db = sqlite3.connect(path, timeout=self._timeout_s, isolation_level=None, check_same_thread=False)
        try:
            with self._translated_errors():
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def set_timeout(self, seconds: float) -> None:
        """Change the timeout for locks of other processes."""
        with self._lock, self._translated_errors():
            self._timeout_s = seconds
            self._db.execute(f"PRAGMA busy_timeout = {max(1, round(1000 * seconds))}")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A read transaction: a consistent snapshot of the file."""
        with self._lock, self._translated_errors(), self._within("BEGIN"):
            yield self._db

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: atomic, and durable when the block ends."""
        # Lock for writing at once: upgrading a read transaction can fail without waiting.
        with self._lock, self._translated_errors(), self._within("BEGIN IMMEDIATE"):
            yield self._db

    @contextmanager
    def _within(self, begin: str) -> Iterator[None]:
        """Run the block in a transaction started with `begin`; roll back on any exception."""
        self._db.execute(begin)
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # after some errors SQLite has already rolled back
                self._db.execute("ROLLBACK")
            raise

    def _prepare(self) -> None:
        """Check the file's owner and integrity, and migrate its schema."""
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute("PRAGMA synchronous = FULL")
        with self._within("BEGIN"):
            version = self._version()
        self._switch_to_wal()
        if version < len(self._migrations):
            self._migrate()
        problem = self._value("PRAGMA quick_check(1)")
        if problem != "ok":
            raise DataError(self.damaged(str(problem)))

    def _version(self) -> int:
        """Schema version; 0 for a new file. Call within a transaction."""
        owner, version = self._value("PRAGMA application_id"), int(self._value("PRAGMA user_version"))
        is_new = owner == version == self._value("SELECT count(*) FROM sqlite_master") == 0
        if owner != APPLICATION_ID and not is_new:
            raise DataError(f"{self.path} is an SQLite file of another program; choose another path")
        if version > len(self._migrations):
            raise DataError(
                f"{self.path} has version {version} of its schema, and this groundling knows up to "
                f"{len(self._migrations)}; open it with the newer version that wrote it"
            )
        return version

    def _switch_to_wal(self) -> None:
        """Enable the write-ahead log. SQLite's busy timeout does not cover this step, so retry here."""
        deadline = time.monotonic() + self._timeout_s
        while self._value("PRAGMA journal_mode") != "wal":
            try:
                if self._value("PRAGMA journal_mode = WAL") != "wal":
                    raise StorageError(f"{self.path} cannot have a write-ahead log there; put it on a local disk")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _migrate(self) -> None:
        with self.transaction() as db:
            version = self._version()  # again, because another process may have migrated meanwhile
            for statement in (statement for migration in self._migrations[version:] for statement in migration):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {len(self._migrations)}")

    def _value(self, query: str) -> Any:
        return self._db.execute(query).fetchone()[0]

    def damaged(self, reason: str) -> str:
        """Error message for a damaged file."""
        reason = " ".join(reason.split())  # SQLite's text may have several lines
        return f"{self.path} is damaged ({reason}); restore it from a copy, or import an export into a new file"

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Convert SQLite's errors to one-line errors."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a closed file or a wrong query is a bug
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                reason = f"another program has been writing to it for {self._timeout_s:.3g} s; end it, or try again"
            elif code == sqlite3.SQLITE_NOTADB and not _begins_as_database(self.path):
                raise DataError(f"{self.path} {not_a_database(self.path)}") from error
            elif code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT) or "decode" in str(error):
                raise DataError(self.damaged(str(error))) from error
            elif code == sqlite3.SQLITE_FULL:
                reason = "the disk is full; free some room and run again"
            elif code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR):
                reason = f"{error}; choose an existing folder that you can write to"
            else:
                raise
            raise StorageError(f"cannot use {self.path}: {reason}") from error


def _head(path: Path) -> bytes:
    try:
        with files.open_regular(path, links=True) as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def _begins_as_database(path: Path) -> bool:
    return _head(path).startswith(SQLITE)


def not_a_database(path: Path) -> str:
    """Error message for a file that is not an SQLite database: its format, and what to do with it."""
    expected = "an SQLite file of rankings is expected, as groundling rank and groundling rankings make them"
    head = _head(path)
    found = binary_format(path, head)
    if found is not None:
        return f"is {found.name}; {expected}"
    text = head.decode("utf-8", "replace")
    begin = text.lstrip("\ufeff \t\r\n")
    if not begin.startswith(("{", "[")):
        return f"is not a database; {expected}"
    if '"candidates"' in text:
        command = f"groundling rankings import FILE.sqlite {shlex.quote(str(path))}"
        return f"is lines of JSON; {expected}: {command} makes one of exported ones"
    if '"chosen"' in text or '"label"' in text:
        return f"is lines of JSON; {expected}; preferences are given with --preferences"
    return f"is lines of JSON; {expected}"
