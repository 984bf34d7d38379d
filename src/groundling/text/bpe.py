"""Byte-level BPE, by Hugging Face `tokenizers`.

The library only encodes; decoding goes through a table of bytes (`BytePieces`), which all byte-level tokenizers share.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from groundling.errors import DataError
from groundling.system.optional import optional_import
from groundling.text import trainers
from groundling.text.byte_pieces import BytePieces
from groundling.text.chunking import parts
from groundling.text.tokenizer import Ids, require_unicode


@cache
def byte_alphabet() -> dict[str, int]:
    """The printable character for each byte in GPT-2's and Hugging Face's files -> the byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def from_alphabet(piece: str) -> bytes:
    """Return the bytes of a piece."""
    alphabet = byte_alphabet()
    return bytes(alphabet[character] for character in piece)


class AddedToken(NamedTuple):
    """A token added to the vocabulary of merges; no text gives its id."""

    content: str
    id: int
    special: bool
    """Whether it is a special token, which gives no text."""

    @classmethod
    def from_json(cls, values: Any) -> "AddedToken":
        """Read an entry of a `tokenizer.json`. Raises KeyError or TypeError if it is invalid."""
        content, id, special = values["content"], values["id"], values["special"]
        if type(content) is not str or type(id) is not int or type(special) is not bool or not content:
            raise TypeError(f"an added token has a content, an id, and special true or false, not {values!r}")
        return cls(content, id, special)


class BPETokenizer(BytePieces):
    """Byte-level BPE by Hugging Face `tokenizers`; encodes any text without loss.

    Args:
        serialized: the library's JSON; tokens added there are matched in texts.
        added: tokens beside that vocabulary.
        end_ids: special tokens among them that end a text.

    Raises:
        DataError: this is not a byte-level BPE of that library, or `added` does not fit it.
        MissingExtraError: tokenizers is not installed.
    """

    kind = "bpe"
    PARTS_AT_ONCE = 16
    """Size of a parallel batch; larger batches only delay Ctrl-C."""

    def __init__(self, serialized: str, added: Sequence[AddedToken] = (), end_ids: Sequence[int] = ()) -> None:
        library = _tokenizers()
        try:
            self._library = library.Tokenizer.from_str(serialized)
            words = {id: token.content for id, token in self._library.get_added_tokens_decoder().items()}
            pieces = {
                id: words[id].encode() if id in words else from_alphabet(piece)
                for piece, id in self._library.get_vocab().items()
            }
        except Exception as error:  # the library raises Exception itself
            raise DataError(f"this bpe tokenizer cannot be read: {error}") from error
        self.added = tuple(sorted(added, key=lambda token: token.id))
        n_pieces = len(pieces) + len(self.added)
        pieces |= {token.id: token.content.encode() for token in self.added}
        if sorted(pieces) != list(range(n_pieces)):
            raise DataError("this bpe tokenizer cannot be read: its ids are not 0, 1, 2, ...")
        special = {token.content: token.id for token in self.added if token.special}
        if not set(end_ids) <= set(special.values()):
            raise DataError("this bpe tokenizer cannot be read: an id that ends a text must be a special token")
        super().__init__([pieces[id] for id in range(len(pieces))], special, end_ids)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. Raises DataError for a lone surrogate."""
        require_unicode(text)
        every, ids = parts(text), list[int]()
        for first in range(0, len(every), self.PARTS_AT_ONCE):
            some = every[first : first + self.PARTS_AT_ONCE]
            for encoding in self._library.encode_batch_fast(some, add_special_tokens=False):
                ids += encoding.ids
        return ids

    def encode_array(self, text: str) -> Ids:
        """Return `encode(text)` as an array."""
        return np.asarray(self.encode(text), dtype=np.uint32)

    def with_special(self, ids: Iterable[int], end_ids: Sequence[int]) -> "BPETokenizer":
        """Return the tokenizer with more special tokens, and `end_ids` ending a text."""
        wanted = set(ids)
        added = [token._replace(special=token.special or token.id in wanted) for token in self.added]
        return BPETokenizer(self._library.to_str(), added, end_ids)

    def to_json(self) -> dict[str, Any]:
        """Return the library's JSON, and the added tokens if there are any."""
        values = {"kind": self.kind, "tokenizers": json.loads(self._library.to_str())}
        if self.added:
            values["added_tokens"] = [token._asdict() for token in self.added]
            values["end_ids"] = list(self.end_ids)
        return values


def _tokenizers() -> Any:
    return optional_import("tokenizers", "text")


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Train byte-level BPE with GPT-2's pre-tokenizer; a short text may give fewer than `vocab_size` ids.

    Raises:
        MissingExtraError: tokenizers is not installed.
    """
    _tokenizers()
    return BPETokenizer(trainers.train("bpe", texts, vocab_size).decode())
