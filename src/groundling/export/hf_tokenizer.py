"""Our tokenizers as `tokenizer.json` of Hugging Face's `tokenizers`, with which `transformers` and vLLM encode.

Each gives, for any text that ours can say, the ids that ours gives; but a run without a blank that ours cuts because of
its length (`text/chunking.py`) it encodes in one piece. Of a model that does not chat it takes nothing in a text for a
special token; of one that chats it has to, because programs hand it whole conversations as one text.
The JSON is written here, so that an export needs no library but the tokenizer's own.
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
"""Names no entry of a vocabulary of characters: an unknown one is an error, as with ours, until `with_additions` adds
an id for it."""
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
"""Of a special token: found as it is written, before a text is normalised."""


def tokenizer_spec(tokenizer: Tokenizer) -> dict[str, Any]:
    """A tokenizer as the library's own JSON.

    Raises:
        ConfigError: the library cannot cut text as this tokenizer does.
        MissingExtraError: a library that the tokenizer needs is not installed.
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
    """A tokenizer's JSON with special tokens after its own ids.

    Args:
        spec: what `tokenizer_spec` gave.
        additions: the tokens.
        chats: whether conversations are rendered by our template, whose escapes the normaliser undoes.
    """
    model = dict(spec["model"])
    if model["type"] == "WordLevel":  # its unknown token has to be one of its words; no text is cut into the others
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
    """The texts of all tokens of a tokenizer."""
    vocabulary = spec["model"]["vocab"]
    names = set(vocabulary) if isinstance(vocabulary, Mapping) else {name for name, _ in vocabulary}
    return names | {token["content"] for token in spec["added_tokens"]}


def tokenizer_settings(end: str, unknown: str | None, block_size: int, *, chats: bool) -> dict[str, Any]:
    """The `tokenizer_config.json` beside it, for transformers 4 and 5.

    Args:
        end: the text of the token that ends a text, or a turn of a conversation.
        unknown: the text of the unknown token, if there is one.
        block_size: the longest text that the model reads.
        chats: whether structure is to be found in a text.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "model_input_names": ["input_ids", "attention_mask"],  # 4 adds token_type_ids, which a Llama refuses
        "clean_up_tokenization_spaces": False,  # it would take the space away before a full stop
        "split_special_tokens": not chats,  # else text that reads like a special token is text
        **({} if chats else {"bos_token": end}),  # a conversation begins with the id of a role
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
    """A `tokenizer.json` with more tokens beside its vocabulary.

    They stand in the vocabulary too, where no merge leads to them: the library numbers others after the last id.
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
    """A word list of single characters; without merges, the library's BPE is one that skips unknown characters."""
    vocabulary = {symbol: token for token, symbol in enumerate(tokenizer.symbols)}
    if tokenizer.unknown == "skip":
        return _spec(_bpe_model(vocabulary, []), ONE_CHARACTER, {"type": "Fuse"}, {})
    words = {"type": "WordLevel", "vocab": vocabulary, "unk_token": tokenizer.replacement or NO_TOKEN}
    return _spec(words, ONE_CHARACTER, {"type": "Fuse"}, {})


def gpt2_spec() -> dict[str, Any]:
    """GPT-2's tokenizer, from its verified vocabulary. Its one special token ends a text and is never cut from one.

    Raises:
        DataError: the vocabulary is not here and cannot be fetched.
    """
    vocabulary = gpt2.gpt2_ids()
    in_order = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = merge_pairs([piece for piece in in_order if piece != gpt2.END_OF_TEXT])
    special = {gpt2.END_OF_TEXT: gpt2.END_OF_TEXT_ID}
    return _spec(_bpe_model(vocabulary, merges), BYTE_LEVEL, {**BYTE_LEVEL}, special)


def merge_pairs(pieces: Sequence[str]) -> list[list[str]]:
    """The merges that made a vocabulary of byte pairs, where each token is one merge, in order.

    A token's two halves are what the merges before its own leave of it.
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
    """SentencePiece, word by word as ours encodes.

    The pieces are written with real spaces, so that its sign for a space is, in a text, one more character that is
    spelled in bytes; the sign for what is unknown gets a name that no word can be.
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
        # The library finds its bytes' own names, such as <0x41>, in a text; cut in two they are text again.
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
