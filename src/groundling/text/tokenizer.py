"""The `Tokenizer` protocol, and checks shared by all tokenizers.

A tokenizer maps text to ids and back. Except for the character tokenizer, pieces are bytes, so a piece may end inside a
character; `StreamDecoder` holds the incomplete character back until the rest arrives.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from groundling.errors import DataError

Ids = npt.NDArray[np.uint32]
Unknown = Literal["error", "skip", "replace"]
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class StreamDecoder(Protocol):
    """Decodes ids one by one; the concatenated output equals `decode` of all ids."""

    def push(self, token: int) -> str:
        """Add one id; return the text that is complete, often one piece, sometimes ""."""
        ...

    def finish(self) -> str:
        """Return the text held back, and reset."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back. Ids are 0 to `vocab_size` - 1."""

    @property
    def kind(self) -> str:
        """Kind of tokenizer in `tokenizer.json`: char, gpt2, bpe, unigram or sp_bpe."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    @property
    def special(self) -> Mapping[str, int]:
        """Special tokens: name to id. No text gives such an id, and no such id gives text."""
        ...

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Special tokens that end a text and stop generation."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. The spelling of a special token is encoded as ordinary text.

        Raises:
            DataError: `text` has something that this tokenizer cannot encode.
        """
        ...

    def encode_array(self, text: str) -> Ids:
        """Return `encode(text)` as an array, faster. Raises the same errors."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, without special tokens; bytes that are not UTF-8 become U+FFFD.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of `ids`, which may end inside a character. Raises as `decode` does."""
        ...

    def piece(self, token: int) -> str:
        """Return one id as readable text: a special token's name; bytes that are not text as `<E2>`."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """Return a new decoder for ids that arrive one by one."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the data from which `tokenizer_from_json` builds an equal tokenizer."""
        ...


class TextDecoder:
    """A `StreamDecoder` that ignores ids outside the vocabulary, such as role tokens or padding."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder, self._n_known = tokenizer.stream_decoder(), tokenizer.vocab_size

    def push(self, token: int) -> str:
        """Add one id; return the text that is complete."""
        return self._decoder.push(token) if token < self._n_known else ""

    def finish(self) -> str:
        """Return the text held back, and reset."""
        return self._decoder.finish()


def check_ids(ids: Iterable[int], vocab_size: int) -> npt.NDArray[np.int64]:
    """Return `ids` as an array, checked against the vocabulary.

    Raises:
        DataError: an id is outside the vocabulary, which a model with a padded vocabulary can produce.
    """
    array = np.asarray(ids if isinstance(ids, (list, tuple, np.ndarray)) else list(ids))
    if array.size and array.dtype.kind not in "iu":
        raise DataError(f"token ids must be integers, not {array.dtype}")
    outside = np.flatnonzero((array < 0) | (array >= vocab_size))
    if outside.size:
        raise DataError(
            f"token id {array[outside[0]]} (number {outside[0]}) is outside the tokenizer's vocabulary of "
            f"{vocab_size:,}; only ids 0 to {vocab_size - 1:,} have text, so mask the others before sampling"
        )
    return array.astype(np.int64)


def require_unicode(text: str) -> None:
    """Check that `text` can be encoded as UTF-8.

    Raises:
        DataError: it has a lone surrogate, as undecodable bytes on a command line give.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{character_name(text[error.start])} at position {error.start} is not a Unicode character; "
            "the text was not decoded as UTF-8; check where it comes from"
        ) from None


def character_name(character: str) -> str:
    """Format a character for an error message, with its code point."""
    shown = f"{character!r} " if character.isprintable() else ""
    return f"the character {shown}(U+{ord(character):04X})"
