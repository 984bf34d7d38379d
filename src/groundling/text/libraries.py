"""Build library tokenizers from JSON."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from groundling.errors import DataError
from groundling.text.bpe import AddedToken, BPETokenizer
from groundling.text.gpt2 import GPT2_SHA256, GPT2Tokenizer
from groundling.text.sentence_piece import SentencePieceTokenizer
from groundling.text.tokenizer import Tokenizer

KINDS = ("gpt2", "bpe", "unigram", "sp_bpe")


def from_json(values: Mapping[str, Any]) -> Tokenizer:
    """Build a tokenizer from the `to_json` of a library tokenizer.

    Raises:
        DataError: it is of another kind, or damaged.
        MissingExtraError: its library is not installed.
    """
    kind = values["kind"]
    if kind == "gpt2":
        if values["sha256"] != GPT2_SHA256:
            raise DataError("this gpt2 tokenizer has a different vocabulary than OpenAI's")
        return GPT2Tokenizer()
    if kind == "bpe":
        added = [AddedToken.from_json(token) for token in values.get("added_tokens", [])]
        return BPETokenizer(json.dumps(values["tokenizers"]), added, values.get("end_ids", []))
    try:
        model = base64.b64decode(values["model"], validate=True)
    except (ValueError, TypeError) as error:
        raise DataError(f"the model of this {kind} tokenizer is not in base64: {error}") from error
    return SentencePieceTokenizer(model, kind)
