"""Import a tokenizer from a folder in the layout of `transformers`.

A round trip gives the same tokenizer: one of ours is recognised by comparing its export with the folder. Any other
byte-level BPE, such as GPT-2's, Llama 3's or Qwen's, becomes our `bpe`, in which no text gives a special token's id.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from groundling.errors import DataError, GroundlingError, MissingExtraError
from groundling.export.export_note import ExportNote, without_additions
from groundling.export.hf_tokenizer import tokenizer_spec
from groundling.storage import atomic, files
from groundling.system.optional import optional_import
from groundling.text.bpe import AddedToken, BPETokenizer
from groundling.text.char import CharTokenizer
from groundling.text.gpt2 import END_OF_TEXT_ID, GPT2_SHA256, GPT2Tokenizer
from groundling.text.sentence_piece import SentencePieceTokenizer
from groundling.text.tokenizer import Tokenizer, Unknown

TOKENIZER, SENTENCEPIECE, VOCABULARY, MERGES = "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"
SETTINGS = "tokenizer_config.json"
INSTEAD = "give another with --tokenizer"
MARK = re.compile(r"\s*[<\[({|].*[>\])}|]\s*", re.DOTALL)
"""Spelling of added tokens that are not words."""
MAX_ID = 10**7
"""Maximum id; the library iterates over all ids up to the largest."""
UNUSED = ("truncation", "padding", "post_processor")
"""Parts of a tokenizer.json that wrap a text without changing its tokenization."""


def read_tokenizer(
    folder: Path, is_gpt2: bool, end_ids: Sequence[int] = (), note: ExportNote | None = None
) -> Tokenizer:
    """Return the tokenizer of a folder.

    Args:
        folder: with tokenizer.json or, for a GPT-2, vocab.json and merges.txt.
        is_gpt2: whether the model is a GPT-2, which vocab.json requires.
        end_ids: ids that end a text; special tokens among them are kept.
        note: additions of our export, to be removed.

    Raises:
        DataError: there is none, or it is unsupported.
        MissingExtraError: the package tokenizers is not installed.
    """
    spec = json.loads(open_tokenizer(folder, is_gpt2).to_str())
    _require_no_prefix_space(spec, folder)
    if note is not None:
        spec = without_additions(spec, note)
    found = _char(spec) or _sentencepiece(spec, folder) or _gpt2(spec)
    if (
        found is None
        and note is not None
        and not (_is_byte_level(spec) or files.is_regular(folder / SENTENCEPIECE, links=True))
    ):
        raise DataError(
            f"{folder} has no {SENTENCEPIECE}, which transformers does not save again; copy it there from the folder "
            "that groundling exported"
        )
    return found or _bpe(spec, folder, end_ids)


def open_tokenizer(folder: Path, is_gpt2: bool) -> Any:
    """Return the folder's tokenizer as the library's object, which matches special tokens. Raises as above."""
    library = _library()
    try:
        if (folder / TOKENIZER).exists():
            found = library.Tokenizer.from_buffer(files.read_bytes(folder / TOKENIZER, atomic.MAX_JSON, links=True))
        elif is_gpt2 and (folder / VOCABULARY).exists() and (folder / MERGES).exists():
            found = _from_pair(folder)
        else:
            raise DataError(f"{folder} has no {TOKENIZER}; {INSTEAD} (gpt2, or a folder with a tokenizer.json of ours)")
        if (largest := max(found.get_vocab().values(), default=0)) > MAX_ID:
            raise ValueError(f"it has the id {largest:,}, and {MAX_ID:,} is the largest that is read")
    except DataError:
        raise
    except Exception as error:  # the library raises Exception itself
        raise DataError(f"the tokenizer in {folder} cannot be read: {error}; {INSTEAD}") from error
    return found


def _from_pair(folder: Path) -> Any:
    """Read GPT-2's older layout: vocabulary and merges in separate files."""
    library = _library()
    vocabulary = atomic.read_json(folder / VOCABULARY, links=True)
    lines = files.read_text(folder / MERGES, atomic.MAX_JSON, links=True).split("\n")
    merges = [tuple(line.rstrip().split(" ")) for line in lines if line.strip() and not line.startswith("#version")]
    found = library.Tokenizer(library.models.BPE(vocabulary, merges))
    found.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = library.decoders.ByteLevel()
    return found


def _is_export_of(tokenizer: Tokenizer, spec: dict[str, Any]) -> bool:
    """Whether the folder is an export of this tokenizer."""
    exported = json.loads(_library().Tokenizer.from_str(json.dumps(tokenizer_spec(tokenizer))).to_str())
    return all(exported[key] == spec[key] for key in exported.keys() | spec.keys() if key not in UNUSED)


def _char(spec: dict[str, Any]) -> Tokenizer | None:
    model, vocabulary = spec["model"], spec["model"].get("vocab")
    if not isinstance(vocabulary, dict) or max(map(len, vocabulary), default=0) != 1:
        return None
    unknown: Unknown = "skip" if model["type"] == "BPE" else "replace" if model["unk_token"] in vocabulary else "error"
    try:
        symbols = "".join(sorted(vocabulary, key=vocabulary.__getitem__))
        tokenizer = CharTokenizer(symbols, unknown, model["unk_token"] if unknown == "replace" else None)
    except DataError:
        return None
    return tokenizer if _is_export_of(tokenizer, spec) else None


