"""The lecture's tokenizer: one id per character."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, get_args

import numpy as np

from groundling.errors import DataError
from groundling.text.tokenizer import Ids, StreamDecoder, Unknown, character_name, check_ids, require_unicode


class CharTokenizer:
    """The lecture's tokenizer: the vocabulary is `sorted(set(text))`.

    Args:
        symbols: known characters, ascending; the id of a character is its index.
        unknown: what to do with other characters: "error", "skip", or "replace".
        replacement: known character that replaces unknown ones.

    Raises:
        DataError: the symbols are not a valid vocabulary, or the replacement is not one of them.
    """

    kind = "char"
    special: Mapping[str, int] = MappingProxyType({})
    end_ids: tuple[int, ...] = ()

    def __init__(self, symbols: str, unknown: Unknown = "error", replacement: str | None = None) -> None:
        if not isinstance(symbols, str) or not symbols or list(symbols) != sorted(set(symbols)):
            raise DataError("the symbols of a character tokenizer must be at least one, each once, ascending")
        require_unicode(symbols)
        if unknown not in get_args(Unknown):
            raise DataError(f"unknown is {unknown!r}; it must be one of: {', '.join(get_args(Unknown))}")
        if (unknown == "replace") != (replacement is not None):
            raise DataError('a replacement is needed with unknown = "replace", and only there')
        if replacement is not None and replacement not in list(symbols):
            raise DataError(f"the replacement {replacement!r} must be one of the {len(symbols)} known characters")
        self.symbols, self.unknown, self.replacement = symbols, unknown, replacement
        self._code_points = _code_points(symbols)
        absent = -1 if replacement is None else symbols.index(replacement)
        # One more than the largest code point, for all larger ones.
        self._id_of = np.full(int(self._code_points[-1]) + 2, absent, dtype=np.int64)
        self._id_of[self._code_points] = np.arange(len(symbols))

    @classmethod
    def from_text(cls, text: str, unknown: Unknown = "error", replacement: str | None = None) -> "CharTokenizer":
        """Build the vocabulary of `text`."""
        return cls("".join(sorted(set(text))), unknown, replacement)

    @property
    def vocab_size(self) -> int:
        """Number of known characters."""
        return len(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Return an id for each character.

        Raises:
            DataError: a character is unknown, and `unknown` is "error".
        """
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> Ids:
        """Return `encode(text)` as an array, by one table lookup."""
        ids = self._id_of[np.minimum(_code_points(text), len(self._id_of) - 1)]
        absent = np.flatnonzero(ids < 0)
        if absent.size and self.unknown == "error":
            place = int(absent[0])
            name = character_name(text[place])
            raise DataError(
                f"{name} at position {place} is not among the tokenizer's {self.vocab_size} characters; "
                "leave it out, or train with --data.tokenizer.unknown skip"
            )
        return (ids[ids >= 0] if absent.size else ids).astype(np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the characters of `ids`, joined.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        return self._code_points[check_ids(ids, self.vocab_size)].astype("<u4").tobytes().decode("utf-32-le")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the characters of `ids` in UTF-8."""
        return self.decode(ids).encode("utf-8")

    def piece(self, token: int) -> str:
        """Return the character of an id."""
        known = type(token) is int and 0 <= token < len(self.symbols)
        return self.symbols[token] if known else self.decode([token])

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder; each id is a whole character."""
        return _CharStream(self)

    def to_json(self) -> dict[str, Any]:
        """Return the symbols as one string, and the handling of unknown characters."""
        return {
            "kind": self.kind,
            "symbols": self.symbols,
            "unknown": self.unknown,
            "replacement": self.replacement,
        }


class _CharStream:
    def __init__(self, tokenizer: CharTokenizer) -> None:
        self._tokenizer = tokenizer

    def push(self, token: int) -> str:
        return self._tokenizer.piece(token)

    def finish(self) -> str:
        return ""


def _code_points(text: str) -> Ids:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint32, copy=False)
