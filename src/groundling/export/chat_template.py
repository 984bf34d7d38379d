"""A conversation's layout as the Jinja template that transformers, vLLM and llama.cpp render.

They make one text of a conversation and then look for special tokens in all of it, so that words which spell one
would become structure. So the template escapes what people say: a character that no text holds is put into whatever
looks like the beginning of a special token. The normaliser of `tokenizer.json` takes it out again, after special
tokens have been cut out of the text. What llama.cpp reads has no normaliser: there the character stays.
"""

from collections.abc import Mapping
from typing import Any

from groundling.text.chat import ROLES

ESCAPE = "\ufdd0"
"""A noncharacter of Unicode: reserved for a program's own use, and never to be found in text that is exchanged."""
KEPT, PUT_IN = ESCAPE + "0", ESCAPE + "1"
"""What stands for the escape itself, where a text has one after all; and what is put into the beginning of a token."""
BEGINNING = "<|"
"""All special tokens of ours begin so."""


def chat_template(texts: Mapping[str, str]) -> str:
    """The template.

    Args:
        texts: what each part of the structure reads: end, system, user, assistant.
    """
    starts = ", ".join(f"'{role}': '{texts[role]}'" for role in ROLES)
    escaped = f"message['content'] | replace('{ESCAPE}', '{KEPT}') | replace('<|', '<{PUT_IN}|')"
    return (
        f"{{%- set starts = {{{starts}}} -%}}\n"
        "{%- for message in messages -%}\n"
        "    {%- if message['role'] not in starts or message['content'] is not string -%}\n"
        "        {{- raise_exception('a message has a role (system, user or assistant) and text as its content') -}}\n"
        "    {%- endif -%}\n"
        f"    {{{{- starts[message['role']] + ({escaped}) + '{texts['end']}' -}}}}\n"
        "{%- endfor -%}\n"
        f"{{%- if add_generation_prompt -%}}{{{{- '{texts['assistant']}' -}}}}{{%- endif -%}}\n"
    )


def unescaping(normalizer: Any) -> dict[str, Any]:
    """The normaliser of `tokenizer.json` that undoes the template's escapes, and then does what another one did."""
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
