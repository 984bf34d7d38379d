"""SentencePiece, unigram or BPE, by its library."""

import base64
import re
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from groundling.errors import DataError
from groundling.system.optional import optional_import
from groundling.text import trainers
from groundling.text.byte_pieces import BytePieces
from groundling.text.chunking import parts
from groundling.text.tokenizer import Ids, require_unicode
from groundling.text.trainers import BLANK

SentencePieceKind = Literal["unigram", "sp_bpe"]
_SEGMENT = re.compile(rf" ?[^ \n{BLANK}]+|[ \n{BLANK}]")


class SentencePieceTokenizer(BytePieces):
    """SentencePiece, unigram or BPE, with byte fallback; lossless.

    Encodes word by word, each with the space before it. SentencePiece cuts there anyway; over a long text its float32
    sums lose the digits that decide between two segmentations.

    Args:
        model: the library's serialized model.
        kind: "unigram" or "sp_bpe".

    Raises:
        DataError: this is not such a model.
        MissingExtraError: sentencepiece is not installed.
    """

    def __init__(self, model: bytes, kind: SentencePieceKind) -> None:
        self.kind: str = kind
        self._model = model
        self._library = _sentencepiece().SentencePieceProcessor()
        try:
            self._library.LoadFromSerializedProto(model)
            pieces = [self._bytes_of(token) for token in range(self._library.GetPieceSize())]
        except (RuntimeError, ValueError) as error:  # a piece that is not UTF-8, or not a byte
            raise DataError(f"this {kind} tokenizer cannot be read: {error}") from error
        super().__init__(pieces)
        self._space, unknown = self._library.PieceToId("<0x20>"), self._library.unk_id()
        self._has_blank = self._library.PieceToId(BLANK) != unknown
        self._blank = [self._library.PieceToId(f"<0x{byte:02X}>") for byte in BLANK.encode()]

    def _bytes_of(self, token: int) -> bytes:
        piece: str = self._library.IdToPiece(token)
        if self._library.IsByte(token):
            return bytes([int(piece[1:-1], 16)])
        if self._library.IsUnknown(token):
            return "\N{REPLACEMENT CHARACTER}".encode()  # with byte fallback, no text gives this id
        return piece.replace(BLANK, " ").encode()

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. Raises DataError for a lone surrogate."""
        require_unicode(text)
        ids: list[int] = []
        for part in parts(text):
            segments = _SEGMENT.findall(part)
            ids_of = self._ids_of(list(dict.fromkeys(segments)))
            ids += [token for segment in segments for token in ids_of[segment]]
        return ids

    def _ids_of(self, segments: list[str]) -> dict[str, list[int]]:
        ids_of = dict(zip(segments, self._library.Encode(segments, num_threads=1), strict=True))
        if not self._has_blank:  # the space symbol stands for a space here
            bare = [segment for segment in segments if segment[0] == " "]
            rest = self._library.Encode([segment[1:] for segment in bare], num_threads=1)
            ids_of |= {segment: [self._space, *ids] for segment, ids in zip(bare, rest, strict=True)}
        ids_of[BLANK] = self._blank  # otherwise it would decode to a space
        return ids_of

    def encode_array(self, text: str) -> Ids:
        """Return `encode(text)` as an array."""
        return np.asarray(self.encode(text), dtype=np.uint32)

    def to_json(self) -> dict[str, Any]:
        """Return the library's model in base64."""
        return {"kind": self.kind, "model": base64.b64encode(self._model).decode("ascii")}


def _sentencepiece() -> Any:
    return optional_import("sentencepiece", "text")


def train_sentencepiece(texts: Iterable[str], kind: SentencePieceKind, vocab_size: int) -> SentencePieceTokenizer:
    """Train SentencePiece; a short text may give fewer than `vocab_size` ids.

    Raises:
        DataError: the text is too small for such a vocabulary; the library's reason is given.
        MissingExtraError: sentencepiece is not installed.
    """
    _sentencepiece()
    return SentencePieceTokenizer(trainers.train(kind, texts, vocab_size), kind)
