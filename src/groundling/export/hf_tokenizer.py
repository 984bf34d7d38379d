"""Convert our tokenizers to `tokenizer.json` of Hugging Face `tokenizers`, used by `transformers` and vLLM.

It encodes any text that ours can encode to the same ids, except for runs without a blank that ours cuts by length
(`text/chunking.py`). For a base model it matches no special tokens in a text; for a chat model it has to, because
programs pass whole conversations as one text. The JSON is written here, so an export needs no library but the
tokenizer's own.
"""

import base64
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from groundling.errors import ConfigError
from groundling.export.additions import Additions
from groundling.export.chat_template.escapes import unescaping
from groundling.system.optional import optional_import
from groundling.text import gpt2
from groundling.text.char import CharTokenizer
from groundling.text.tokenizer import Tokenizer
from groundling.text.trainers import BLANK

ONE_CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NO_TOKEN = "<unk>"
"""Unknown token of a character vocabulary that is not in it: unknown characters are errors, as in ours, until
`with_additions` adds an id for it.
"""
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
"""Options of a special token: matched literally, before normalisation."""


def tokenizer_spec(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a tokenizer as the library's JSON.

    Raises:
        ConfigError: the library has no equivalent pre-tokenizer.
        MissingExtraError: a library for the tokenizer is not installed.
    """
    if isinstance(tokenizer, CharTokenizer):
        return _char_spec(tokenizer)
    if tokenizer.kind == "gpt2":
        return gpt2_spec()
    values = tokenizer.to_json()
    if tokenizer.kind == "bpe":
        return _with_added(values["tokenizers"], values.get("added_tokens", []))
    return _sentencepiece_spec(base64.b64decode(values["model"]), tokenizer.kind)


def with_additions(spec: Mapping[str, Any], additions: Additions, *, chats: bool) -> dict[str, Any]:
    """Add special tokens after a tokenizer's own ids.

    Args:
        spec: from `tokenizer_spec`.
        additions: the tokens.
        chats: whether the normaliser must undo the escapes of our chat template.
    """
    model = dict(spec["model"])
    if model["type"] == "WordLevel":  # its unknown token must be in the vocabulary; no text matches the others
        model["vocab"] = {**model["vocab"], **additions.texts}
        if additions.unknown is not None:
            model["unk_token"] = additions.text_of(additions.unknown)
    added = [{"id": token, "content": text, **FLAGS} for text, token in additions.texts.items()]
    return {
        **spec,
        "model": model,
        "added_tokens": [*spec["added_tokens"], *added],
        "normalizer": unescaping(spec["normalizer"]) if chats else spec["normalizer"],
    }


def names_of(spec: Mapping[str, Any]) -> set[str]:
    """Return the texts of all tokens of a tokenizer."""
    vocabulary = spec["model"]["vocab"]
    names = set(vocabulary) if isinstance(vocabulary, Mapping) else {name for name, _ in vocabulary}
    return names | {token["content"] for token in spec["added_tokens"]}


def tokenizer_settings(end: str, unknown: str | None, block_size: int, *, chats: bool) -> dict[str, Any]:
    """Return the `tokenizer_config.json`, for transformers 4 and 5.

    Args:
        end: text of the token that ends a text or a turn.
        unknown: text of the unknown token, if any.
        block_size: the model's context.
        chats: whether to match role tokens in a text.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "model_input_names": ["input_ids", "attention_mask"],  # 4 adds token_type_ids, which a Llama refuses
        "clean_up_tokenization_spaces": False,  # it would remove the space before a full stop
        "split_special_tokens": not chats,  # otherwise the spelling of a special token is text
        **({} if chats else {"bos_token": end}),  # a conversation starts with a role token
        "eos_token": end,
        "pad_token": end,
        **({} if unknown is None else {"unk_token": unknown}),
    }


def _spec(model: Mapping[str, Any], pre_tokenizer: Any, decoder: Any, special: Mapping[str, int]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": content, **FLAGS} for content, token in special.items()],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": dict(model),
    }


