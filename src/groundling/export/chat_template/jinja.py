"""Write a chat template as Jinja, for `transformers`, vLLM and llama.cpp.

Templates from elsewhere are rendered only by `groundling import`, in a sandboxed process (`probe.py`). The text is
part of the file format: import recognises our exports by it.
"""

from collections.abc import Mapping, Sequence

from groundling.export.chat_template.escapes import replacements
from groundling.text.chat.messages import ROLES
from groundling.text.chat.template import ChatTemplate


def to_jinja(chat: ChatTemplate, names: Mapping[int, str], *, escapes: bool = False) -> str:
    """Return Jinja that renders messages to the text of `chat.prompt` or `chat.render`.

    It raises for an unknown role, and for content that is not text.

    Args:
        chat: the template.
        names: the text of each special id.
        escapes: whether to escape these texts in the content of messages (see `escapes.py`).

    Raises:
        KeyError: a special id has no name.
    """

    def text(segments: Sequence[int | str]) -> str:
        return _literal("".join(names[part] if isinstance(part, int) else part for part in segments))

    replaced = replacements(names.values()) if escapes else []
    content = "message['content'] | trim" if chat.trim else "message['content']"
    lines = []
    if chat.begin:
        lines.append("{{ " + text(chat.begin) + " }}")
    if chat.default_system is not None:
        system_text = chat.default_system.strip() if chat.trim else chat.default_system
        for old, new in replaced:
            system_text = system_text.replace(old, new)
        default = (*chat.opening("system"), system_text, *chat.closing("system"))
        lines.append("{% if not messages or messages[0]['role'] != 'system' %}{{ " + text(default) + " }}{% endif %}")
    lines.append("{% for message in messages %}{% if message['content'] is not string %}")
    lines.append("{{ raise_exception('the content of a message has to be text') }}{% endif %}")
    lines.append("{% set words = " + content + " %}")
    # One statement each: a chain for the hundreds of special tokens of Llama 3 would nest too deep for Python's parser.
    lines += ["{% set words = words | replace(" + f"{_literal(old)}, {_literal(new)}" + ") %}" for old, new in replaced]
    for number, role in enumerate(ROLES):
        lines.append("{% " + ("elif" if number else "if") + f" message['role'] == '{role}'" + " %}")
        opening, closing = text(chat.opening(role)), text(chat.closing(role))
        if role == "assistant" and chat.thinking is not None:
            last = f"{opening} + {text(chat.thinking.nothing)} + words.lstrip('\\n')"
            lines.append("{% if loop.last %}{{ " + f"{last} + {closing}" + " }}{% else %}")
            lines.append("{{ " + f"{opening} + words + {closing}" + " }}{% endif %}")
        else:
            lines.append("{{ " + f"{opening} + words + {closing}" + " }}")
    lines.append("{% else %}{{ raise_exception('no role is called ' + message['role']) }}{% endif %}{% endfor %}")
    generation_prompt = "{{ " + text(chat.opening("assistant")) + " }}"
    if chat.thinking is not None:
        no_reasoning = "{{ " + text(chat.thinking.nothing) + " }}"
        generation_prompt += (
            "{% if enable_thinking is defined and enable_thinking is false %}" + no_reasoning + "{% endif %}"
        )
    lines.append("{% if add_generation_prompt %}" + generation_prompt + "{% endif %}")
    return "".join(lines)


def _literal(text: str) -> str:
    """Return a Jinja string literal, with only the escapes that all renderers support."""
    escapes = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "'" + "".join(escapes.get(character, character) for character in text) + "'"
