"""A note in an exported `config.json` that lists the additions, so that import can undo them."""

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
"""Key in `config.json`."""


@dataclass(frozen=True, kw_only=True)
class ExportNote:
    """Additions to a model and its tokenizer."""

    texts: dict[str, int]
    """Special tokens: text to id."""
    added_rows: int = 0
    """Number of rows added to the model."""
    like_row: int | None = None
    """Row that they copy."""
    chat: ChatTemplate | None = None
    """Chat template."""

    def to_json(self) -> dict[str, Any]:
        """Return the note as plain data."""
        return {
            "texts": self.texts,
            "added_rows": self.added_rows,
            "like_row": self.like_row,
            "chat": None if self.chat is None else self.chat.to_json(),
        }


def read_note(config: Mapping[str, Any]) -> ExportNote | None:
    """Read the note of a `config.json`; None if there is none of ours."""
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
    """Return the tokenizer's JSON from before `with_additions`."""
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
    """Return the chat template of an exported folder; None for a base model.

    Args:
        tokenizer: without the additions.
        chat: the chat template.
        texts: the tokens added to the tokenizer.
    """
    return None if chat is None else to_jinja(chat, special_names(tokenizer, texts), escapes=True)
