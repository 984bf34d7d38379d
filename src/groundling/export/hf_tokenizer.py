"""Our tokenizers as `tokenizer.json` of Hugging Face's `tokenizers`, with which `transformers` and vLLM encode.

Each gives, for any text that ours can say, the ids that ours gives, and takes nothing in a text for a special token.
The JSON is written here, so that an export needs no library but the tokenizer's own.
"""

import base64
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from groundling.errors import ConfigError, MissingExtraError
from groundling.text import vendors
from groundling.text.tokenizer import CharTokenizer, Tokenizer

ONE_CHARACTER = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NO_TOKEN = "<unk>"
"""Names no entry of a vocabulary of characters: an unknown one is then an error, as with ours."""


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


def tokenizer_settings(tokenizer: Tokenizer, block_size: int) -> dict[str, Any]:
    """The `tokenizer_config.json` beside it, for transformers 4 and 5."""
    ends = {"bos_token": vendors.END_OF_TEXT, "eos_token": vendors.END_OF_TEXT} if tokenizer.kind == "gpt2" else {}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,  # it would take the space away before a full stop
        "split_special_tokens": True,  # text that reads like a special token is text
        **ends,
    }


def _spec(model: Mapping[str, Any], pre_tokenizer: Any, decoder: Any, special: Mapping[str, int]) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": content, **flags} for content, token in special.items()],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": dict(model),
    }


def _with_added(spec: dict[str, Any], added: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A `tokenizer.json` with more tokens beside its vocabulary."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = [*spec["added_tokens"], *({**token, **flags} for token in added)]
    return {**spec, "added_tokens": sorted(tokens, key=lambda token: token["id"])}


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
    vocabulary: dict[str, int] = json.loads(vendors.gpt2_vocabulary().read_bytes())
    in_order = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = merge_pairs([piece for piece in in_order if piece != vendors.END_OF_TEXT])
    special = {vendors.END_OF_TEXT: vendors.END_OF_TEXT_ID}
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
    ordinary = {t: library.IdToPiece(t).replace(vendors.BLANK, " ") for t in tokens if not library.IsByte(t)}
    ordinary[0] = unknown = "\N{REPLACEMENT CHARACTER} "
    names = {token: ordinary.get(token) or library.IdToPiece(token) for token in tokens}
    cuts = [r" ?[^ \n]+|[ \n]"]
    if kind == "unigram":
        if spelled := [name for name in ordinary.values() if "<0" in name]:
            raise ConfigError(
                f"the unigram tokenizer has the piece {spelled[0]!r}, and Hugging Face's would take <0x41> in a text "
                "for a byte; train with the tokenizer bpe or sp_bpe to export"
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
    try:
        import sentencepiece
    except ImportError:
        raise MissingExtraError("sentencepiece", "text") from None
    return sentencepiece
