"""Messages to ids, and which of them the assistant said.

A conversation is laid out as   <user> words <end> <assistant> words <end> ...   (and <system> before, where there is
one). Structure is ids of its own, above all that the tokenizer knows; words go through `Tokenizer.encode`, which takes
all of a text for ordinary text. So nothing that somebody writes can end a turn or begin another.

What is learned from a conversation is what the assistant said, with the end of each reply: it is never padding, and
so a model that is trained on it learns to stop.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from groundling.errors import DataError
from groundling.text.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Message:
    """What one side said."""

    role: Role
    content: str


class Rendered(NamedTuple):
    """A conversation as ids."""

    ids: list[int]
    said: list[bool]
    """Of each id, whether the assistant said it: its words, and the end of its replies."""


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """The ids of a conversation's structure."""

    end: int
    """Ends each message."""
    system: int
    user: int
    assistant: int

    def __post_init__(self) -> None:
        ids = self.special_ids()
        if len(set(ids)) != len(ids) or not all(type(id) is int and id >= 0 for id in ids):
            raise DataError(f"the ids of a chat format have to be different whole numbers, not {ids}")
        if self.end != min(ids):
            raise DataError(
                f"the end has to be the lowest id of a chat format, so that replies can be told from roles: {ids}"
            )

    @classmethod
    def after(cls, vocab_size: int) -> "ChatFormat":
        """The ids that follow on a tokenizer's. The end comes first: a reply is made of ids up to it."""
        return cls(end=vocab_size, system=vocab_size + 1, user=vocab_size + 2, assistant=vocab_size + 3)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ChatFormat":
        """Take what `to_json` gave.

        Raises:
            DataError: this is no chat format.
        """
        names = ("end", *ROLES)
        if not isinstance(values, dict) or sorted(values) != sorted(names):
            raise DataError(f"a chat format has the ids of {', '.join(names)}, and nothing else")
        return cls(**values)

    def to_json(self) -> dict[str, int]:
        """The ids by name."""
        return dataclasses.asdict(self)

    def special_ids(self) -> tuple[int, ...]:
        """All ids that are structure."""
        return (self.end, self.system, self.user, self.assistant)

    def n_sayable(self) -> int:
        """Ids below this may be part of a reply: all words, and its end."""
        return self.end + 1

    def role_id(self, role: Role) -> int:
        """The id that a message of this role begins with."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]

    def message(self, message: Message, tokenizer: Tokenizer) -> list[int]:
        """A message as ids, with its beginning and its end.

        Raises:
            DataError: the tokenizer cannot say it.
        """
        return [self.role_id(message.role), *tokenizer.encode(message.content), self.end]

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
        """A whole conversation.

        Raises:
            DataError: the tokenizer cannot say it.
        """
        ids: list[int] = []
        said: list[bool] = []
        for message in messages:
            new = self.message(message, tokenizer)
            ids += new
            said += [False, *[message.role == "assistant"] * (len(new) - 1)]
        return Rendered(ids, said)

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """A conversation in which the assistant is to speak next: a model goes on from these ids.

        Raises:
            DataError: the tokenizer cannot say it.
        """
        return [*self.render(messages, tokenizer).ids, self.assistant]


class WrongTurn(NamedTuple):
    """A message that is not the one whose turn it is; as a text: "is the user's where ..."."""

    number: int
    """Of the message, from 0."""
    role: Role | None
    """None: there is no such message."""
    expected: Role

    def __str__(self) -> str:
        came = "is missing" if self.role is None else f"is the {self.role}'s"
        return (
            f"{came} where the {self.expected}'s is expected; "
            "after at most one system message, user and assistant speak in turns"
        )


def wrong_turn(messages: Sequence[Message]) -> WrongTurn | None:
    """The first message out of turn: there may be a system message, then the user and the assistant in turns."""
    n_system = int(bool(messages) and messages[0].role == "system")
    for number, message in enumerate(messages[n_system:], n_system):
        expected: Role = ("user", "assistant")[(number - n_system) % 2]
        if message.role != expected:
            return WrongTurn(number, message.role, expected)
    return WrongTurn(n_system, None, "user") if len(messages) == n_system else None


def check_messages(messages: Sequence[Message], where: str) -> None:
    """Check that a conversation is one: perhaps a system message, then the user and the assistant in turns.

    Raises:
        DataError: it is not; the line begins with `where`.
    """
    if not messages:
        raise DataError(f"{where}: there are no messages")
    wrong = wrong_turn(messages)
    if wrong is not None and wrong.role is None:
        raise DataError(f"{where}: there is only a system message")
    if wrong is not None:
        raise DataError(f"{where}: message {wrong.number + 1} {wrong}")
