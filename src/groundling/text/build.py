"""Select a tokenizer for a text, and train it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from groundling.errors import require
from groundling.text.char import CharTokenizer
from groundling.text.tokenizer import Tokenizer, Unknown

Kind = Literal["char", "gpt2", "bpe", "unigram", "sp_bpe"]


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Tokenizer."""

    kind: Kind = "char"
    """Tokenizer: char, gpt2 (GPT-2's BPE), or trained on the text: bpe, unigram and sp_bpe (SentencePiece)."""
    vocab_size: int = 1024
    """Vocabulary size of trained tokenizers: bpe, unigram, sp_bpe."""
    train_chars: int = 10_000_000
    """Characters used to train a tokenizer, at most; taken evenly from the training split."""
    unknown: Unknown = "error"
    """Characters unknown to the char tokenizer: stop with an error, skip, or replace."""
    replacement: str | None = None
    """Replacement character for unknown = replace."""
    path: str | None = None
    """Folder with a tokenizer.json (see `groundling tokenizer train`); overrides kind and vocab_size."""

    def __post_init__(self) -> None:
        """Check the fields that do not depend on the text."""
        least = {"bpe": 256, "unigram": 300, "sp_bpe": 300}.get(self.kind, 1)
        require(
            self.vocab_size >= least,
            f"tokenizer.vocab_size is {self.vocab_size}; {self.kind} needs at least {least}, for the 256 bytes alone",
        )
        require(self.train_chars >= 1, f"tokenizer.train_chars is {self.train_chars}; it must be at least 1")
        require(
            (self.unknown == "replace") == (self.replacement is not None)
            and (self.replacement is None or len(self.replacement) == 1),
            f"tokenizer.unknown is {self.unknown!r} and tokenizer.replacement {self.replacement!r}; "
            "one character is needed with unknown = replace, and none otherwise",
        )


def for_text(tokenizer: Tokenizer, config: TokenizerConfig) -> Tokenizer:
    """Apply a config's handling of unknown characters to an existing tokenizer.

    Raises:
        DataError: the replacement is not one of its characters.
    """
    if isinstance(tokenizer, CharTokenizer) and config.unknown != "error":
        return CharTokenizer(tokenizer.symbols, config.unknown, config.replacement)
    return tokenizer


def train_tokenizer(config: TokenizerConfig, symbols: str, texts: Iterable[str], n_chars: int) -> Tokenizer:
    """Build the tokenizer of a config; deterministic for a text.

    Args:
        config: which tokenizer.
        symbols: all characters of the whole text, ascending; the vocabulary of a char tokenizer.
        texts: pieces of the training split, for the others.
        n_chars: length of the training split.

    Raises:
        DataError: the text is too small for such a tokenizer.
        MissingExtraError: its library is not installed.
    """
    if config.kind == "char":
        return CharTokenizer(symbols, config.unknown, config.replacement)
    from groundling.text import bpe, gpt2, sentence_piece

    if config.kind == "gpt2":
        return gpt2.GPT2Tokenizer()
    sample = spread(texts, n_chars, config.train_chars)
    if config.kind == "bpe":
        return bpe.train_bpe(sample, config.vocab_size)
    return sentence_piece.train_sentencepiece(sample, config.kind, config.vocab_size)


def spread(chunks: Iterable[str], n_chars: int, most: int) -> Iterator[str]:
    """Yield chunks spread evenly over a text, about `most` characters in all.

    Args:
        chunks: the text.
        n_chars: its length.
        most: maximum number of characters, exceeded by less than a chunk.
    """
    seen, taken = 0, 0
    for chunk in chunks:
        if taken * n_chars <= seen * most:
            yield chunk
            taken += len(chunk)
        seen += len(chunk)
