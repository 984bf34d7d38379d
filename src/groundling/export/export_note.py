"""What an exported folder's `config.json` says of what was added for other programs, and how import undoes it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from groundling.errors import DataError
from groundling.export.additions import special_names
from groundling.export.chat_template.escapes import without_unescaping
from groundling.export.chat_template.jinja import to_jinja
from groundling.export.hf_tokenizer import NO_TOKEN
from groundling.text.chat.serialize import template_from_json
from groundling.text.chat.template import ChatTemplate
from groundling.text.tokenizer import Tokenizer

EXPORT_NOTE = "groundling_export"
"""The key of `config.json`."""


@dataclass(frozen=True, kw_only=True)
class ExportNote:
    """What was added to a model and its tokenizer."""

    texts: dict[str, int]
    """Special tokens: text to id."""
    added_rows: int = 0
    """How many rows the exported model has more than ours."""
    like_row: int | None = None
    """The row that they are copies of."""
    chat: ChatTemplate | None = None
    """How a conversation is laid out."""

    def to_json(self) -> dict[str, Any]:
        """The note as plain data."""
        return {
            "texts": self.texts,
            "added_rows": self.added_rows,
            "like_row": self.like_row,
            "chat": None if self.chat is None else self.chat.to_json(),
        }


def read_note(config: Mapping[str, Any]) -> ExportNote | None:
    """The note in a `config.json`, or None: an export of before, or of others; or one that is no note of ours."""
    values = config.get(EXPORT_NOTE)
    if not isinstance(values, dict):
        return None
    texts: Any = values.get("texts")
    added: Any = values.get("added_rows")
    like, chat = values.get("like_row"), values.get("chat")
    are_texts = isinstance(texts, dict) and all(type(id) is int and id >= 0 for id in texts.values())
    are_rows = type(added) is int and added >= 0 and (type(like) is int and like >= 0 if added else like is None)
    if not are_texts or not are_rows:
        return None
    try:
        return ExportNote(
            texts=dict(sorted(texts.items(), key=lambda entry: entry[1])),
            added_rows=added,
            like_row=like,
            chat=None if chat is None else template_from_json(chat),
        )
    except DataError:
        return None


def without_additions(spec: Mapping[str, Any], note: ExportNote) -> dict[str, Any]:
    """The tokenizer's JSON before `with_additions`."""
    ours = {(text, id) for text, id in note.texts.items()}
    model = dict(spec["model"])
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {text: id for text, id in model["vocab"].items() if (text, id) not in ours}
    if model.get("unk_token") in note.texts:
        model["unk_token"] = NO_TOKEN
    return {
        **spec,
        "model": model,
        "added_tokens": [token for token in spec["added_tokens"] if (token["content"], token["id"]) not in ours],
        "normalizer": spec["normalizer"] if note.chat is None else without_unescaping(spec["normalizer"]),
    }


def chat_template(tokenizer: Tokenizer, chat: ChatTemplate | None, texts: Mapping[str, int]) -> str | None:
    """The template of an exported folder; None of a model that does not chat.

    Args:
        tokenizer: without what is added.
        chat: how a conversation is laid out.
        texts: what is added to the tokenizer.
    """
    return None if chat is None else to_jinja(chat, special_names(tokenizer, texts), escapes=True)