def _with_added(spec: dict[str, Any], added: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add tokens to a `tokenizer.json`.

    They are in the vocabulary too, where no merge leads to them: the library numbers others after the last id.
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = [*spec["added_tokens"], *({**token, **flags} for token in added)]
    vocabulary = {**spec["model"]["vocab"], **{token["content"]: token["id"] for token in added}}
    model = {**spec["model"], "vocab": vocabulary}
    return {**spec, "model": model, "added_tokens": sorted(tokens, key=lambda token: token["id"])}


def _bpe_model(vocabulary: Mapping[str, int], merges: list[list[str]], **changes: Any) -> dict[str, Any]:
    plain = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {**plain, **changes, "vocab": dict(vocabulary), "merges": merges}


def _char_spec(tokenizer: CharTokenizer) -> dict[str, Any]:
    """Return a vocabulary of single characters; without merges, the library's BPE skips unknown characters."""
    vocabulary = {symbol: token for token, symbol in enumerate(tokenizer.symbols)}
    if tokenizer.unknown == "skip":
        return _spec(_bpe_model(vocabulary, []), ONE_CHARACTER, {"type": "Fuse"}, {})
    words = {"type": "WordLevel", "vocab": vocabulary, "unk_token": tokenizer.replacement or NO_TOKEN}
    return _spec(words, ONE_CHARACTER, {"type": "Fuse"}, {})


def gpt2_spec() -> dict[str, Any]:
    """Return GPT-2's tokenizer, from its verified vocabulary. No text matches its special token.

    Raises:
        DataError: the vocabulary is not cached and cannot be downloaded.
    """
    vocabulary = gpt2.gpt2_ids()
    in_order = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = merge_pairs([piece for piece in in_order if piece != gpt2.END_OF_TEXT])
    special = {gpt2.END_OF_TEXT: gpt2.END_OF_TEXT_ID}
    return _spec(_bpe_model(vocabulary, merges), BYTE_LEVEL, {**BYTE_LEVEL}, special)


def merge_pairs(pieces: Sequence[str]) -> list[list[str]]:
    """Reconstruct the merges of a byte-level vocabulary, one per token, in order.

    A token's two halves are what the earlier merges leave of it.
    """
    rank_of = {piece: rank for rank, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:
        parts = list(piece)
        while len(parts) > 2:
            ranks = [rank_of.get(left + right, len(pieces)) for left, right in itertools.pairwise(parts)]
            at = ranks.index(min(ranks))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append(parts)
    return merges


def _sentencepiece_spec(serialized: bytes, kind: str) -> dict[str, Any]:
    """Convert SentencePiece; encodes word by word, as ours does.

    Pieces are written with real spaces, so that its space symbol in a text is an ordinary character in bytes; the
    unknown symbol gets a name that no word can have.
    """
    library = _sentencepiece().SentencePieceProcessor()
    library.LoadFromSerializedProto(serialized)
    tokens = range(library.GetPieceSize())
    ordinary = {t: library.IdToPiece(t).replace(BLANK, " ") for t in tokens if not library.IsByte(t)}
    ordinary[0] = unknown = "\N{REPLACEMENT CHARACTER} "
    names = {token: ordinary.get(token) or library.IdToPiece(token) for token in tokens}
    cuts = [r" ?[^ \n]+|[ \n]"]
    if kind == "unigram":
        if spelled := [name for name in ordinary.values() if "<0" in name]:
            raise ConfigError(
                f"the unigram tokenizer has the piece {spelled[0]!r}, and Hugging Face's would take <0x41> in a text "
                "for a byte; train with --data.tokenizer.kind bpe, or sp_bpe, to export"
            )
        # The library matches byte names, such as <0x41>, in a text; split in two they are text again.
        cuts.append(r"<(?=0x[0-9A-F]{2}>)")
        scores = [[names[token], library.GetScore(token)] for token in tokens]
        model: dict[str, Any] = {"type": "Unigram", "unk_id": 0, "vocab": scores, "byte_fallback": True}
    else:
        ids = {name: token for token, name in ordinary.items() if token}
        best_first = sorted(ids, key=lambda name: -library.GetScore(ids[name]))
        merges = [
            [name[:cut], name[cut:]]
            for name in best_first
            for cut in range(1, len(name))
            if name[:cut] in ids and name[cut:] in ids
        ]
        vocabulary = {name: token for token, name in names.items()}
        model = _bpe_model(vocabulary, merges, unk_token=unknown, byte_fallback=True)
    splits = [{"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False} for cut in cuts]
    decoders = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    return _spec(model, {"type": "Sequence", "pretokenizers": splits}, decoders, {})


def _sentencepiece() -> Any:
    return optional_import("sentencepiece", "text")
