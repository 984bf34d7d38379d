"""The store of judgements: tables of a file of rankings, JSONL export and import.

A judgement is on disk when `add` returns (see `database.py`). Keys are unique, so a duplicate is stored once. Rows are
added, never changed.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from groundling.align.preferences.database import Database
from groundling.align.preferences.judgement import Comparison, Judgement, judgement_from_json
from groundling.data.examples.jsonl import rows
from groundling.errors import DataError
from groundling.storage import atomic

ROWS_AT_ONCE = 200

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE prompts (id INTEGER PRIMARY KEY, messages TEXT NOT NULL UNIQUE)",
        """CREATE TABLE judgements (
            id INTEGER PRIMARY KEY,
            key TEXT NOT NULL UNIQUE,
            prompt INTEGER NOT NULL REFERENCES prompts (id),
            shown TEXT NOT NULL,
            choice TEXT NOT NULL,
            rater TEXT NOT NULL,
            time TEXT NOT NULL
        )""",
        """CREATE TABLE candidates (
            judgement INTEGER NOT NULL REFERENCES judgements (id),
            number INTEGER NOT NULL,
            text TEXT NOT NULL,
            model TEXT NOT NULL,
            seed INTEGER,
            PRIMARY KEY (judgement, number)
        ) WITHOUT ROWID""",
    ),
)
"""Statements that bring schema version n to n + 1. Never change a released one; append a new version."""


class StoreCounts(NamedTuple):
    """Counts of a store."""

    judgements: int
    ties: int
    """Judgements that tie all candidates."""
    skips: int
    raters: int
    prompts: int


class Imported(NamedTuple):
    """Counts of an import."""

    added: int
    present: int
    """Already in the store."""
    different: int
    """Of those, judgements that differ from the stored ones, which were kept."""


class Rankings:
    """A file of judgements, safe to share between threads and processes.

    Args:
        path: the file; created if missing.
        must_exist: raise DataError if the file is missing.
        timeout_s: timeout for locks of other processes; None: BUSY_S.

    Raises:
        DataError: the file is damaged, is not a file of rankings, or has a newer version.
        StorageError: it cannot be opened or written.
    """

    def __init__(self, path: Path | str, *, must_exist: bool = False, timeout_s: float | None = None) -> None:
        self.path = Path(path)
        if must_exist and not self.path.is_file():
            raise DataError(f"there are no rankings at {self.path}; `groundling rank` collects some")
        self._file = Database(self.path, MIGRATIONS, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def set_timeout(self, seconds: float) -> None:
        """Change the timeout for locks of other processes."""
        self._file.set_timeout(seconds)

    def add(self, judgement: Judgement) -> bool:
        """Store a judgement durably; return False, without a change, if its key exists.

        Raises:
            DataError, StorageError: as for the class.
        """
        return self.add_all([judgement]) == 1

    def add_all(self, judgements: Iterable[Judgement]) -> int:
        """Store all or, on an error, none; return how many had new keys."""
        ready = list(judgements)  # evaluate before locking the file
        with self._file.transaction() as db:
            return sum(_insert(db, judgement) for judgement in ready)

    def get(self, key: str) -> Judgement | None:
        """The judgement with this key, or None."""
        found = self._read("j.key = ?", key, 1)
        return found[0][1] if found else None

    def __contains__(self, key: str) -> bool:
        with self._file.reading() as db:
            return db.execute("SELECT 1 FROM judgements WHERE key = ?", (key,)).fetchone() is not None

    def __iter__(self) -> Iterator[Judgement]:
        """All judgements in order of insertion, safe under concurrent writes."""
        last = 0
        while rows := self.after(last):
            yield from (judgement for _, judgement in rows)
            last = rows[-1][0]

    def after(self, last: int) -> list[tuple[int, Judgement]]:
        """The next judgements after row number `last`, with their numbers; at most ROWS_AT_ONCE."""
        return self._read("j.id > ?", last, ROWS_AT_ONCE)

    def pairs(self) -> Iterator[Comparison]:
        """All stated preferences, without ties."""
        return (comparison for judgement in self for comparison in judgement.comparisons() if not comparison.tie)

    def counts(self) -> StoreCounts:
        """Count judgements, raters and prompts."""
        judgements, ties, skips, raters, prompts = 0, 0, 0, set(), set()
        for judgement in self:
            judgements += 1
            ties += [len(group) for group in judgement.choice] == [len(judgement.candidates)]
            skips += not judgement.choice
            raters.add(judgement.rater)
            prompts.add(judgement.messages)
        return StoreCounts(judgements, ties, skips, len(raters), len(prompts))

    def export_jsonl(self, path: Path) -> int:
        """Write all judgements to a JSONL file, atomically; return how many.

        Raises:
            StorageError: the file cannot be written.
        """
        n_rows = 0
        with atomic.open_atomic(path) as file:
            for judgement in self:
                file.write((json.dumps(judgement.to_json(), ensure_ascii=False) + "\n").encode())
                n_rows += 1
        return n_rows

    def import_jsonl(self, path: Path) -> Imported:
        """Add the judgements of an exported JSONL file: all, or none if a line is invalid.

        Raises:
            DataError: the file cannot be read, or a line is invalid; the message names file and line.
        """
        judgements = [judgement_from_json(row.values, row.where) for row in rows(path, may_be_empty=True)]
        added = self.add_all(judgements)
        differing = sum(self.get(judgement.key) != judgement for judgement in judgements)
        return Imported(added, len(judgements) - added, differing)

    def _read(self, condition: str, value: int | str, limit: int) -> list[tuple[int, Judgement]]:
        """Judgements with their row numbers, in order."""
        query = f"""
            SELECT j.id, j.key, p.messages, j.shown, j.choice, j.rater, j.time
            FROM judgements j JOIN prompts p ON p.id = j.prompt WHERE {condition} ORDER BY j.id LIMIT {limit}"""
        with self._file.reading() as db:
            rows = db.execute(query, (value,)).fetchall()
            candidates: dict[int, list[dict[str, Any]]] = {row[0]: [] for row in rows}
            span = (rows[0][0], rows[-1][0]) if rows else (0, 0)
            for number, text, model, seed in db.execute(
                "SELECT judgement, text, model, seed FROM candidates WHERE judgement BETWEEN ? AND ? "
                "ORDER BY judgement, number",
                span,
            ):
                candidates[number].append({"text": text, "model": model, "seed": seed})
        return [(row[0], self._judgement(row, candidates[row[0]])) for row in rows]

    def _judgement(self, row: tuple[Any, ...], candidates: list[dict[str, Any]]) -> Judgement:
        number, key, messages, shown, choice, rater, when = row
        try:
            parts = [json.loads(part) for part in (messages, shown, choice)]
            named = dict(zip(("messages", "shown", "choice"), parts, strict=True))
            values = {"key": key, "candidates": candidates, "rater": rater, "time": when, **named}
            return judgement_from_json(values, f"row {number}")
        except ValueError as error:  # from json, or a DataError
            raise DataError(self._file.damaged(str(error))) from error


def _insert(db: sqlite3.Connection, judgement: Judgement) -> bool:
    """Insert a judgement unless its key exists; return whether it was inserted."""
    row = judgement.to_json()
    if db.execute("SELECT 1 FROM judgements WHERE key = ?", (judgement.key,)).fetchone():
        return False
    messages = (json.dumps(row["messages"], ensure_ascii=False),)
    db.execute("INSERT INTO prompts (messages) VALUES (?) ON CONFLICT DO NOTHING", messages)
    (prompt,) = db.execute("SELECT id FROM prompts WHERE messages = ?", messages).fetchone()
    values = (judgement.key, prompt, json.dumps(row["shown"]), json.dumps(row["choice"]), judgement.rater)
    cursor = db.execute(
        "INSERT INTO judgements (key, prompt, shown, choice, rater, time) VALUES (?, ?, ?, ?, ?, ?)",
        (*values, judgement.time),
    )
    db.executemany(
        "INSERT INTO candidates (judgement, number, text, model, seed) VALUES (?, ?, ?, ?, ?)",
        [(cursor.lastrowid, number, c.text, c.model, c.seed) for number, c in enumerate(judgement.candidates)],
    )
    return True
