"""Gold measures: scores of a text that a person can check by hand, to evaluate reward models and policies by.

Each is a pure function of the text:

- `verse`: fraction of lines with ten syllables, by the CMU Pronouncing Dictionary;
- `warm`: friendliness, by VADER (Hutto and Gilbert 2014).

Both can be gamed, on purpose: over-optimisation shows in the text.
"""

import re
import threading
import unicodedata
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from groundling.errors import ConfigError, near_name
from groundling.system.optional import optional_import

Measure = Callable[[str], float]

SYLLABLES_PER_LINE = 10
_WORD = re.compile(r"'?[^\W\d_]+(?:'[^\W\d_]+)*'?")
_VOWELS = re.compile(r"[aeiouy]+")
_SILENT_END = re.compile(r"(?<![aeiouy])(?<!l)e$|(?<![aeiouytd])ed$|(?<![aeiouyszxlcg])(?<![cs]h)es$")
_loading = threading.Lock()


def verse(text: str) -> float:
    """Fraction of the non-empty lines that have exactly ten syllables; 0.0 for a text without lines.

    Some words have several pronunciations ("fire", "heaven"): a line counts if any combination makes ten. Lines that
    name a speaker count too. Digits and punctuation have no syllables.

    Raises:
        MissingExtraError: the package `pronouncing` is not installed.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return 0.0
    return sum(SYLLABLES_PER_LINE in possible_syllables(line) for line in lines) / len(lines)


def possible_syllables(line: str) -> frozenset[int]:
    """Possible syllable counts of a line, up to ten."""
    sums = frozenset([0])
    for word in _WORD.findall(_plain(line)):
        counts = syllables(word)
        sums = frozenset(so_far + more for so_far in sums for more in counts if so_far + more <= SYLLABLES_PER_LINE)
    return sums


def _plain(line: str) -> str:
    """Lower-case letters without accents, straight apostrophes."""
    decomposed = unicodedata.normalize("NFKD", line.casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


@lru_cache(maxsize=1 << 16)
def syllables(word: str) -> frozenset[int]:
    """Possible syllable counts of a word, by the dictionary, else by `estimate`.

    Apostrophes at the ends may belong to the word ("'tis", "goin'") or be quotation marks: look it up with them first,
    then without.
    """
    dictionary = _pronouncing()
    for form in (word, word.strip("'")):
        if ways := dictionary.phones_for_word(form):
            return frozenset(dictionary.syllable_count(phones) for phones in ways)
    return frozenset([estimate(word)])


def estimate(word: str) -> int:
    """Estimate syllables by groups of vowel letters (a e i o u y), at least one.

    A final e, "ed" and "es" are silent except where pronounced: "table", "waited", "roses".
    """
    letters = word.replace("'", "")
    return max(1, len(_VOWELS.findall(_SILENT_END.sub("", letters))))


def warm(text: str) -> float:
    """VADER's compound score: -1 hostile, 0 neither (as for an empty text), 1 friendly.

    Raises:
        MissingExtraError: the package `vaderSentiment` is not installed.
    """
    return float(_vader().polarity_scores(text)["compound"]) if text.strip() else 0.0


MEASURES: dict[str, Measure] = {"verse": verse, "warm": warm}


def measure_by_name(name: str) -> Measure:
    """Return a gold measure.

    Raises:
        ConfigError: there is no measure of this name.
    """
    if name in MEASURES:
        return MEASURES[name]
    raise ConfigError(f"no measure {name!r}; {near_name(name, MEASURES, 'the measures are')}")


@cache
def _pronouncing() -> Any:
    """The package with its dictionary loaded, under a lock: it fills a global variable."""
    pronouncing = optional_import("pronouncing", "align")
    with _loading:
        pronouncing.init_cmu()
    return pronouncing


@cache
def _vader() -> Any:
    """The analyser with its lexicon; it is stateless between texts."""
    return optional_import("vaderSentiment.vaderSentiment", "align").SentimentIntensityAnalyzer()
