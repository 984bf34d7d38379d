"""The `Tokenizer` protocol, and checks that all tokenizers share.

A tokenizer turns text into ids and ids into text. Pieces of all but the characters' tokenizer are bytes, so a
piece may end in the middle of a character; `StreamDecoder` holds such an end back until the rest arrives.
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
    """Decodes ids one by one: the pieces it returns, joined, are what `decode` gives for all the ids."""

    def push(self, token: int) -> str:
        """Take one id; return the text that is certain by now, often one piece, sometimes nothing."""
        ...

    def finish(self) -> str:
        """Return what was held back, and be ready for new ids."""
        ...


class Tokenizer(Protocol):
    """Text to ids and back. Ids are 0 to `vocab_size` - 1."""

    @property
    def kind(self) -> str:
        """Which tokenizer this is, for `tokenizer.json`: char, gpt2, bpe, unigram or sp_bpe."""
        ...

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        ...

    @property
    def special(self) -> Mapping[str, int]:
        """Special tokens: name to id. No text gives such an id, and no such id gives text."""
        ...

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Special tokens that end a text: generation stops there."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. All of it is ordinary text, also what looks like a special token.

        Raises:
            DataError: `text` holds something that this tokenizer cannot say.
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
        """Return the bytes of `ids`, which need not end at a character's end. Raises as `decode` does."""
        ...

    def piece(self, token: int) -> str:
        """Return one id as text for a reader: a special token's name; bytes that are no text as `<E2>`."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """Return a new decoder for ids that arrive one by one."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return all that `tokenizer_from_json` needs to build an equal tokenizer."""
        ...


class TextDecoder:
    """A `StreamDecoder` that passes over ids outside the tokenizer's vocabulary: a chat template's, or padding."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder, self._n_known = tokenizer.stream_decoder(), tokenizer.vocab_size

    def push(self, token: int) -> str:
        """Take one id; return the text that is certain by now."""
        return self._decoder.push(token) if token < self._n_known else ""

    def finish(self) -> str:
        """Return what was held back, and be ready for new ids."""
        return self._decoder.finish()


def check_ids(ids: Iterable[int], vocab_size: int) -> npt.NDArray[np.int64]:
    """Return `ids` as an array, all of them inside the vocabulary.

    Raises:
        DataError: an id is outside, as those of a model whose vocabulary is padded can be.
    """
    array = np.asarray(ids if isinstance(ids, (list, tuple, np.ndarray)) else list(ids))
    if array.size and array.dtype.kind not in "iu":
        raise DataError(f"token ids have to be integers, not {array.dtype}")
    outside = np.flatnonzero((array < 0) | (array >= vocab_size))
    if outside.size:
        raise DataError(
            f"token id {array[outside[0]]} (number {outside[0]}) is outside the tokenizer's vocabulary of "
            f"{vocab_size:,}; only ids 0 to {vocab_size - 1:,} mean something, so mask the others before sampling"
        )
    return array.astype(np.int64)


def require_unicode(text: str) -> None:
    """Check that `text` can be written as UTF-8.

    Raises:
        DataError: it holds half of a surrogate pair, as undecodable bytes on a command line give.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{character_name(text[error.start])} at position {error.start} is not a Unicode character; "
            "the text was not read as UTF-8, so look at where it comes from"
        ) from None


def character_name(character: str) -> str:
    """Return a character for an error: as it is, and by its number."""
    shown = f"{character!r} " if character.isprintable() else ""
    return f"the character {shown}(U+{ord(character):04X})"
