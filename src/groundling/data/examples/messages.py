"""Messages in a row of JSON, in the formats of OpenAI and ShareGPT.

Null values and empty lists of tools or images count as absent. A key that changes the training target and is not
supported raises an error instead of being ignored.
"""

from collections.abc import Mapping
from typing import Any

from groundling.data.examples.jsonl import Row, kind_of, text_of
from groundling.errors import DataError
from groundling.text.chat.messages import ROLES, Message, Role, check_messages

Messages = tuple[Message, ...]
SHAREGPT: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
}
"""ShareGPT's speakers and their roles."""
NOT_READ = (
    *("tools", "functions", "tool_calls", "function_call", "tool_choice"),
    *("image", "images", "video", "videos", "audio", "audios", "documents"),
)
"""Keys of a row that cannot be trained on here."""
INPUTS, OUTPUTS = ("input", "context", "query"), ("output", "response")
"""Names of the parts of an instruction, in Alpaca and Dolly."""
SYSTEMS = ("system", "system_prompt")
"""Names of a system prompt beside a prompt."""
NOTHING: tuple[Any, ...] = ([], {})
EMPTY: tuple[Any, ...] = ("", "[]", "{}", *NOTHING)
VERBATIM = ("role", "content", "from", "value")
"""Keys of a message whose text is taken literally, even "" or "{}"."""


def with_keys(row: Row) -> Row:
    """Return the row without null values.

    Raises:
        DataError: it has an unsupported key.
    """
    values = {key: value for key, value in row.values.items() if value is not None}
    for key in NOT_READ:
        if values.get(key, "") not in EMPTY:
            raise DataError(f"{row.where}: {key!r} is not supported, only messages of texts are; leave such rows out")
    return Row(row.where, values)


def messages_of(value: Any, where: str, name: str) -> Messages:
    """Return a list of messages, or a single one as a list.

    Raises:
        DataError: it is something else; `name` is its key in the row.
    """
    if isinstance(value, dict) and name not in LISTS:
        return (_message(value, where, name),)
    if not isinstance(value, list):
        wanted = "a list of messages" if name in LISTS else "a text or a list of messages"
        raise DataError(f"{where}: {name} is {kind_of(value)}, {wanted} is expected")
    return tuple(_message(item, where, f"{name}[{number}]") for number, item in enumerate(value))


LISTS = ("messages", "conversations", "conversation")
"""Keys of whole conversations."""


def _message(value: Any, where: str, name: str) -> Message:
    expected = '{"role": ..., "content": ...} is expected'
    if not isinstance(value, dict):
        raise DataError(f"{where}: {name} is {kind_of(value)}, {expected}")
    values = {key: item for key, item in value.items() if item not in (None, *(NOTHING if key in VERBATIM else EMPTY))}
    if "role" in value and "from" not in values:
        values["role"] = value["role"]  # report null as a missing role
    if sorted(values) == ["from", "value"]:
        return Message(_speaker(values["from"], where, name), text_of(values["value"], where, f"{name}.value"))
    if sorted(values) != ["content", "role"]:
        missing = [key for key in ("role", "content") if key in value and value[key] is None]
        null = f" ({missing[0]} is null)" if missing else ""
        raise DataError(f"{where}: {name} has the keys {keys_of(values)}{null}; {expected}")
    role, content = values["role"], text_of(values["content"], where, f"{name}.content")
    for known in ROLES:
        if role == known:
            return Message(known, content)
    shown = ascii(role)[:40] if isinstance(role, str) else kind_of(role)
    raise DataError(f"{where}: {name}.role is {shown}; {', '.join(ROLES[:-1])} or {ROLES[-1]} is expected")


def _speaker(name: Any, where: str, place: str) -> Role:
    role = SHAREGPT.get(name) if isinstance(name, str) else None
    if role is None:
        shown = ascii(name)[:40] if isinstance(name, str) else kind_of(name)
        raise DataError(f"{where}: {place}.from is {shown}; one of {', '.join(SHAREGPT)} is expected")
    return role


