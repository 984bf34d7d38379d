"""Convert a tokenizer to GGUF, so that llama.cpp encodes and decodes the same ids.

llama.cpp selects its code by the tokenizer's name: "gpt2" merges bytes by a list, "llama" merges characters by score
with byte fallback. A tokenizer that matches neither exactly is refused.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from groundling.errors import ConfigError
from groundling.export.additions import additions_of, special_names
from groundling.export.chat_template.jinja import to_jinja
from groundling.export.hf_tokenizer import merge_pairs
from groundling.text.bpe import byte_alphabet
from groundling.text.chat.template import ChatTemplate
from groundling.text.gpt2 import END_OF_TEXT, gpt2_ids
from groundling.text.tokenizer import Tokenizer
from groundling.text.trainers import BLANK

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""Token types of GGUF."""
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""The pre-tokenizers of Llama 3 and Qwen2 after clitics; they differ in the length of digit groups."""
CUTS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + WORDS % "{1,3}": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + WORDS % "": "qwen2",
}
"""Patterns known to llama.cpp, by name."""
TAKES_WHOLE_WORDS = ("llama-bpe",)
"""Pre-tokenizers for which llama.cpp accepts a piece in the vocabulary without a path of merges."""
PLACEHOLDER_MERGE = f"{END_OF_TEXT} {END_OF_TEXT}"
"""A placeholder merge, because llama.cpp requires a non-empty array. Merging starts from single letters, so it never
applies.
"""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer as stored in a GGUF file.

    The tokens `ends` end a text or a turn. A file has to name one: otherwise llama.cpp takes id 11, or 2 in a "llama"
    vocabulary, and generation stops at a semicolon. Our trained tokenizers have no such token, so one is added after
    the last id (`end_is_added`), unless a chat model has its own. It never results from text, and is never prepended.
    """

    model: str
    """Name of llama.cpp's tokenizer."""
    pieces: list[str]
    """Text of each id, as that tokenizer writes it."""
    types: list[int]
    """Type of each id."""
    merges: list[str]
    """Merges of "gpt2", by priority."""
    scores: list[float]
    """Scores of "llama"; higher ones merge first."""
    ends: tuple[int, ...]
    """Ids that end a text or a turn, the preferred one first."""
    end_is_added: bool
    """Whether the model has no row for the end token."""
    never_drawn: list[int]
    """Ids that occur in no text and no reply."""
    chat_template: str | None = None
    """Chat template as Jinja."""
    cut: str = "gpt-2"
    """Name of llama.cpp's pre-tokenizer for "gpt2"."""


class _Pieces(NamedTuple):
    """A tokenizer's own ids."""

    model: str
    pieces: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    cut: str = "gpt-2"


def vocabulary_of(tokenizer: Tokenizer, chat: ChatTemplate | None = None) -> Vocabulary:
    """Convert a tokenizer, with special tokens for a chat model.

    llama.cpp skips unknown characters of a character vocabulary, as ours does with unknown = "skip"; with SentencePiece
    it reads U+2581 as a space.

    Raises:
        ConfigError: there is no exact equivalent.
        DataError: GPT-2's vocabulary is not cached and cannot be downloaded.
        MissingExtraError: the tokenizer's library is not installed.
    """
    own = _pieces_of(tokenizer)
    is_in_text = END_OF_TEXT in own.pieces and END_OF_TEXT not in tokenizer.special
    own_end = own.pieces.index(END_OF_TEXT) if is_in_text else None
    added = additions_of(tokenizer, chat, taken=own.pieces, has_unknown=False, own_end=own_end)
    if own_end is not None and own.types[own_end] != CONTROL:
        raise ConfigError(
            f"the tokenizer has learned {END_OF_TEXT} as ordinary text, and llama.cpp would take it for the end of "
            "the text; take it out of the training text, or export to Hugging Face"
        )
    return Vocabulary(
        model=own.model,
        pieces=[*own.pieces, *added.texts],
        types=[*own.types, *[CONTROL] * len(added.texts)],
        merges=own.merges or [PLACEHOLDER_MERGE],
        scores=[*own.scores, *[0.0] * len(added.texts)],
        ends=added.ends,
        end_is_added=not added.end_is_known,
        never_drawn=added.never_drawn,
        cut=own.cut,
        chat_template=None if chat is None else to_jinja(chat, special_names(tokenizer, added.texts), escapes=True),
    )


def _pieces_of(tokenizer: Tokenizer) -> _Pieces:
    values = tokenizer.to_json()
    if tokenizer.kind == "char":
        return _characters(values["symbols"])
    if tokenizer.kind == "bpe":
        return _byte_pairs(values["tokenizers"], values.get("added_tokens", []))
    if tokenizer.kind == "gpt2":
        return _gpt2()
    if tokenizer.kind == "sp_bpe":
        return _sentencepiece_pairs(base64.b64decode(values["model"]))
    raise ConfigError(
        f"a {tokenizer.kind} tokenizer cannot be exported to GGUF: llama.cpp's has no bytes for unknown characters, "
        "not even for a newline; train with --data.tokenizer.kind bpe, or export to Hugging Face"
    )


