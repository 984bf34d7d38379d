"""Escape the spelling of special tokens in the content of messages.

transformers, vLLM and llama.cpp render a conversation to one text and then match special tokens anywhere in it. So our
template inserts two characters that no text contains into each special token spelled in a message. The normaliser of
`tokenizer.json` removes them after special tokens have been matched, so the ids are those of the original content.
llama.cpp does not normalise: the inserted characters remain, and the token stays broken.
"""

from collections.abc import Iterable
from typing import Any

ESCAPE = "\ufdd0"
"""A Unicode noncharacter: reserved for internal use of programs, so it does not occur in text."""
LITERAL, INSERTED = ESCAPE + "\ufdd1", ESCAPE + "\ufdd2"
"""The escape of `ESCAPE` itself, should a message contain it; and what is inserted into a special token."""


def replacements(special: Iterable[str]) -> list[tuple[str, str]]:
    """Return the replacements, in order, that remove the spelling of special tokens from a text: (old, new).

    Args:
        special: texts of special tokens; those of a single character are not escaped.
    """
    return [(ESCAPE, LITERAL), *((text, text[0] + INSERTED + text[1:]) for text in special if len(text) > 1)]


def unescaping(normalizer: Any) -> dict[str, Any]:
    """Return a normaliser of `tokenizer.json` that undoes `replacements`, and then applies `normalizer`, if any."""
    steps = [
        {"type": "Replace", "pattern": {"String": escaped}, "content": original}
        for escaped, original in ((INSERTED, ""), (LITERAL, ESCAPE))
    ]
    return {"type": "Sequence", "normalizers": [*steps, *([] if normalizer is None else [normalizer])]}


def without_unescaping(normalizer: Any) -> Any:
    """Undo `unescaping`; return any other normaliser unchanged."""
    others = normalizer["normalizers"][2:] if (normalizer or {}).get("type") == "Sequence" else []
    other = others[0] if others else None
    return other if normalizer == unescaping(other) else normalizer
