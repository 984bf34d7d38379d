"""Encode a text into memory-mapped token files, cached by the hash of everything they depend on.

The text is streamed twice: first to count its characters and collect the alphabet, then to encode both splits. The last
`val_fraction` of the characters is held out, as in the lecture.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundling.config import to_dict
from groundling.data import datasets
from groundling.data.folders import Found, find_files
from groundling.data.text_files import Errors, TextFiles, span
from groundling.data.token_file import TokenFile, dtype_for, open_token_file, write_token_file
from groundling.errors import DataError, require
from groundling.storage import atomic
from groundling.system.progress import Progress
from groundling.text import serialize as tokenizers
from groundling.text.build import TokenizerConfig, for_text, train_tokenizer
from groundling.text.char import CharTokenizer
from groundling.text.chunking import chunks
from groundling.text.tokenizer import Ids, Tokenizer

log = logging.getLogger(__name__)

__all__ = [
    "Corpus",
    "DataConfig",
    "Split",
    "TextConfig",
    "TokenFile",
    "TokenizerConfig",
    "open_token_file",
    "prepare",
    "write_token_file",
]

FORMAT = 2
"""Cache version; increase it when the same text and settings give other files."""
SAMPLE_CHARS = 1 << 16
"""Chunk size in characters for training a tokenizer; chunks are spread over a long text."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Text and how to read it."""

    name: str = "tiny_shakespeare"
    """Named data set, see `groundling data list`; ignored if path is set."""
    path: str | None = None
    """Your own text: a file, a folder or a quoted glob. UTF-8; .gz and .zst are decompressed."""
    val_fraction: float = 0.1
    """Fraction of the characters held out for validation, at the end of the text."""
    errors: Errors = "strict"
    """Bytes that are not UTF-8: strict stops with their position, replace inserts U+FFFD and counts."""

    def __post_init__(self) -> None:
        """Check the fields that do not depend on the text."""
        require(
            0.0 < self.val_fraction < 1.0,
            f"data.val_fraction is {self.val_fraction}; it must be above 0 and below 1, for example 0.1",
        )
        require(self.path != "", "data.path is empty; give a file, a folder or a glob, or leave it out")

    def text_files(self) -> TextFiles:
        """Return the text; download a named data set if necessary.

        Raises:
            DataError: there is no such text.
        """
        found = Found([datasets.get(self.name)]) if self.path is None else find_files(self.path)
        return TextFiles(found.paths, self.errors, skipped=found.skipped())


