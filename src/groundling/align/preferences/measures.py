"""Gold measures: numbers between a text and a goal that a person can check by hand.

A reward model learns what raters preferred; whether it learned the right thing shows only beside a measure that
nobody trained. Two stand here, each a pure function text -> float:

- `verse`: how much of it is in lines of ten syllables, by the CMU Pronouncing Dictionary;
- `warm`: how friendly its words are, by VADER (Hutto and Gilbert 2014).

Both can be gamed, and that is of use: what a policy does to please them beyond their sense can be read.
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
    """The share of the non-empty lines that have exactly ten syllables; 0.0 when there is no such line.

    Some words can be said in more ways than one ("fire", "heaven"): a line counts when some way of saying its
    words makes ten. A line that names a speaker is a line. Digits and signs have no syllables.

    Raises:
        MissingExtraError: the package `pronouncing` is not installed.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return 0.0
    return sum(SYLLABLES_PER_LINE in possible_syllables(line) for line in lines) / len(lines)


def possible_syllables(line: str) -> frozenset[int]:
    """The numbers of syllables that a line can have; what is beyond ten is left out."""
    sums = frozenset([0])
    for word in _WORD.findall(_plain(line)):
        counts = syllables(word)
        sums = frozenset(so_far + more for so_far in sums for more in counts if so_far + more <= SYLLABLES_PER_LINE)
    return sums


def _plain(line: str) -> str:
    """Small letters without accents, and straight apostrophes."""
    decomposed = unicodedata.normalize("NFKD", line.casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


@lru_cache(maxsize=1 << 16)
def syllables(word: str) -> frozenset[int]:
    """In how many syllables a word can be said: by the dictionary, or else by `estimate`.

    The dictionary has "'tis" and "goin'", but a word may also stand in quotation marks: it is looked up as it stands,
    then without apostrophes at its ends.
    """
    dictionary = _pronouncing()
    for form in (word, word.strip("'")):
        if ways := dictionary.phones_for_word(form):
            return frozenset(dictionary.syllable_count(phones) for phones in ways)
    return frozenset([estimate(word)])


def estimate(word: str) -> int:
    """The syllables of a word that is in no dictionary: its groups of vowel letters (a e i o u y), at least one.

    An e at the end is silent, and so are "ed" and "es", except where they are needed to say the word: "table",
    "waited", "roses".
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
        ConfigError: there is none of this name.
    """
    if name in MEASURES:
        return MEASURES[name]
    raise ConfigError(f"no measure {name!r}; {near_name(name, MEASURES, 'the measures are')}")


@cache
def _pronouncing() -> Any:
    """The package, with its dictionary loaded: it fills a global as it loads, which two threads must not do at once."""
    pronouncing = optional_import("pronouncing", "align")
    with _loading:
        pronouncing.init_cmu()
    return pronouncing


@cache
def _vader() -> Any:
    """The analyser with its word list; it keeps no state between texts."""
    return optional_import("vaderSentiment.vaderSentiment", "align").SentimentIntensityAnalyzer()
