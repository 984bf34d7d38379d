"""The curves of a run from its metrics.jsonl: what has come since the last look, in bounded memory.

A file that is read in pieces gives the rows of the whole. A last line without its end waits. Whether it is still the
file of the last look follows from what is in it: a run that is resumed or begun anew replaces its file.
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
"""Read for one answer; the rest is for the next."""
MAX_POINTS = 2000
"""Of a series in one answer."""
MAX_SERIES = 200
MAX_SAMPLES = 20
MAX_SAMPLE = 4000
MARKED = 256

Point = tuple[int, float, float]
"""(number of the value, step, value)"""


class Bin(NamedTuple):
    """Values of a series that follow each other."""

    low: Point
    high: Point
    last_step: float
    total: float
    n: int

    def joined(self, later: "Bin") -> "Bin":
        """This one and the one after it."""
        low = self.low if self.low[2] <= later.low[2] else later.low
        high = self.high if self.high[2] >= later.high[2] else later.high
        return Bin(low, high, later.last_step, self.total + later.total, self.n + later.n)


class DownsampledSeries:
    """A series that keeps its shape in a bounded number of points: of a stretch, the lowest and the highest value.

    Those are for the eye; who goes on to reckon with them takes the means.
    """

    def __init__(self, most: int = MAX_POINTS) -> None:
        self._most, self._stride, self._n = most, 1, 0
        self._stretches: list[Bin] = []
        self._last: Point | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every value is there by itself."""
        return self._stride == 1

    def add(self, step: float, value: float) -> None:
        """Take the next value."""
        point = self._last = (self._n, step, value)
        one = Bin(point, point, step, value, 1)
        if self._n % self._stride == 0:
            self._stretches.append(one)
        else:
            self._stretches[-1] = self._stretches[-1].joined(one)
        self._n += 1
        while len(self._stretches) > (self._most - 1) // (1 if self._stride == 1 else 2):
            pairs = [self._stretches[i : i + 2] for i in range(0, len(self._stretches), 2)]
            self._stretches = [pair[0].joined(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
            self._stride *= 2

    def points(self) -> tuple[list[float], list[float]]:
        """Steps and values in the order of their coming; the newest is always there."""
        found = {point for stretch in self._stretches for point in (stretch.low, stretch.high)}
        if self._last is not None:
            found.add(self._last)
        ordered = sorted(found)
        return [step for _, step, _ in ordered], [value for _, _, value in ordered]

    def means(self) -> tuple[list[float], list[float], list[int]]:
        """Of each stretch its last step, its mean, and how many values it has."""
        rows = [(stretch.last_step, stretch.total / stretch.n, stretch.n) for stretch in self._stretches]
        return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


@dataclass
class MetricsDelta:
    """What a file has had since the last look."""

    after: int
    """Where to go on."""
    mark: str = ""
    """Tells whether the file is still the one that was read up to there."""
    restarted: bool = False
    """The file is another one; this is from its beginning."""
    more: bool = False
    """There is more already."""
    n_rows: int = 0
    n_not_finite: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)
    series: dict[str, DownsampledSeries] = field(default_factory=dict)

    def points(self) -> dict[str, tuple[list[float], list[float]]]:
        """Each series as steps and values."""
        return {name: thinned.points() for name, thinned in self.series.items()}

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
    """Whether it is a number that JSON can hold, and a screen."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def is_name(text: str) -> bool:
    """Whether it can be the name of a series: short, and no half of a surrogate pair, which cannot be sent."""
    return len(text) <= 100 and printable(text, 100) == text


def printable(value: Any, most: int) -> str:
    """The beginning of what a file says, as text that can be sent: half of a surrogate pair is a question mark."""
    return str(value)[:most].encode("utf-8", "replace").decode()


def read_news(path: Path, after: int, mark: str | None = None, most_bytes: int = MAX_BYTES) -> MetricsDelta:
    """What has come to a file of records after the byte `after`.

    Args:
        path: the file; if it is not there, it has no rows.
        after: where the last look ended; 0: from the beginning.
        mark: of the last look; None: only a file that is too short is another one.
        most_bytes: to read at once.
    """
    try:
        file = files.open_regular(path)
    except OSError:  # not there, a link, a pipe, not ours to read
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
    """What is at the beginning of a file, and just before a place in it, in short."""
    digest = hashlib.sha256()
    for start in (0, max(0, after - MARKED)):
        file.seek(start)
        digest.update(file.read(min(MARKED, after - start)))
    return digest.hexdigest()[:16]


def last_values(path: Path, tail_bytes: int = 65_536) -> dict[str, float]:
    """The newest value of each series near the end of a file, and the newest step."""
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
