"""The `Tokenizer` protocol, the lecture's tokenizer of characters, and saving and loading as JSON.

A tokenizer turns text into ids and ids into text. Pieces of all but the characters' tokenizer are bytes, so a
piece may end in the middle of a character; `StreamDecoder` holds such an end back until the rest arrives.
"""

import codecs
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from groundling import atomicio
from groundling.errors import DataError

Ids = npt.NDArray[np.uint32]
Unknown = Literal["error", "skip", "replace"]
FILE_NAME = "tokenizer.json"
AGAIN = "restore it from a copy, or make it again with `groundling tokenizer train`"
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


class CharTokenizer:
    """The lecture's tokenizer: each character of the training text is a symbol, `sorted(set(text))`.

    Args:
        symbols: the known characters, ascending; a character's id is its place.
        unknown: what to do with another character: "error", "skip" it, or "replace" it.
        replacement: the known character that replaces it.

    Raises:
        DataError: these symbols cannot be a vocabulary, or the replacement is not one of them.
    """

    kind = "char"
    special: Mapping[str, int] = MappingProxyType({})
    end_ids: tuple[int, ...] = ()

    def __init__(self, symbols: str, unknown: Unknown = "error", replacement: str | None = None) -> None:
        if not isinstance(symbols, str) or not symbols or list(symbols) != sorted(set(symbols)):
            raise DataError("the symbols of a character tokenizer have to be at least one, each once, ascending")
        require_unicode(symbols)
        if unknown not in get_args(Unknown):
            raise DataError(f"unknown is {unknown!r}; it has to be one of: {', '.join(get_args(Unknown))}")
        if (unknown == "replace") != (replacement is not None):
            raise DataError('a replacement is needed with unknown = "replace", and only there')
        if replacement is not None and replacement not in list(symbols):
            raise DataError(f"the replacement {replacement!r} has to be one of the {len(symbols)} known characters")
        self.symbols, self.unknown, self.replacement = symbols, unknown, replacement
        self._code_points = _code_points(symbols)
        absent = -1 if replacement is None else symbols.index(replacement)
        # One place more than the largest code point, where all larger ones go.
        self._id_of = np.full(int(self._code_points[-1]) + 2, absent, dtype=np.int64)
        self._id_of[self._code_points] = np.arange(len(symbols))

    @classmethod
    def from_text(cls, text: str, unknown: Unknown = "error", replacement: str | None = None) -> "CharTokenizer":
        """Make the vocabulary of `text`."""
        return cls("".join(sorted(set(text))), unknown, replacement)

    @property
    def vocab_size(self) -> int:
        """The number of known characters."""
        return len(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Return an id for each character.

        Raises:
            DataError: a character is unknown, and `unknown` is "error".
        """
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> Ids:
        """Return `encode(text)` as an array, by one table look-up for all characters."""
        ids = self._id_of[np.minimum(_code_points(text), len(self._id_of) - 1)]
        absent = np.flatnonzero(ids < 0)
        if absent.size and self.unknown == "error":
            place = int(absent[0])
            raise DataError(
                f"{_name(text[place])} at position {place} is not among the tokenizer's {self.vocab_size} characters; "
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
        """Return a decoder that holds nothing back: each id is a whole character."""
        return _CharStream(self)

    def to_json(self) -> dict[str, Any]:
        """Return the symbols as one string, and what happens to others."""
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


class BytePieces:
    """The half of a tokenizer that goes from ids to text, for all whose pieces are bytes.

    Args:
        pieces: the bytes of each id.
        special: name to id of special tokens, which give no text.
        end_ids: those that end a text.
    """

    def __init__(
        self, pieces: Sequence[bytes], special: Mapping[str, int] | None = None, end_ids: Sequence[int] = ()
    ) -> None:
        self.special: Mapping[str, int] = MappingProxyType(dict(special or {}))
        self.end_ids = tuple(end_ids)
        self._names = {id: name for name, id in self.special.items()}
        self._pieces = [b"" if id in self._names else piece for id, piece in enumerate(pieces)]

    @property
    def vocab_size(self) -> int:
        """The number of ids."""
        return len(self._pieces)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of `ids`, joined.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        return b"".join([self._pieces[i] for i in check_ids(ids, self.vocab_size)])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD. Raises as `decode_bytes` does."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def piece(self, token: int) -> str:
        """Return one id as text for a reader: a special token's name; bytes that are no text as `<E2>`."""
        if token in self._names:
            return self._names[token]
        data = self.decode_bytes([token])
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(chr(byte) if byte < 0x80 else f"<{byte:02X}>" for byte in data)

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder that holds the beginning of a character back until its end is there."""
        return _ByteStream(self)


class _ByteStream:
    def __init__(self, pieces: BytePieces) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._pieces.decode_bytes([token]))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def require_unicode(text: str) -> None:
    """Check that `text` can be written as UTF-8.

    Raises:
        DataError: it holds half of a surrogate pair, as undecodable bytes on a command line give.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{_name(text[error.start])} at position {error.start} is not a Unicode character; "
            "the text was not read as UTF-8, so look at where it comes from"
        ) from None


def _name(character: str) -> str:
    shown = f"{character!r} " if character.isprintable() else ""
    return f"the character {shown}(U+{ord(character):04X})"


def _code_points(text: str) -> Ids:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint32, copy=False)


def tokenizer_to_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a tokenizer as plain data, with its kind."""
    return tokenizer.to_json()


def tokenizer_from_json(values: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that `tokenizer_to_json` described.

    Raises:
        DataError: this does not describe a tokenizer.
        MissingExtraError: it belongs to a library that is not installed.
    """
    kind = values.get("kind")
    try:
        if kind == CharTokenizer.kind:
            return CharTokenizer(values["symbols"], values["unknown"], values["replacement"])
        from groundling.text import vendors

        if kind in vendors.KINDS:
            return vendors.from_json(values)
    except (KeyError, TypeError) as error:
        raise DataError(f"this is not a whole {kind!r} tokenizer: {type(error).__name__}: {error}") from error
    raise DataError(f"no tokenizer is of kind {kind!r}; this one was made by something else, or is damaged")


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return a SHA-256 that two tokenizers share only when they are the same."""
    canonical = json.dumps(tokenizer_to_json(tokenizer), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer to `folder` as `tokenizer.json`.

    Raises:
        StorageError: it could not be written.
    """
    atomicio.write_json(folder / FILE_NAME, tokenizer_to_json(tokenizer))


def load_tokenizer(folder: Path, *, links: bool = False) -> Tokenizer:
    """Read the tokenizer that `save_tokenizer` wrote. `links` is as `files.open_regular` takes it.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / FILE_NAME
    try:
        values = atomicio.read_json(path, links=links)
    except FileNotFoundError:
        raise DataError(f"there is no {FILE_NAME} in {folder}; `groundling tokenizer train` makes one") from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file; give the folder that holds {FILE_NAME}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}; {AGAIN}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds {type(values).__name__}, not a tokenizer; {AGAIN}")
    return tokenizer_from_json(values)