@dataclass(frozen=True, kw_only=True)
class DataConfig(TextConfig):
    """Text, how to read it, and how to tokenize it."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Size of a split."""

    n_chars: int
    n_bytes: int
    n_tokens: int

    @property
    def bytes_per_token(self) -> float:
        """Bytes of UTF-8 per token; nats per token divided by this and by ln 2 are bits per byte."""
        return self.n_bytes / self.n_tokens

    @property
    def chars_per_token(self) -> float:
        """Characters per token."""
        return self.n_chars / self.n_tokens


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A tokenized text in two splits, with its tokenizer."""

    train: TokenFile
    val: TokenFile
    train_part: Split
    val_part: Split
    tokenizer: Tokenizer
    fingerprint: str
    """SHA-256 of the tokens of both splits and of the tokenizer."""
    replaced: int
    """Number of decoding errors replaced by U+FFFD."""
    doubts: tuple[str, ...]
    """Files read as text that look like markup or data (JSON, HTML, XML)."""


def prepare(config: DataConfig, block_size: int, tokenizer: Tokenizer | None = None) -> Corpus:
    """Return the tokens of a text, from the cache if possible.

    Args:
        config: the text, and how to tokenize it.
        block_size: each split needs at least one token more than this.
        tokenizer: an existing tokenizer; overrides `config.tokenizer`.

    Raises:
        DataError: there is no such text, it is damaged, or it is too short.
        StorageError: the token files cannot be written.
    """
    text = config.text_files()
    if text.skipped:
        log.warning(f"groundling: skipped in {config.path}: {text.skipped}")
    text.require_text()  # even if the same bytes are cached under another name
    if tokenizer is None and config.tokenizer.path is not None:
        tokenizer = tokenizers.load_tokenizer(Path(config.tokenizer.path).expanduser())
    if tokenizer is not None:
        tokenizer = for_text(tokenizer, config.tokenizer)
    home = atomic.cache_folder() / "tokens" / _key(config, text, tokenizer)
    atomic.make_folder(home)
    with _locked(home / ".lock"):
        corpus = _open_if_sound(home / "corpus")
        if corpus is None:
            atomic.sweep_temporaries(home)
            _build(home / "corpus", config, text, block_size, tokenizer)
            corpus = _open(home / "corpus")
    _require_length(corpus.train_part.n_tokens, corpus.val_part.n_tokens, config, block_size)
    if corpus.replaced:
        log.warning(f"groundling: {corpus.replaced:,} decoding errors in the text were replaced by U+FFFD")
    for doubt in corpus.doubts:
        log.warning(f"groundling: {doubt}; it is read as plain text, syntax included")
    return corpus


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with ExitStack() as stack:
        with Progress("waiting for another process that prepares this text"):
            stack.enter_context(atomic.locked(path))
        yield


def _key(config: DataConfig, text: TextFiles, tokenizer: Tokenizer | None) -> str:
    """Return a SHA-256 of everything the token files depend on."""
    tokenizer_key = to_dict(config.tokenizer) if tokenizer is None else tokenizers.fingerprint(tokenizer)
    compressions = [path.suffix if path.suffix in (".gz", ".zst") else "" for path in text.paths]
    try:
        with Progress("hashing the text, to find it in the cache", text.n_bytes) as progress:
            contents = [atomic.sha256_of(path, progress.advance, links=True) for path in text.paths]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    parts = [FORMAT, contents, compressions, config.errors, config.val_fraction, tokenizer_key]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _open_if_sound(folder: Path) -> Corpus | None:
    if not os.path.lexists(folder):
        return None
    try:
        with Progress("verifying the cached text"):
            return _open(folder)
    except (DataError, OSError, ValueError, KeyError, TypeError) as error:
        log.warning(f"groundling: the cached text in {folder} is damaged and is prepared again ({error})")
        atomic.remove(folder)
        return None


def _open(folder: Path) -> Corpus:
    facts = atomic.read_json(folder / "corpus.json")
    corpus = Corpus(
        train=open_token_file(folder / "train.tok", verify=True),
        val=open_token_file(folder / "val.tok", verify=True),
        train_part=Split(**facts["train"]),
        val_part=Split(**facts["val"]),
        tokenizer=tokenizers.load_tokenizer(folder),
        fingerprint=facts["fingerprint"],
        replaced=facts["replaced"],
        doubts=tuple(facts["doubts"]),
    )
    if corpus.fingerprint != _fingerprint(corpus.train, corpus.val, corpus.tokenizer):
        raise DataError("its files do not belong together")
    return corpus


def _fingerprint(train: TokenFile, val: TokenFile, tokenizer: Tokenizer) -> str:
    return hashlib.sha256(f"{train.sha256} {val.sha256} {tokenizers.fingerprint(tokenizer)}".encode()).hexdigest()


def _build(folder: Path, config: DataConfig, text: TextFiles, block_size: int, tokenizer: Tokenizer | None) -> None:
    n_chars, symbols = 0, set[str]()
    with Progress("reading the text", text.n_bytes) as progress:
        for piece in text.pieces():
            n_chars += len(piece)
            symbols.update(piece)
            progress.advance(len(piece))
    replaced, doubts = text.replaced, [f"{path} looks like {language}" for path, language in text.doubts.items()]
    n_train = int((1 - config.val_fraction) * n_chars)
    # A character is one token or, at worst, four tokens of one byte.
    most = 1 if config.tokenizer.kind == "char" and tokenizer is None else 4
    _require_length(n_train * most, (n_chars - n_train) * most, config, block_size)
    if tokenizer is None:
        training_part = chunks(span(text.pieces(), 0, n_train), SAMPLE_CHARS)
        tokenizer = train_tokenizer(config.tokenizer, "".join(sorted(symbols)), training_part, n_train)
    _require_symbols(tokenizer, symbols)
    atomic.require_room(folder.parent, n_chars * dtype_for(tokenizer.vocab_size).itemsize)
    with atomic.new_folder(folder) as new:
        facts: dict[str, Any] = {"replaced": replaced, "doubts": doubts}
        files = []
        for name, start, stop in (("train", 0, n_train), ("val", n_train, n_chars)):
            encoder = _Encoder(tokenizer, span(text.pieces(), start, stop), stop - start)
            files.append(write_token_file(new / f"{name}.tok", encoder, tokenizer.vocab_size))
            facts[name] = {"n_chars": encoder.n_chars, "n_bytes": encoder.n_bytes, "n_tokens": len(files[-1])}
        tokenizers.save_tokenizer(tokenizer, new)
        facts["fingerprint"] = _fingerprint(files[0], files[1], tokenizer)
        atomic.write_json(new / "corpus.json", facts)
        text.require_unchanged()


def _require_symbols(tokenizer: Tokenizer, symbols: set[str]) -> None:
    """Check a given character tokenizer against the text before encoding."""
    if isinstance(tokenizer, CharTokenizer) and tokenizer.unknown == "error":
        missing = sorted(symbols - set(tokenizer.symbols))
        if missing:
            raise DataError(
                f"the text has {len(missing)} characters that the given tokenizer does not know, such as "
                f"{', '.join(map(repr, missing[:5]))}; leave them out with --data.tokenizer.unknown skip"
            )


class _Encoder:
    """Encodes chunks on demand, and counts characters and bytes."""

    def __init__(self, tokenizer: Tokenizer, pieces: Iterator[str], n_expected: int) -> None:
        self._tokenizer, self._chunks, self._n_expected = tokenizer, chunks(pieces), n_expected
        self.n_chars = self.n_bytes = 0

    def __iter__(self) -> Iterator[Ids]:
        with Progress("encoding the text", self._n_expected) as progress:
            for chunk in self._chunks:
                self.n_chars += len(chunk)
                self.n_bytes += len(chunk.encode())
                yield self._tokenizer.encode_array(chunk)
                progress.advance(len(chunk))


def _require_length(n_train: int, n_val: int, config: DataConfig, block_size: int) -> None:
    """Check that a window of `block_size` and its targets fit into both splits."""
    need = block_size + 1
    if min(n_train, n_val) >= need:
        return
    smallest = min(config.val_fraction, 1 - config.val_fraction)
    raise DataError(
        f"the text is too short: at most {n_train:,} tokens for training and {n_val:,} for validation, but block_size "
        f"{block_size:,} needs {need:,} in each, so about {-int(-need // smallest):,} in all; "
        "give a longer text, or a smaller block_size"
    )
