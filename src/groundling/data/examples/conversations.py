"""Read conversations, preference pairs and prompts in common formats; a row's keys tell its kind.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}     ShareGPT's
    {"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["...", "..."]]}   Alpaca's
    {"prompt": "...", "completion": "..."}                                  TRL's; each a text or a list of messages
    {"prompt": "...", "chosen": "...", "rejected": "..."}                   or without a prompt, if both begin with it
    {"prompt": "...", "completion": "...", "label": true}                   KTO's: one reply, and whether it is good
    {"prompt": "..."}                                                       or a .txt with one prompt a line

`system` (or `system_prompt`) and `history` may accompany any prompt. Other keys of a row (an id, a source) are ignored.
Keys that change the conversation (`tools`, `images`, `context`) are errors, as are keys of a message besides role and
content.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundling.data.examples.jsonl import Row, lines, rows, text_of
from groundling.data.examples.messages import (
    LISTS,
    OUTPUTS,
    Messages,
    instruction_of,
    keys_of,
    messages_of,
    of_user,
    one_text,
    require_keys,
    require_no_input,
    require_prompt,
    with_context,
    with_keys,
)
from groundling.data.examples.shared_prompts import split_shared
from groundling.errors import DataError
from groundling.system.progress import Progress
from groundling.text.chat.messages import Message, check_messages

LABELS = ("label", "kto_tag")
"""Names of the label, in TRL and LLaMA-Factory."""
PREFERENCES = "; preferences are for groundling dpo and groundling reward: --preferences"
IS_LABEL = (True, False, "true", "false", "True", "False")
"""Values of a binary label; 1 and 0 are equal to the first two."""


@dataclass(frozen=True)
class Conversation:
    """A conversation of messages, to train on."""

    messages: Messages
    where: str = field(default="", compare=False)
    """File and line, for errors."""
    only_last: bool = False
    """Train on the last reply only; earlier replies belong to the prompt."""

    def to_row(self) -> dict[str, Any]:
        """Return the row that `read_conversations` reads back."""
        rows = [{"role": message.role, "content": message.content} for message in self.messages]
        return {"prompt": rows[:-1], "completion": rows[-1:]} if self.only_last else {"messages": rows}


@dataclass(frozen=True)
class Preference:
    """Two replies to one prompt, one of them preferred."""

    prompt: Messages
    """Ends with the user's message."""
    chosen: str
    rejected: str
    where: str = field(default="", compare=False)


def read_conversations(path: Path) -> list[Conversation]:
    """Read conversations, instructions or prompts with completions: JSON lines, or one JSON array.

    Raises:
        DataError: the file cannot be read, or a row is invalid; the message names file and line.
    """
    with Progress(f"reading {path}"):
        return list(iterate_conversations(path))


def iterate_conversations(path: Path) -> Iterator[Conversation]:
    """Like `read_conversations`, one at a time."""
    for row in map(with_keys, rows(path)):
        for name in LABELS:
            if row.values.get(name) in IS_LABEL:
                raise DataError(
                    f"{row.where}: {name!r} tells good replies from bad ones; train a reward model on such rows "
                    "(groundling reward --preferences), or keep the good ones and remove the key"
                )
        yield conversation_of(row)


def read_preferences(path: Path) -> list[Preference]:
    """Read preference pairs.

    Raises:
        DataError: the file cannot be read, or a row is invalid; the message names file and line.
    """
    with Progress(f"reading {path}"):
        return [_preference(with_keys(row)) for row in rows(path)]


def read_prompts(path: Path) -> list[Messages]:
    """Read prompts: rows with `prompt`, `messages` or `instruction`, or a .txt with one prompt a line.

    Each ends with the user's message.

    Raises:
        DataError: the file cannot be read, or a row is invalid; the message names file and line.
    """
    with Progress(f"reading {path}"):
        if ".txt" in path.suffixes:
            prompts = [of_user(text_of(line, f"{path}:{number}", "the line")) for number, line in lines(path)]
            if not prompts:
                raise DataError(f"{path} is empty; at least one prompt is expected, one a line")
            return prompts
        return [_prompt(row, _only(row, ("prompt", *LISTS, "instruction"))) for row in map(with_keys, rows(path))]


def holds_prompts(path: Path) -> bool:
    """Whether the first row is a prompt alone, or the file is a .txt with one prompt a line.

    Raises:
        DataError: there is no first row.
    """
    if ".txt" in path.suffixes:
        return True
    first = first_keys(path)
    return "prompt" in first and not {"chosen", "rejected", "completion", *LISTS} & first


def holds_preferences(path: Path) -> bool:
    """Whether the first row is a preference pair.

    Raises:
        DataError: there is no first row.
    """
    return bool({"chosen", "rejected"} & first_keys(path))


def first_keys(path: Path) -> set[str]:
    """Return the keys of the first row.

    Raises:
        DataError: there is no first row.
    """
    return set(with_keys(next(rows(path))).values)


