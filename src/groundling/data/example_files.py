"""Conversations, preference pairs and prompts in the files that people have; the kind of a row is told by its keys.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"instruction": "...", "input": "...", "output": "..."}                 Alpaca's; `input` may be left out
    {"prompt": "...", "chosen": "...", "rejected": "..."}                   each a text or a list of messages
    {"prompt": "..."}                                                       or a .txt with one prompt a line

Other keys of a row (an id, a source) are passed over. Those of a message are not: who writes `weight` or `tool_calls`
means something by it that would get lost.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundling.data.rows import Row, kind_of, lines, rows, text_of
from groundling.errors import DataError
from groundling.text.chat import ROLES, Message, check_messages

Messages = tuple[Message, ...]


@dataclass(frozen=True)
class Conversation:
    """What was said, in turns."""

    messages: Messages
    where: str = field(default="", compare=False)
    """The words that name its place in a file."""

    def to_row(self) -> dict[str, Any]:
        """The row that `read_conversations` reads back."""
        return {"messages": [{"role": message.role, "content": message.content} for message in self.messages]}


@dataclass(frozen=True)
class Preference:
    """Two replies to one prompt, of which one was preferred."""

    prompt: Messages
    """Ends with the user's message."""
    chosen: str
    rejected: str
    where: str = field(default="", compare=False)


def read_conversations(path: Path) -> list[Conversation]:
    """Read chat messages or Alpaca's instructions: JSON lines, or one JSON array.

    Raises:
        DataError: the file cannot be read, or a row is wrong; the message names file and line.
    """
    return list(iterate_conversations(path))


def iterate_conversations(path: Path) -> Iterator[Conversation]:
    """What `read_conversations` returns, one by one."""
    for row in rows(path):
        yield Conversation(_conversation(row), row.where)


def read_preferences(path: Path) -> list[Preference]:
    """Read preference pairs.

    Raises:
        DataError: the file cannot be read, or a row is wrong; the message names file and line.
    """
    return [_preference(row) for row in rows(path)]


def read_prompts(path: Path) -> list[Messages]:
    """Read prompts: rows with `prompt` or `messages`, or a .txt with one a line. Each ends with the user's message.

    Raises:
        DataError: the file cannot be read, or a row is wrong; the message names file and line.
    """
    if ".txt" in path.suffixes:
        prompts = [_of_user(text_of(line, f"{path}:{number}", "the line")) for number, line in lines(path)]
        if not prompts:
            raise DataError(f"{path} is empty; at least one prompt is expected, one a line")
        return prompts
    return [_prompt(_only(row, ("prompt", "messages")), row) for row in rows(path)]


def holds_prompts(path: Path) -> bool:
    """Whether the first row is a prompt alone, or the file is a text with one a line.

    Raises:
        DataError: there is no first row.
    """
    if ".txt" in path.suffixes:
        return True
    first = next(rows(path)).values
    return "prompt" in first and not {"chosen", "rejected"} & first.keys()


def holds_preferences(path: Path) -> bool:
    """Whether the first row is a preference pair.

    Raises:
        DataError: there is no first row.
    """
    first = next(rows(path))
    return "chosen" in first.values or "rejected" in first.values


def _conversation(row: Row) -> Messages:
    if _only(row, ("messages", "instruction")) == "messages":
        found = _messages(row.values["messages"], row.where, "messages")
        check_messages(found, row.where)
        return found
    instruction = text_of(row.values["instruction"], row.where, "instruction")
    given = row.values.get("input")
    given = "" if given is None else text_of(given, row.where, "input")
    _require(row, "output")
    reply = Message("assistant", text_of(row.values["output"], row.where, "output"))
    return (Message("user", f"{instruction}\n\n{given}" if given.strip() else instruction), reply)


def _preference(row: Row) -> Preference:
    _require(row, "chosen", "rejected")
    chosen = row.values["chosen"]
    if "prompt" in row.values:
        prompt = _prompt("prompt", row)
    elif isinstance(chosen, list) and len(chosen) > 1:
        # Both are whole conversations, and what comes before their last messages is the prompt.
        prompt = _messages(chosen, row.where, "chosen")[:-1]
        _require_prompt(prompt, row.where, "chosen, without its last message,")
    else:
        raise DataError(f"{row.where}: there is no prompt; give one, or whole conversations as chosen and rejected")
    replies = [_reply(row.values[name], prompt, row.where, name) for name in ("chosen", "rejected")]
    return Preference(prompt, replies[0], replies[1], row.where)


def _reply(value: Any, prompt: Messages, where: str, name: str) -> str:
    """A reply given as a text, as the assistant's message, or as a whole conversation that begins with the prompt."""
    if not isinstance(value, list):
        return text_of(value, where, name)
    found = _messages(value, where, name)
    if len(found) > 1 and found[: len(prompt)] != prompt:
        raise DataError(f"{where}: {name} does not begin with the prompt's messages; give its last message alone")
    rest = found[len(prompt) :] if len(found) > 1 else found
    if [message.role for message in rest] != ["assistant"]:
        came = ", ".join(message.role for message in rest) or "nothing"
        raise DataError(f"{where}: after the prompt {name} has {came}; one message of the assistant is expected")
    return rest[0].content


def _prompt(key: str, row: Row) -> Messages:
    value = row.values[key]
    if key == "prompt" and isinstance(value, str):
        return _of_user(text_of(value, row.where, key))
    found = _messages(value, row.where, key)
    _require_prompt(found, row.where, key)
    return found


def _of_user(text: str) -> Messages:
    return (Message("user", text),)


def _require_prompt(messages: Messages, where: str, name: str) -> None:
    check_messages(messages, where)
    if messages[-1].role != "user":
        raise DataError(f"{where}: {name} ends with the {messages[-1].role}'s message; the user's is expected")


def _messages(value: Any, where: str, name: str) -> Messages:
    if not isinstance(value, list):
        wanted = "a text or a list of messages" if name != "messages" else "a list of messages"
        raise DataError(f"{where}: {name} is {kind_of(value)}, {wanted} is expected")
    return tuple(_message(item, where, f"{name}[{number}]") for number, item in enumerate(value))


def _message(value: Any, where: str, name: str) -> Message:
    expected = '{"role": ..., "content": ...} is expected'
    if not isinstance(value, dict):
        raise DataError(f"{where}: {name} is {kind_of(value)}, {expected}")
    if sorted(value) != ["content", "role"]:
        raise DataError(f"{where}: {name} has the keys {_keys(value)}; {expected}")
    role, content = value["role"], text_of(value["content"], where, f"{name}.content")
    for known in ROLES:
        if role == known:
            return Message(known, content)
    shown = ascii(role)[:40] if isinstance(role, str) else kind_of(role)
    raise DataError(f"{where}: {name}.role is {shown}; {', '.join(ROLES[:-1])} or {ROLES[-1]} is expected")


def _only(row: Row, names: tuple[str, ...]) -> str:
    """The one of some keys that a row has."""
    found = [name for name in names if name in row.values]
    if len(found) == 1:
        return found[0]
    expected = " or ".join(map(repr, names))
    few = "both are there" if found else f"the keys are {_keys(row.values)}"
    raise DataError(f"{row.where}: {few}; {expected} is expected")


def _require(row: Row, *names: str) -> None:
    missing = [name for name in names if name not in row.values]
    if missing:
        raise DataError(f"{row.where}: {missing[0]!r} is missing; the keys are {_keys(row.values)}")


def _keys(values: dict[str, Any]) -> str:
    shown = ", ".join(ascii(key)[:40] for key in list(values)[:8])
    return shown + (", ..." if len(values) > 8 else "") if values else "none"
