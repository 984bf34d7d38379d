"""A chat template as Jinja text, which `transformers`, vLLM and llama.cpp render as we lay a conversation out.

Only written here. What others wrote is never rendered, except in `groundling import`, in a process of its own.
"""

from collections.abc import Mapping, Sequence

from groundling.export.chat_template.escapes import replacements
from groundling.text.chat.messages import ROLES
from groundling.text.chat.template import ChatTemplate


def to_jinja(chat: ChatTemplate, names: Mapping[int, str], *, escapes: bool = False) -> str:
    """The template that renders messages to the text of `chat.prompt` or `chat.render`.

    A role that the template does not know is an error there, and so is content that is no text.

    Args:
        chat: the template.
        names: the text of each special id.
        escapes: whether words that spell one of these are escaped (see `chat_escapes`).

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
        words_of_default = chat.default_system.strip() if chat.trim else chat.default_system
        for there, instead in replaced:
            words_of_default = words_of_default.replace(there, instead)
        default = (*chat.opening("system"), words_of_default, *chat.closing("system"))
        lines.append("{% if not messages or messages[0]['role'] != 'system' %}{{ " + text(default) + " }}{% endif %}")
    lines.append("{% for message in messages %}{% if message['content'] is not string %}")
    lines.append("{{ raise_exception('the content of a message has to be text') }}{% endif %}")
    lines.append("{% set words = " + content + " %}")
    # One by one: in a chain, the hundreds of special tokens of a Llama 3 nest deeper than Python's parser allows.
    lines += [
        "{% set words = words | replace(" + f"{_literal(there)}, {_literal(instead)}" + ") %}"
        for there, instead in replaced
    ]
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
    ask = "{{ " + text(chat.opening("assistant")) + " }}"
    if chat.thinking is not None:
        nothing = text(chat.thinking.nothing)
        ask += "{% if enable_thinking is defined and enable_thinking is false %}{{ " + nothing + " }}{% endif %}"
    lines.append("{% if add_generation_prompt %}" + ask + "{% endif %}")
    return "".join(lines)


def _literal(text: str) -> str:
    """A text as Jinja writes it. The renderers' escapes differ, and only these are known to all."""
    escapes = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "'" + "".join(escapes.get(character, character) for character in text) + "'"
