"""The rankings file with cached counts.

Blocks on the disk: the server calls it in a thread of its own (`store.py`).
"""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from groundling.align.preferences.database import BUSY_S
from groundling.align.preferences.judgement import SKIP, Judgement, tie_of
from groundling.align.preferences.store import Rankings
from groundling.storage import atomic
from groundling.text.chat.messages import Message

Messages = tuple[Message, ...]


@dataclass
class RankingSummary:
    """Counts of judgements."""

    judgements: int = 0
    ties: int = 0
    skips: int = 0
    pairs: int = 0
    """Preference pairs."""
    useful: int = 0
    """Judgements with at least one preference or tie."""
    prompts: "Counter[Messages]" = field(default_factory=Counter)
    """Judgements with a preference per prompt; 0: only ties or skips."""
    answered: "dict[str, Counter[Messages]]" = field(default_factory=lambda: defaultdict(Counter))
    """How often each rater has answered each prompt."""

    def add(self, judgement: Judgement) -> None:
        """Add a judgement."""
        n_pairs = preferences(judgement)
        is_tie = judgement.choice == tie_of(len(judgement.candidates))
        self.judgements += 1
        self.ties += is_tie
        self.skips += judgement.choice == SKIP
        self.pairs += n_pairs
        self.useful += judgement.choice != SKIP
        self.prompts[judgement.messages] += n_pairs > 0
        self.answered[judgement.rater][judgement.messages] += 1


def preferences(judgement: Judgement) -> int:
    """Number of preference pairs in a judgement, as in `Rankings.pairs`."""
    left, n_pairs = len(judgement.candidates), 0
    for group in judgement.choice:
        left -= len(group)
        n_pairs += len(group) * left
    return n_pairs


class RankingCache:
    """The rankings with their counts. Thread-safe.

    Args:
        path: the file; it and its folder are created with the first judgement.

    Each method raises DataError or StorageError as `Rankings` does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._rankings: Rankings | None = None
        self._timeout_s = BUSY_S
        self._summary = RankingSummary()
        self._counted_stamp: tuple[object, ...] | None = None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._rankings is not None:
                self._rankings.close()
                self._rankings = None

    def set_timeout(self, seconds: float) -> None:
        """Set the timeout for locks of other processes."""
        self._timeout_s = seconds
        if self._rankings is not None:
            self._rankings.set_timeout(seconds)

    def get(self, key: str) -> Judgement | None:
        """The judgement of this key."""
        rankings = self._open_if_exists()
        return None if rankings is None else rankings.get(key)

    def keep(self, judgement: Judgement) -> Judgement:
        """Store a judgement on disk, unless its key exists; return the judgement stored under its key."""
        if self._open_if_exists() is None:
            atomic.make_folder(self.path.parent)
        rankings = self._open()
        with self._lock:
            summary = self._current()
            if rankings.add(judgement):
                summary.add(judgement)
                self._counted_stamp = self._file_stamp()
                return judgement
        kept = rankings.get(judgement.key)
        assert kept is not None
        return kept

    def counts(self, rater: str | None) -> tuple[dict[str, int], int]:
        """Counts for the page, and the number of prompts with a preference."""
        self._open_if_exists()
        with self._lock:
            summary = self._current()
            found = {name: getattr(summary, name) for name in ("judgements", "ties", "skips", "pairs", "useful")}
            found |= {"raters": len(summary.answered), "prompts": len(summary.prompts)}
            if rater is not None:
                found["by_you"] = summary.answered[rater].total() if rater in summary.answered else 0
            return found, sum(n > 0 for n in summary.prompts.values())

    def answered(self, rater: str) -> "Counter[Messages]":
        """How often a rater has answered each prompt."""
        self._open_if_exists()
        with self._lock:
            found = self._current().answered
            return Counter(found[rater]) if rater in found else Counter()

    def __iter__(self) -> Iterator[Judgement]:
        """All judgements in insertion order."""
        return iter(self._open_if_exists() or ())

    def after(self, last: int) -> list[tuple[int, Judgement]]:
        """The next few hundred numbered judgements after this number; [] at the end."""
        rankings = self._open_if_exists()
        return [] if rankings is None else rankings.after(last)

    def _open_if_exists(self) -> Rankings | None:
        """The open file, if it exists."""
        return self._open() if self._rankings is not None or self.path.exists() else None

    def _open(self) -> Rankings:
        with self._lock:
            if self._rankings is None:
                self._rankings = Rankings(self.path, timeout_s=self._timeout_s)
            return self._rankings

    def _current(self) -> RankingSummary:
        """The counts, updated if another process has written."""
        stamp = self._file_stamp()
        if self._rankings is not None and stamp != self._counted_stamp:
            self._summary = RankingSummary()
            for judgement in self._rankings:
                self._summary.add(judgement)
            self._counted_stamp = stamp
        return self._summary

    def _file_stamp(self) -> tuple[object, ...]:
        """Changes when the file or its write-ahead log is written to."""
        found: list[object] = []
        for path in (self.path, Path(f"{self.path}-wal")):
            try:
                facts = path.stat()
                found += [facts.st_size, facts.st_mtime_ns]
            except FileNotFoundError:
                found.append(None)
        return tuple(found)