def with_context(row: Row, messages: Messages) -> Messages:
    """Prepend a row's system prompt and earlier turns to messages.

    Raises:
        DataError: these are invalid, or there are two system prompts.
    """
    before = _history(row)
    given = {name: text_of(row.values[name], row.where, name) for name in SYSTEMS if name in row.values}
    given = {name: text for name, text in given.items() if text.strip()}
    if len(set(given.values())) > 1:
        raise DataError(f"{row.where}: {' and '.join(map(repr, given))} are both there and differ; one is expected")
    if not given:
        return before + messages
    name, text = next(iter(given.items()))
    message = Message("system", text)
    if messages[:1] == (message,) and not before:
        return messages
    if any(other.role == "system" for other in before + messages):
        raise DataError(f"{row.where}: {name!r} and a system message are both there; one of them is expected")
    return (message, *before, *messages)


def _history(row: Row) -> Messages:
    value = row.values.get("history", [])
    expected = "a list of pairs of texts is expected: the user's message and the reply"
    if not isinstance(value, list):
        raise DataError(f"{row.where}: history is {kind_of(value)}, {expected}")
    found: list[Message] = []
    for number, pair in enumerate(value):
        name = f"history[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"{row.where}: {name} is {kind_of(pair)}; {expected}")
        texts = [text_of(text, row.where, f"{name}[{place}]") for place, text in enumerate(pair)]
        found += [Message("user", texts[0]), Message("assistant", texts[1])]
    return tuple(found)


def require_prompt(messages: Messages, where: str, name: str) -> None:
    """Check that messages are a valid conversation that ends with the user's message.

    Raises:
        DataError: they are not.
    """
    check_messages(messages, where)
    if messages[-1].role != "user":
        raise DataError(f"{where}: {name} ends with the {messages[-1].role}'s message; the user's is expected")


def keys_of(values: Mapping[str, Any]) -> str:
    """Format keys for an error message."""
    shown = ", ".join(ascii(key)[:40] for key in list(values)[:8])
    return shown + (", ..." if len(values) > 8 else "") if values else "none"


def require_no_input(row: Row, beside: str | None) -> None:
    """Refuse an `input` or `context` without an instruction, which would be dropped.

    Raises:
        DataError: it is there, with or without the key `beside`.
    """
    for name in INPUTS:
        if row.values.get(name, "") in EMPTY:
            continue
        if beside is None:
            raise DataError(f"{row.where}: there is {name!r} and no prompt; rename it to 'prompt'")
        advice = "put it into the user's message, or remove the key"
        raise DataError(f"{row.where}: {name!r} beside {beside!r} is not supported; {advice}")


def instruction_of(row: Row) -> Messages:
    """Return the user's message: an instruction and its input.

    Raises:
        DataError: one of them is not text.
    """
    instruction = text_of(row.values["instruction"], row.where, "instruction")
    given = one_text(row, INPUTS, default="")
    parts = [part for part in (instruction, given) if part.strip()] or [instruction]
    return of_user("\n\n".join(parts))


def one_text(row: Row, names: tuple[str, ...], default: str | None = None) -> str:
    """Return the text under whichever one of some names a row has.

    Raises:
        DataError: there is none and no default, or there are two.
    """
    there = [name for name in names if name in row.values]
    full = [name for name in there if row.values[name] != ""]
    if len(full) > 1:
        raise DataError(f"{row.where}: {full[0]!r} and {full[1]!r} are both there; one of them is expected")
    if not there and default is not None:
        return default
    name = (full or there or names)[0]
    require_keys(row, name)
    return text_of(row.values[name], row.where, name)


def of_user(text: str) -> Messages:
    """Return a conversation with a single user message."""
    return (Message("user", text),)


def require_keys(row: Row, *names: str) -> None:
    """Check that a row has some keys.

    Raises:
        DataError: one is missing.
    """
    missing = [name for name in names if name not in row.values]
    if missing:
        raise DataError(f"{row.where}: {missing[0]!r} is missing or null; the keys are {keys_of(row.values)}")