def _sentencepiece(spec: dict[str, Any], folder: Path) -> Tokenizer | None:
    """Return our SentencePiece tokenizer only if the rest is our export: others put a space before each text."""
    if not files.is_regular(folder / SENTENCEPIECE, links=True):
        return None
    model = files.read_bytes(folder / SENTENCEPIECE, atomic.MAX_JSON, links=True)
    try:
        tokenizer = SentencePieceTokenizer(model, "unigram" if spec["model"]["type"] == "Unigram" else "sp_bpe")
        return tokenizer if _is_export_of(tokenizer, spec) else None
    except MissingExtraError:
        raise
    except GroundlingError:
        return None


def _gpt2(spec: dict[str, Any]) -> Tokenizer | None:
    """Return GPT-2's tokenizer if vocabulary and merges are the published ones, without additional tokens."""
    vocabulary = spec["model"].get("vocab")
    if spec["model"]["type"] != "BPE" or len(vocabulary) != 50257:
        return None
    if any(token["id"] != END_OF_TEXT_ID for token in spec["added_tokens"]):
        return None
    in_order = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))  # the published file is in this order
    if hashlib.sha256(json.dumps(in_order).encode("ascii")).hexdigest() != GPT2_SHA256:
        return None
    tokenizer = GPT2Tokenizer()
    exported = tokenizer_spec(tokenizer)
    same_merges = spec["model"]["merges"] == exported["model"]["merges"]
    return tokenizer if same_merges and spec["pre_tokenizer"] == exported["pre_tokenizer"] else None


def _bpe(spec: dict[str, Any], folder: Path, end_ids: Sequence[int]) -> Tokenizer:
    """Convert any other byte-level BPE; its special tokens are kept apart, so no text gives them.

    Added tokens for runs of blanks, or for words, are matched in a text as in the original.
    """
    model = spec["model"]
    if model["type"] != "BPE" or not _is_byte_level(spec):
        raise DataError(
            f"{folder / TOKENIZER} is a tokenizer of kind {model['type']} that does not work on bytes; those that do "
            f"(GPT-2's, Llama 3's, Qwen's) and what was exported from here can be imported, so {INSTEAD}"
        )
    if any(model[key] for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout")):
        raise DataError(f"{folder / TOKENIZER} marks its pieces in a way that is not byte-level BPE; {INSTEAD}")
    if (spec["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        raise DataError(
            f"{folder / TOKENIZER} changes text before it is cut ({spec['normalizer']['type']}), "
            f"so that it does not come back as it was; {INSTEAD}"
        )
    words = [token for token in spec["added_tokens"] if token["id"] not in end_ids and _is_word(token)]
    others = {token["id"]: token for token in spec["added_tokens"] if token not in words}
    added = [AddedToken(token["content"], id, token["special"] or id in end_ids) for id, token in others.items()]
    added += _unreachable(model, set(end_ids) - others.keys())
    for token in added:
        model["vocab"].pop(token.content, None)
    model["vocab"] |= {token["content"]: token["id"] for token in words}  # otherwise the library renumbers them
    ends = [id for id in end_ids if id in {token.id for token in added}]
    return BPETokenizer(json.dumps({**spec, "added_tokens": words, **dict.fromkeys(UNUSED)}), added, ends)


def _is_word(token: Mapping[str, Any]) -> bool:
    """Whether an added token is text and not a mark, such as <think> or [INST].

    Tokens that strip blanks around them are left out, because their text would not survive a round trip.
    """
    content, is_bare = token["content"], not (token["lstrip"] or token["rstrip"])
    return not token["special"] and (content.isspace() or (is_bare and MARK.fullmatch(content) is None))


def _unreachable(model: dict[str, Any], ids: set[int]) -> list[AddedToken]:
    """Return special tokens listed only in the vocabulary, from ids that no merge leads to."""
    merged = {"".join(pair) for pair in model["merges"]}
    found = {piece: id for piece, id in model["vocab"].items() if id in ids}
    return [AddedToken(piece, id, True) for piece, id in found.items() if len(piece) > 1 and piece not in merged]


def _require_no_prefix_space(spec: dict[str, Any], folder: Path) -> None:
    """Refuse a tokenizer that puts a space before each text, which is not lossless.

    `transformers` prefers tokenizer_config.json over tokenizer.json.
    """
    before = spec["pre_tokenizer"] or {}
    steps = [step for step in before.get("pretokenizers", [before]) if step.get("type") == "ByteLevel"]
    settings: dict[str, Any] = {}
    if (folder / SETTINGS).exists():
        try:
            settings = atomic.read_json(folder / SETTINGS, links=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / SETTINGS} cannot be read: {error}; {INSTEAD}") from error
    asked = [str(folder / TOKENIZER)] if any(step.get("add_prefix_space") for step in steps) else []
    asked += [str(folder / SETTINGS)] if steps and settings.get("add_prefix_space") is True else []
    if asked:
        raise DataError(
            f"{' and '.join(asked)} asks for add_prefix_space, a space before each text, so that a text does not come "
            "back as it was; set it to false there (only the first word of a text is then cut otherwise), or "
            f"{INSTEAD}"
        )


def _is_byte_level(spec: dict[str, Any]) -> bool:
    """Whether text is converted to bytes before merging, without a space before it."""
    before = spec["pre_tokenizer"] or {}
    steps = before.get("pretokenizers", [before])
    return [step["add_prefix_space"] for step in steps if step.get("type") == "ByteLevel"] == [False]


def _library() -> Any:
    return optional_import("tokenizers", "export")