def conversation_of(row: Row) -> Conversation:
    """Convert a row with its keys normalised.

    Raises:
        DataError: the row is not a conversation.
    """
    values, where = row.values, row.where
    if "prompt" in values and "completion" in values and not {*LISTS, "instruction"} & values.keys():
        prompt = _prompt(row, "prompt")
        reply = Message("assistant", _reply(values["completion"], prompt, where, "completion"))
        return Conversation((*prompt, reply), where, only_last=True)
    kind = _only(row, (*LISTS, "instruction"))
    if kind == "instruction":
        messages = (*instruction_of(row), Message("assistant", one_text(row, OUTPUTS)))
    else:
        messages = messages_of(values[kind], where, kind)
        _require_no_other_prompt(row, messages, kind)
        require_no_input(row, kind)
    messages = with_context(row, messages)
    check_messages(messages, where)
    if messages[-1].role == "user" and {"chosen", "rejected"} & values.keys():
        raise DataError(f"{where}: there is no reply, but 'chosen' and 'rejected'{PREFERENCES}")
    return Conversation(messages, where)


def _require_no_other_prompt(row: Row, messages: Messages, kind: str) -> None:
    """Refuse a `prompt` that differs from the first question; some data sets repeat the question there."""
    prompt = row.values.get("prompt")
    users = [message.content for message in messages if message.role == "user"]
    if isinstance(prompt, list):
        given = messages_of(prompt, row.where, "prompt")
        is_known = messages[: len(given)] == given
    else:
        is_known = prompt is None or prompt in users[:1]
    if not is_known or "completion" in row.values:
        other = "completion" if "completion" in row.values else "prompt"
        raise DataError(f"{row.where}: {kind!r} and {other!r} are both there and differ; one of them is expected")


def _preference(row: Row) -> Preference:
    require_keys(row, "chosen", "rejected")
    chosen, rejected = row.values["chosen"], row.values["rejected"]
    named = [name for name in ("prompt", "question", "instruction", *LISTS) if name in row.values]
    if named:
        prompt = _prompt_of_pair(row, named)
    elif isinstance(chosen, list) and len(chosen) > 1:
        # Both are whole conversations; everything before their last messages is the prompt.
        prompt = with_context(row, messages_of(chosen, row.where, "chosen")[:-1])
        require_prompt(prompt, row.where, "chosen, without its last message,")
    elif isinstance(chosen, str) and isinstance(rejected, str):
        texts = [text_of(row.values[name], row.where, name) for name in ("chosen", "rejected")]
        require_no_input(row, None)
        shared = split_shared(texts[0], texts[1], row.where)
        return Preference(with_context(row, shared.prompt), shared.chosen, shared.rejected, row.where)
    else:
        raise DataError(f"{row.where}: there is no prompt; give one, or whole conversations as chosen and rejected")
    replies = [_reply(row.values[name], prompt, row.where, name) for name in ("chosen", "rejected")]
    return Preference(prompt, replies[0], replies[1], row.where)


def _prompt_of_pair(row: Row, named: list[str]) -> Messages:
    """Return the prompt of a pair; `messages` beside it may only repeat it, with or without the chosen reply."""
    prompt = _prompt(row, named[0])
    for other in named[1:]:
        value = row.values[other]
        given = of_user(value) if isinstance(value, str) else messages_of(value, row.where, other)
        chosen = row.values["chosen"]
        reply = (Message("assistant", chosen),) if isinstance(chosen, str) else messages_of(chosen, row.where, "chosen")
        if given not in (prompt, prompt + reply, reply):
            raise DataError(f"{row.where}: {named[0]!r} and {other!r} are both there and differ; one is expected")
    return prompt


def _reply(value: Any, prompt: Messages, where: str, name: str) -> str:
    """Return a reply from a text, the assistant's message, or a whole conversation that starts with the prompt."""
    if isinstance(value, str) or not isinstance(value, (list, dict)):
        return text_of(value, where, name)
    found = messages_of(value, where, name)
    if len(found) > 1 and found[: len(prompt)] != prompt:
        without = prompt[1:] if prompt[0].role == "system" else prompt
        if found[: len(without)] != without:
            raise DataError(f"{where}: {name} does not begin with the prompt's messages; give its last message alone")
        prompt = without
    rest = found[len(prompt) :] if len(found) > 1 else found
    if [message.role for message in rest] != ["assistant"]:
        came = ", ".join(message.role for message in rest) or "nothing"
        raise DataError(f"{where}: after the prompt {name} has {came}; one message of the assistant is expected")
    return rest[0].content


def _prompt(row: Row, key: str) -> Messages:
    value = row.values[key]
    if key == "instruction":
        found = instruction_of(row)
    elif key in ("prompt", "question") and isinstance(value, str):
        found = of_user(text_of(value, row.where, key))
    else:
        found = messages_of(value, row.where, key)
    if key != "instruction":
        require_no_input(row, key)
    found = with_context(row, found)
    require_prompt(found, row.where, key)
    return found


def _only(row: Row, names: tuple[str, ...]) -> str:
    """Return which one of some keys a row has."""
    found = [name for name in names if name in row.values]
    if len(found) == 1:
        return found[0]
    expected = "'prompt' or 'messages'" if names[0] == "prompt" else "'messages' or 'instruction'"
    if found:
        raise DataError(f"{row.where}: {found[0]!r} and {found[1]!r}: both are there; {expected} is expected")
    hint = ""
    if {"chosen", "rejected"} & row.values.keys():
        hint = PREFERENCES
    elif names[0] != "prompt":
        expected += ", or 'conversations', or 'prompt' with 'completion',"
    raise DataError(f"{row.where}: the keys are {keys_of(row.values)}; {expected} is expected{hint}")