def _characters(symbols: str) -> _Pieces:
    """Convert a character tokenizer: byte-level BPE without merges, if each character is one byte."""
    long = [symbol for symbol in symbols if len(symbol.encode()) > 1]
    if long:
        shown = " ".join(f"{symbol!r}" for symbol in long[:5]) + (" ..." if len(long) > 5 else "")
        raise ConfigError(
            f"this character tokenizer cannot be exported to GGUF: {len(long)} of its {len(symbols)} characters are "
            f"more than one byte in UTF-8 ({shown}), and llama.cpp's tokens without merges are single bytes; "
            "train with --data.tokenizer.kind bpe, or export to Hugging Face"
        )
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    return _Pieces("gpt2", [letters[ord(symbol)] for symbol in symbols], [NORMAL] * len(symbols), [], [])


def _byte_pairs(library: Mapping[str, Any], added: Sequence[Mapping[str, Any]]) -> _Pieces:
    """Convert the JSON of Hugging Face `tokenizers`, which already uses GPT-2's alphabet."""
    cut = _name_of_cut(library["pre_tokenizer"] or {})
    whole_words = bool(library["model"].get("ignore_merges"))
    composes = is_composing(library)
    if cut is None or whole_words != (cut in TAKES_WHOLE_WORDS) or not (composes or library["normalizer"] is None):
        raise ConfigError(
            "this bpe tokenizer cannot be exported to GGUF: it cuts or changes text in a way that llama.cpp has no "
            "name for (it knows GPT-2's, Llama 3's, Qwen2's and SmolLM's); "
            "export to Hugging Face: groundling export hf"
        )
    ids: dict[str, int] = library["model"]["vocab"]
    merges = library["model"]["merges"]  # pairs, or "a b" in files of older releases
    joined = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    unreachable = END_OF_TEXT in ids and not any(merge.replace(" ", "") == END_OF_TEXT for merge in joined)
    pieces = {id: (piece, CONTROL if unreachable and piece == END_OF_TEXT else NORMAL) for piece, id in ids.items()}
    pieces |= {token["id"]: (token["content"], USER_DEFINED) for token in library["added_tokens"]}
    pieces |= {token["id"]: (token["content"], CONTROL if token["special"] else USER_DEFINED) for token in added}
    texts, types = zip(*(pieces[id] for id in sorted(pieces)), strict=True)
    return _Pieces("gpt2", list(texts), list(types), joined, [], cut)


def is_composing(library: Mapping[str, Any]) -> bool:
    """Whether a tokenizer normalises to NFC, as Qwen's do; llama.cpp does not normalise."""
    return bool((library.get("normalizer") or {}).get("type") == "NFC")


def _name_of_cut(cutter: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name of the library's pre-tokenizer; None if it has none."""
    steps = cutter.get("pretokenizers", [cutter])
    *before, last = steps
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    by_gpt2 = last.get("use_regex", True)
    if not before:
        return "gpt-2" if by_gpt2 else None
    if len(before) > 1:
        return None
    (first,) = before
    if first["type"] == "Digits":
        return "smollm" if by_gpt2 and first["individual_digits"] else None
    is_split = first["type"] == "Split" and first["behavior"] == "Isolated" and not first["invert"]
    return CUTS.get(first["pattern"].get("Regex", "")) if is_split and not by_gpt2 else None


def _gpt2() -> _Pieces:
    ids = gpt2_ids()
    pieces = sorted(ids, key=ids.__getitem__)
    types = [CONTROL if piece == END_OF_TEXT else NORMAL for piece in pieces]
    return _Pieces("gpt2", pieces, types, merges_of([piece for piece in pieces if piece != END_OF_TEXT]), [])


def merges_of(pieces: Sequence[str]) -> list[str]:
    """Return the merges of a vocabulary in GGUF's format."""
    return [" ".join(pair) for pair in merge_pairs(pieces)]


def _sentencepiece_pairs(model: bytes) -> _Pieces:
    import sentencepiece  # cached: the tokenizer was built from it

    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    if library.PieceToId(BLANK) == library.unk_id():
        raise ConfigError(
            "this sp_bpe tokenizer has no piece for a space, and llama.cpp would write U+2581 for each; "
            "train with --data.tokenizer.kind bpe, or export to Hugging Face"
        )
    ids = range(library.GetPieceSize())
    types = [UNKNOWN if library.IsUnknown(i) else BYTE if library.IsByte(i) else NORMAL for i in ids]
    scores = [library.GetScore(i) for i in ids]
    return _Pieces("llama", [library.IdToPiece(i) for i in ids], types, [], scores)
