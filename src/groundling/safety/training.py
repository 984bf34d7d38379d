"""Train the safety classifier on labelled texts, and measure it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from groundling.data.examples.jsonl import rows
from groundling.errors import DataError
from groundling.safety.classifier import N_BUCKETS, Classifier, Floats, features
from groundling.safety.words import folded
from groundling.system.optional import optional_import

LABELS = {True: True, False: False, "unsafe": True, "ok": False}
HELD_OUT = 5
"""One text in this many is held out. Also the number of cross-validation folds."""


class Labelled(NamedTuple):
    """A text with its label."""

    text: str
    unsafe: bool


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix; unsafe is the positive class."""

    hits: int
    false_alarms: int
    misses: int
    passes: int

    @classmethod
    def of(cls, predicted: Iterable[bool], actual: Iterable[bool]) -> "Confusion":
        """Count predictions against labels."""
        pairs = Counter(zip(predicted, actual, strict=True))
        return cls(pairs[True, True], pairs[True, False], pairs[False, True], pairs[False, False])

    @property
    def precision(self) -> float:
        """Fraction of the flagged texts that are unsafe."""
        return self.hits / max(1, self.hits + self.false_alarms)

    @property
    def recall(self) -> float:
        """Fraction of the unsafe texts that are flagged."""
        return self.hits / max(1, self.hits + self.misses)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return 2 * self.hits / max(1, 2 * self.hits + self.false_alarms + self.misses)

    def to_json(self) -> dict[str, float]:
        """Counts and scores as plain data."""
        counts = {"hits": self.hits, "false_alarms": self.false_alarms, "misses": self.misses, "passes": self.passes}
        return {**counts, "precision": self.precision, "recall": self.recall, "f1": self.f1}


def read_labelled(path: Path) -> list[Labelled]:
    """Read a JSONL file of {"text": ..., "label": true | false | "unsafe" | "ok"}.

    Raises:
        DataError: it cannot be read, or a line is invalid.
    """
    found = []
    for row in rows(path):
        value: Any = row.values
        text, label = value.get("text"), value.get("label")
        if not isinstance(text, str) or not text.strip() or not isinstance(label, (bool, str)) or label not in LABELS:
            raise DataError(
                f'{row.where}: a line is {{"text": a text, "label": true, false, "unsafe" or "ok"}}, not '
                f"{json.dumps(value)[:200]}"
            )
        found.append(Labelled(text, LABELS[label]))
    return found


def split(labelled: Sequence[Labelled]) -> tuple[list[Labelled], list[Labelled]]:
    """Split into training and held-out texts by a hash of the text, so that no text is in both."""
    sides: tuple[list[Labelled], list[Labelled]] = ([], [])
    for one in labelled:
        plain = folded(one.text).strip()
        sides[int.from_bytes(hashlib.sha256(plain.encode()).digest()[:8], "big") % HELD_OUT == 0].append(one)
    return sides


def train(labelled: Sequence[Labelled], seed: int = 0) -> Classifier:
    """Train a classifier. The threshold maximises F1 in cross-validation.

    Raises:
        DataError: one label has too few texts.
        MissingExtraError: scikit-learn is not installed.
    """
    truth = np.array([one.unsafe for one in labelled])
    fewest = int(min(truth.sum(), len(truth) - truth.sum())) if len(truth) else 0
    if fewest < HELD_OUT:
        raise DataError(f"there are only {fewest} training texts of one label; at least {HELD_OUT} of each are needed")
    csr_matrix = optional_import("scipy.sparse", "safety").csr_matrix
    linear_model = optional_import("sklearn.linear_model", "safety", "scikit-learn")
    model_selection = optional_import("sklearn.model_selection", "safety", "scikit-learn")
    idf = _idf([one.text for one in labelled])
    found = [features(one.text, idf) for one in labelled]
    ends = np.cumsum([0, *(len(buckets) for buckets, _ in found)])
    parts = (np.concatenate([values for _, values in found]), np.concatenate([buckets for buckets, _ in found]), ends)
    matrix = csr_matrix(parts, shape=(len(found), N_BUCKETS))
    model = linear_model.LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000, random_state=seed)
    folds = model_selection.StratifiedKFold(HELD_OUT, shuffle=True, random_state=seed)
    unseen = model_selection.cross_val_predict(model, matrix, truth, cv=folds, method="predict_proba")[:, 1]
    model.fit(matrix, truth)
    return Classifier(
        weights=np.asarray(model.coef_[0], dtype=np.float64),
        idf=idf,
        bias=float(model.intercept_[0]),
        threshold=_best_threshold(unseen, truth),
    )


def _idf(texts: Sequence[str]) -> Floats:
    """Smoothed inverse document frequency (IDF) of each bucket."""
    n_texts = np.zeros(N_BUCKETS)
    for text in texts:
        n_texts[features(text)[0]] += 1
    idf: Floats = np.log((1 + len(texts)) / (1 + n_texts)) + 1
    return idf


def _best_threshold(probabilities: Floats, truth: npt.NDArray[np.bool_]) -> float:
    values = np.unique(probabilities)
    between = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2])
    scores = [Confusion.of((probabilities >= one).tolist(), truth.tolist()).f1 for one in between]
    return float(between[int(np.argmax(scores))])
