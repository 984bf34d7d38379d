"""A linear classifier of short texts for the safety filter, trained on labelled lines. Optional.

Features are character n-grams of the folded text, hashed into a fixed number of buckets and weighted by TF-IDF.
scikit-learn fits the weights.

Why not its HashingVectorizer and TfidfTransformer: a server then runs a classifier with NumPy alone, and training uses
the same features.
"""

import os
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from groundling.errors import CheckpointError, StorageError
from groundling.safety.finders import Span
from groundling.safety.rules import Rule
from groundling.safety.stream import Safety
from groundling.safety.words import folded
from groundling.storage import atomic, files
from groundling.storage.manifest import check_manifest, read_json_object, write_manifest

VERSION = 1
N_BUCKETS = 1 << 16
SHORTEST, LONGEST = 2, 5
"""Lengths of the character n-grams."""
LONGEST_SENTENCE = 400
"""Maximum characters of a sentence; a longer one is cut."""
WEIGHTS, FACTS = "weights.safetensors", "classifier.json"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Classifier:
    """Logistic regression on hashed n-grams.

    `weights` and `idf` (inverse document frequencies) have N_BUCKETS values. A text is unsafe if its
    probability is at least `threshold`.
    """

    weights: Floats
    idf: Floats
    bias: float
    threshold: float

    def probability(self, text: str) -> float:
        """Probability that a text is unsafe."""
        buckets, values = features(text, self.idf)
        return float(1 / (1 + np.exp(-(values @ self.weights[buckets] + self.bias))))

    def is_unsafe(self, text: str) -> bool:
        """Whether a text is unsafe; an empty one never is."""
        return bool(text.strip()) and self.probability(text) >= self.threshold

    def rule(self) -> Rule:
        """A rule that blocks at the first unsafe sentence."""
        reason = f"a classifier finds it unsafe (from {self.threshold:.2f} on)"
        return Rule("classifier", reason, "block", ("prompt", "reply"), "", lambda: Sentences(self))

    def save(self, folder: Path) -> None:
        """Write the classifier to a new folder.

        Raises:
            StorageError: the folder exists, or cannot be written.
        """
        if os.path.lexists(folder):
            raise StorageError(f"{folder} already exists and was not changed; choose another name")
        arrays = {"worth": self.weights, "rarity": self.idf}  # names of format 1
        facts = {"version": VERSION, "bias": self.bias, "threshold": self.threshold}
        with atomic.new_folder(folder) as temporary:
            atomic.write_bytes(temporary / WEIGHTS, safetensors.numpy.save(arrays))
            atomic.write_json(temporary / FACTS, facts)
            write_manifest(temporary, {})

    @classmethod
    def load(cls, folder: Path) -> "Classifier":
        """Read a classifier.

        Raises:
            CheckpointError: it is damaged, or has another version.
        """
        check_manifest(folder)
        facts = read_json_object(folder / FACTS)
        if facts.get("version") != VERSION:
            raise CheckpointError(
                f"{folder} is a classifier of version {facts.get('version')}, and this groundling reads {VERSION}; "
                "train it again"
            )
        try:
            with files.held(folder / WEIGHTS) as (file, _):
                arrays = safetensors.numpy.load_file(file)
            for name in ("worth", "rarity"):
                if arrays[name].dtype.kind != "f" or arrays[name].shape != (N_BUCKETS,):
                    raise ValueError(f"{name} is {arrays[name].dtype} {arrays[name].shape}")
            return cls(arrays["worth"], arrays["rarity"], float(facts["bias"]), float(facts["threshold"]))
        except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{folder} is not a valid classifier: {error}") from error


def features(text: str, idf: Floats | None = None) -> tuple[npt.NDArray[np.int64], Floats]:
    """The sparse feature vector of a text, normalised to length 1: buckets and values."""
    plain = f" {folded(text)} "
    counts = Counter(
        zlib.crc32(plain[at : at + n].encode()) % N_BUCKETS
        for n in range(SHORTEST, LONGEST + 1)
        for at in range(len(plain) - n + 1)
    )
    buckets = np.fromiter(sorted(counts), dtype=np.int64, count=len(counts))
    values = np.log1p(np.array([counts[bucket] for bucket in buckets], dtype=np.float64))
    if idf is not None:
        values *= idf[buckets]
    length = float(np.sqrt((values**2).sum()))
    return buckets, values / length if length else values


class UnsafeSentence(NamedTuple):
    """Position of an unsafe sentence."""

    start: int
    end: int


class Sentences:
    """A `Finder` that classifies whole sentences.

    A sentence ends at a full stop, question mark, exclamation mark or newline, or after LONGEST_SENTENCE characters.
    """

    _END = re.compile(r"[.!?\n]")

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._raw, self._n_seen = "", 0  # not yet classified; unredacted, unlike the text passed in
        self._begin = 0
        self._found: UnsafeSentence | None = None
        self._ended = False

    def first(self, text: str, start: int) -> Span | None:
        """See `Finder`."""
        self._take(text)
        while self._found is not None and self._found.end <= start:  # it is redacted already
            self._found = None
            self._judge()
        return None if self._found is None else Span(max(start, self._found.start), self._found.end)

    def undecided(self, text: str, start: int) -> int:
        """See `Finder`."""
        self._take(text)
        return max(start, self._begin) if self._found is None else len(text)

    def end(self, text: str) -> None:
        """See `Finder`."""
        self._take(text)
        self._ended = True
        self._judge()

    def forget(self, n: int) -> None:
        """See `Finder`."""
        self._begin -= n
        self._n_seen -= n
        if self._found is not None:
            self._found = UnsafeSentence(self._found.start - n, self._found.end - n)

    def _take(self, text: str) -> None:
        if self._n_seen < len(text):
            self._raw += text[self._n_seen :]
            self._n_seen = len(text)
            self._judge()

    def _judge(self) -> None:
        """Classify complete sentences up to the first unsafe one."""
        at = 0
        while self._found is None and at < len(self._raw):
            match = self._END.search(self._raw, at, at + LONGEST_SENTENCE)
            end = match.end() if match else at + LONGEST_SENTENCE
            if end > len(self._raw):
                if not self._ended:
                    break
                end = len(self._raw)
            if self._classifier.is_unsafe(self._raw[at:end]):
                self._found = UnsafeSentence(self._begin + at, self._begin + end)
            at = end
        self._raw, self._begin = self._raw[at:], self._begin + at


def load_safety(rules: str, classifier: Path | None) -> Safety | None:
    """Rules ("default", "off" or a TOML file) and an optional classifier; None if there are neither.

    Raises:
        ConfigError: the rules cannot be read.
        CheckpointError: the classifier cannot be read.
    """
    given = (
        Safety([]) if rules == "off" else Safety.from_file() if rules == "default" else Safety.from_file(Path(rules))
    )
    if classifier is not None:
        return given.with_rule(Classifier.load(classifier).rule())
    return None if rules == "off" else given
