"""Curves of a run, read incrementally from its metrics.jsonl in bounded memory.

Reading in parts yields the same rows as reading at once; an incomplete last line waits. A checksum tells whether the
file is still the same: a resumed or restarted run replaces it.
"""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from groundling.storage import files
from groundling.system.logs import Record
from groundling.system.metrics import RecordReader

MAX_BYTES = 32 << 20
"""Bytes to read for one response."""
MAX_POINTS = 2000
"""Points of a series in one response."""
MAX_SERIES = 200
MAX_SAMPLES = 20
MAX_SAMPLE = 4000
MARKED = 256

Point = tuple[int, float, float]
"""(index of the value, step, value)"""


class Bin(NamedTuple):
    """Consecutive values of a series."""

    low: Point
    high: Point
    last_step: float
    total: float
    n: int

    def joined(self, later: "Bin") -> "Bin":
        """Merge with the next bin."""
        low = self.low if self.low[2] <= later.low[2] else later.low
        high = self.high if self.high[2] >= later.high[2] else later.high
        return Bin(low, high, later.last_step, self.total + later.total, self.n + later.n)


class DownsampledSeries:
    """A series in a bounded number of points: the minimum and maximum of each bin.

    Min/max are for plotting; use the means for arithmetic.
    """

    def __init__(self, most: int = MAX_POINTS) -> None:
        self._most, self._stride, self._n = most, 1, 0
        self._bins: list[Bin] = []
        self._last: Point | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every value is still a point of its own."""
        return self._stride == 1

    def add(self, step: float, value: float) -> None:
        """Add the next value."""
        point = self._last = (self._n, step, value)
        one = Bin(point, point, step, value, 1)
        if self._n % self._stride == 0:
            self._bins.append(one)
        else:
            self._bins[-1] = self._bins[-1].joined(one)
        self._n += 1
        while len(self._bins) > (self._most - 1) // (1 if self._stride == 1 else 2):
            pairs = [self._bins[i : i + 2] for i in range(0, len(self._bins), 2)]
            self._bins = [pair[0].joined(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
            self._stride *= 2

    def points(self) -> tuple[list[float], list[float]]:
        """Steps and values in order; the newest is always included."""
        found = {point for bin_ in self._bins for point in (bin_.low, bin_.high)}
        if self._last is not None:
            found.add(self._last)
        ordered = sorted(found)
        return [step for _, step, _ in ordered], [value for _, _, value in ordered]

    def means(self) -> tuple[list[float], list[float], list[int]]:
        """Last step, mean and number of values of each bin."""
        rows = [(bin_.last_step, bin_.total / bin_.n, bin_.n) for bin_ in self._bins]
        return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


@dataclass
class MetricsDelta:
    """New records of a file."""

    after: int
    """Byte to continue at."""
    mark: str = ""
    """Identifies the file read up to there."""
    restarted: bool = False
    """The file was replaced; this is from its beginning."""
    more: bool = False
    """More can be read now."""
    n_rows: int = 0
    n_not_finite: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)
    series: dict[str, DownsampledSeries] = field(default_factory=dict)

    def points(self) -> dict[str, tuple[list[float], list[float]]]:
        """Each series as steps and values."""
        return {name: series.points() for name, series in self.series.items()}

    def take(self, row: Record) -> None:
        """Take one record; only numbers that a page can show become points."""
        step = row["step"]
        self.n_rows += 1
        for name, value in row.items():
            if name == "sample" and isinstance(value, str):
                self.samples = [*self.samples, {"step": step, "text": printable(value, MAX_SAMPLE)}][-MAX_SAMPLES:]
            elif isinstance(value, float) and not math.isfinite(value):
                self.n_not_finite += 1
            elif name != "step" and is_number(value) and is_name(name):
                if name not in self.series:
                    if len(self.series) >= MAX_SERIES:
                        continue
                    self.series[name] = DownsampledSeries()
                self.series[name].add(step, value)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def is_name(text: str) -> bool:
    """Whether a text can name a series: short, and valid Unicode."""
    return len(text) <= 100 and printable(text, 100) == text


def printable(value: Any, most: int) -> str:
    """The beginning of a value as valid Unicode; lone surrogates become question marks."""
    return str(value)[:most].encode("utf-8", "replace").decode()


def read_delta(path: Path, after: int, mark: str | None = None, most_bytes: int = MAX_BYTES) -> MetricsDelta:
    """Read the records of a file after the byte `after`.

    Args:
        path: the file; a missing file has no records.
        after: where the last read ended; 0: the beginning.
        mark: of the last read; None: only a file shorter than `after` counts as replaced.
        most_bytes: to read at once.
    """
    try:
        file = files.open_regular(path)
    except OSError:  # missing, a link, a pipe, or not readable
        return MetricsDelta(0, restarted=after > 0)
    with file:
        size = file.seek(0, 2)
        same = after <= size and (mark is None or after == 0 or mark == _mark(file, after))
        delta = MetricsDelta(after if same else 0, restarted=not same)
        limit = min(size, delta.after + most_bytes)
        reader = RecordReader(file, delta.after)
        for row in reader.read(limit):
            delta.take(row)
        delta.after, delta.more = reader.position, reader.position < size and limit < size
        delta.mark = _mark(file, delta.after)
    return delta


def _mark(file: BinaryIO, after: int) -> str:
    """Checksum of the beginning of a file and of the bytes before a position."""
    digest = hashlib.sha256()
    for start in (0, max(0, after - MARKED)):
        file.seek(start)
        digest.update(file.read(min(MARKED, after - start)))
    return digest.hexdigest()[:16]


def last_values(path: Path, tail_bytes: int = 65_536) -> dict[str, float]:
    """The newest value of each series, and the newest step, near the end of a file."""
    found: dict[str, float] = {}
    try:
        with files.open_regular(path) as file:
            size = file.seek(0, 2)
            start = max(0, size - tail_bytes)
            if start:
                file.seek(start)
                start += len(file.readline(tail_bytes))  # the rest of a line that begins before
            for row in RecordReader(file, start).read(size):
                found.update({name: value for name, value in row.items() if is_number(value) and is_name(name)})
    except OSError:  # removed in the meantime
        return {}
    return found
