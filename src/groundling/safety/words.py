"""`words` rules: whole words and phrases, ignoring case, accents and invisible characters."""

import copy
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

from groundling.errors import require
from groundling.safety.finders import LONGEST_MATCH, Span

TRIMMED = 256
"""Folded characters to drop at a time."""


class Words:
    """Finds whole words and phrases, ignoring case, accents, width and invisible characters.

    Holds the state of one text, of which it folds each character once; see `for_another_text`.
    """

    def __init__(self, words: Sequence[str]) -> None:
        found = {folded(word).strip() for word in words}
        require(bool(found) and all(found), "words must be a list of words that are not empty")
        self._longest = max(map(len, found))
        require(
            self._longest <= LONGEST_MATCH,
            f"a word or phrase has {self._longest} characters; split it: {LONGEST_MATCH} is the most",
        )
        self._words = frozenset(found)
        self._lengths = sorted({len(word) for word in found}, reverse=True)
        self._start = re.compile(rf"(?<!\w)[{''.join(re.escape(one) for one in sorted({word[0] for word in found}))}]")
        self._beginnings = frozenset(word[:n] for word in found for n in range(1, len(word) + 1))
        self._begin()

    def for_another_text(self) -> "Words":
        """The same words with fresh state."""
        other = copy.copy(self)
        other._begin()
        return other

    def _begin(self) -> None:
        self._n_dropped, self._n_seen = 0, 0  # characters of the whole text that were dropped, and folded
        self._folded = ""
        self._places: list[int] = []  # position in the whole text of each folded character
        self._after_space = False

    def first(self, text: str, start: int) -> Span | None:
        """See `Finder`. Of words that begin at one position, the longest."""
        self._take(text)
        for match in self._start.finditer(self._folded, bisect_left(self._places, self._n_dropped + start)):
            begin = match.start()
            for length in self._lengths:
                end = begin + length
                if self._folded[begin:end] in self._words and end <= len(self._folded) and not self._is_word(end):
                    return Span(self._places[begin] - self._n_dropped, self._end(end, text))
        return None

    def _end(self, end: int, text: str) -> int:
        """End of a word in the text, including combining marks after it, and never within a character."""
        after = self._places[end] - self._n_dropped if end < len(self._places) else len(text)
        return max(after, self._places[end - 1] - self._n_dropped + 1)  # a character may fold to several

    def undecided(self, text: str, start: int) -> int:
        """See `Finder`."""
        self._take(text)
        least = self._n_dropped + start
        for n in range(min(self._longest, len(self._folded)), 0, -1):
            at = len(self._folded) - n
            if self._places[at] >= least and self._folded[at:] in self._beginnings and not self._is_word(at - 1):
                return self._places[at] - self._n_dropped
        return len(text)

    def forget(self, n: int) -> None:
        """See `Finder`."""
        self._n_dropped += n
        n_folded = bisect_left(self._places, self._n_dropped) - 1  # keep one as left context
        if n_folded >= TRIMMED:
            self._folded, self._places = self._folded[n_folded:], self._places[n_folded:]

    def hidden(self, end: int) -> None:
        """See `Finder`."""
        at = bisect_left(self._places, self._n_dropped + end)
        if at == len(self._places):
            self._after_space = True
        self._folded = " " + self._folded[at:]
        self._places = [self._n_dropped + end - 1, *self._places[at:]]

    def _is_word(self, at: int) -> bool:
        """Whether there is a folded character at this index, and it can be part of a word."""
        if not 0 <= at < len(self._folded):
            return False
        return self._folded[at].isalnum() or self._folded[at] == "_"

    def _take(self, text: str) -> None:
        """Fold new characters."""
        n_known = self._n_seen - self._n_dropped
        if n_known > len(text):  # another text
            self._begin()
            n_known = 0
        if n_known == len(text):
            return
        pieces, places, self._after_space = _folded(text[n_known:], self._n_dropped + n_known, self._after_space)
        self._folded += pieces
        self._places += places
        self._n_seen = self._n_dropped + len(text)


def folded(text: str) -> str:
    """Fold case, accents, width, invisible characters and runs of spaces."""
    return _folded(text)[0]


def _folded(text: str, first: int = 0, after_space: bool = False) -> tuple[str, list[int], bool]:
    """Fold a piece of text.

    Args:
        text: the text, or its next piece.
        first: position of its first character.
        after_space: whether the previous piece ended with a space.

    Returns:
        The folded text, the position of each of its characters, and whether it ends with a space.
    """
    pieces: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text, first):
        piece = _fold(character)
        if not piece or (piece == " " and after_space):
            continue
        after_space = piece == " "
        pieces.append(piece)
        places += [place] * len(piece)
    return "".join(pieces), places, after_space


@lru_cache(maxsize=4096)
def _fold(character: str) -> str:
    if character.isspace():
        return " "
    plain = unicodedata.normalize("NFKD", character).casefold()
    plain = unicodedata.normalize("NFKD", plain)
    return "".join(c for c in plain if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
