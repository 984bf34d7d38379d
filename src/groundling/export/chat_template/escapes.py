"""Words that spell a special token, kept from becoming one where a conversation is rendered to text.

transformers, vLLM and llama.cpp make one text of a conversation and then look for special tokens in all of it. So our
template breaks each special token in what people say, by two characters that no text holds. The normaliser of
`tokenizer.json` takes them out again, which happens after special tokens have been cut out of a text: the ids are those
of the words. llama.cpp has no normaliser: there the characters stay, and the token stays broken.
"""

from collections.abc import Iterable
from typing import Any

ESCAPE = "\ufdd0"
"""A noncharacter of Unicode: for a program's own use, and not for texts that are exchanged."""
KEPT, PUT_IN = ESCAPE + "\ufdd1", ESCAPE + "\ufdd2"
"""What stands for the escape itself, where words hold one after all; and what breaks a token."""


def replacements(special: Iterable[str]) -> list[tuple[str, str]]:
    """What to replace in words, in this order, so that none of these texts stands in them any longer.

    Args:
        special: texts of special tokens, of two characters at least.
    """
    return [(ESCAPE, KEPT), *((text, text[0] + PUT_IN + text[1:]) for text in special if len(text) > 1)]


def unescaping(normalizer: Any) -> dict[str, Any]:
    """The normaliser of `tokenizer.json` that undoes `replacements`, and then does what another one did."""
    steps = [
        {"type": "Replace", "pattern": {"String": there}, "content": again}
        for there, again in ((PUT_IN, ""), (KEPT, ESCAPE))
    ]
    return {"type": "Sequence", "normalizers": [*steps, *([] if normalizer is None else [normalizer])]}


def without_unescaping(normalizer: Any) -> Any:
    """Undo `unescaping`; what is no result of it is returned as it is."""
    others = normalizer["normalizers"][2:] if (normalizer or {}).get("type") == "Sequence" else []
    other = others[0] if others else None
    return other if normalizer == unescaping(other) else normalizer
