"""Replies with labels, as KTO takes them."""

from dataclasses import dataclass, field
from pathlib import Path

from groundling.data.examples.conversations import IS_LABEL, LABELS, conversation_of, first_keys
from groundling.data.examples.jsonl import Row, kind_of, rows
from groundling.data.examples.messages import Messages, require_keys, with_keys
from groundling.errors import DataError
from groundling.system.progress import Progress


@dataclass(frozen=True)
class Labelled:
    """A reply to a prompt, and whether it is good."""

    prompt: Messages
    """Ends with the user's message."""
    reply: str
    is_good: bool
    where: str = field(default="", compare=False)


def read_labelled(path: Path) -> list[Labelled]:
    """Read replies with labels.

    Raises:
        DataError: the file cannot be read, or a row is invalid; the message names file and line.
    """
    with Progress(f"reading {path}"):
        return [_labelled(with_keys(row)) for row in rows(path)]


def holds_labels(path: Path) -> bool:
    """Whether the first row is a reply with a label.

    Raises:
        DataError: there is no first row.
    """
    first = first_keys(path)
    return bool(set(LABELS) & first) and not {"chosen", "rejected"} & first


def _labelled(row: Row) -> Labelled:
    name = next((name for name in LABELS if name in row.values), LABELS[0])
    require_keys(row, name)
    label = row.values[name]
    if label not in IS_LABEL:
        raise DataError(f"{row.where}: {name} is {kind_of(label)}, true or false is expected")
    conversation = conversation_of(row)
    *prompt, reply = conversation.messages
    if reply.role != "assistant":
        raise DataError(f"{row.where}: it ends with the {reply.role}'s message; the assistant's is expected")
    return Labelled(tuple(prompt), reply.content, label in (True, "true", "True"), row.where)
