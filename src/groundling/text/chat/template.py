"""Messages to ids, and which of them the assistant said.

A conversation is laid out as   <user> words <end> <assistant> words <end> ...   (and <system> before, where there is
one). Structure is ids of its own, above all that the tokenizer knows; words go through `Tokenizer.encode`, which takes
all of a text for ordinary text. So nothing that somebody writes can end a turn or begin another.

Imported models have templates of their own. `ChatTemplate` is what all templates have in common: words between an
opening and a closing that depend on the role. `RoleTokens` is ours, and `WrappedTurns` (`wrapped_turns.py`) covers
ChatML and its like. A bundle stores a template as data, by its name and parameters; no template is ever code.

What is learned from a conversation is what the assistant said, with the end of each reply: it is never padding, and
so a model that is trained on it learns to stop.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from groundling.text.chat.messages import ROLES, Message, Role
from groundling.text.tokenizer import Tokenizer

Segments = tuple[int | str, ...]
"""A piece of a template: ids of special tokens, and ordinary text between them."""


class Rendered(NamedTuple):
    """A conversation as ids."""

    ids: list[int]
    said: list[bool]
    """Of each id, whether the assistant said it: its words, and the end of its replies."""


class Turn(NamedTuple):
    """A message as ids: opening, words, closing."""

    role: Role
    ids: list[int]
    said: list[bool]
    n_opening: int
    """How many ids stand before the words."""
    n_closing: int
    """How many ids stand after the words."""

    def without_front(self, n: int) -> "Turn":
        """The turn without the first `n` ids of its words, or without all of them."""
        n = min(n, len(self.ids) - self.n_opening - self.n_closing)
        kept = [*range(self.n_opening), *range(self.n_opening + n, len(self.ids))]
        return self._replace(ids=[self.ids[i] for i in kept], said=[self.said[i] for i in kept])


@dataclass(frozen=True)
class Thinking:
    """The tags between which a model thinks before it replies."""

    opening: int
    closing: int
    nothing: Segments
    """What stands before a reply without thoughts: both tags, and the blank lines that belong to them."""


class ChatTemplate(ABC):
    """A chat template as data: how a conversation is laid out in ids."""

    template: ClassVar[str]
    """The template's name in `chat.json`."""

    end: int
    """The id that ends a reply."""
    begin: Segments = ()
    """Stands before the first message."""
    default_system: str | None = None
    """The system message of a conversation that has none of its own."""
    trim: bool = False
    """Whether white space around a message's words is dropped."""
    thinking: Thinking | None = None
    """The tags of a model that thinks before it replies."""

    @abstractmethod
    def opening(self, role: Role) -> Segments:
        """What stands before the words of a role; begins with a special id."""

    @abstractmethod
    def closing(self, role: Role) -> Segments:
        """What stands after the words of a role; begins with a special id."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The template by its name and parameters; `from_json` reads it."""

    def marks(self) -> set[int]:
        """The ids that begin and end messages."""
        segments = [self.begin, *(part for role in ROLES for part in (self.opening(role), self.closing(role)))]
        return {part for parts in segments for part in parts if isinstance(part, int)}

    def special_ids(self) -> tuple[int, ...]:
        """All ids that are structure, each once, ascending: marks, and the tags of thoughts."""
        tags = () if self.thinking is None else (self.thinking.opening, self.thinking.closing)
        return tuple(sorted({*self.marks(), *tags}))

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Ids that end a reply: the template's own end first, then the tokenizer's ends of text."""
        return tuple(dict.fromkeys((self.end, *tokenizer.end_ids)))

    def n_reply_ids(self, tokenizer: Tokenizer) -> int:
        """Ids below this may be part of a reply: all words, and its end."""
        return max(tokenizer.vocab_size, self.end + 1)

    def opening_ids(self, role: Role, tokenizer: Tokenizer) -> list[int]:
        """The ids that a message of this role begins with; after the assistant's, a model replies."""
        return to_ids(self.opening(role), tokenizer)

    def turn(self, message: Message, tokenizer: Tokenizer) -> Turn:
        """A message as ids.

        Text of the opening and the words after it are encoded as one text, as others do that render a template to text.

        Raises:
            DataError: the tokenizer cannot say it.
        """
        *before, last = self.opening(message.role)
        header = last if isinstance(last, str) else ""
        if not header:
            before.append(last)
        first = to_ids(before, tokenizer)
        words = tokenizer.encode(header + self._words(message.content))
        closing = to_ids(self.closing(message.role), tokenizer)
        ids = [*first, *words, *closing]
        n_opening = len(first) + _n_covering(header, words, tokenizer)
        said = [False] * len(ids)
        if message.role == "assistant":
            n_said = len(first) + len(words) - n_opening + 1
            said[n_opening : n_opening + n_said] = [True] * n_said
        return Turn(message.role, ids, said, n_opening, len(closing))

    def turns(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Turn]:
        """Messages one by one, with the default system message where there is one and the conversation has none.

        Raises:
            DataError: the tokenizer cannot say one.
        """
        if self.default_system is not None and (not messages or messages[0].role != "system"):
            messages = [Message("system", self.default_system), *messages]
        return [self.turn(message, tokenizer) for message in messages]

    def message(self, message: Message, tokenizer: Tokenizer) -> list[int]:
        """A message as ids, with its beginning and its end.

        Raises:
            DataError: the tokenizer cannot say it.
        """
        return self.turn(message, tokenizer).ids

    def reply(self, words: str, tokenizer: Tokenizer) -> list[int]:
        """The ids that the assistant says to reply with these words: all of them are learned, the last is the end.

        They follow on a prompt that ends with the assistant's opening. Of a model that thinks, they begin with no
        thoughts.

        Raises:
            DataError: the tokenizer cannot say it.
        """
        words = self._words(words)
        nothing: list[int] = []
        if self.thinking is not None:
            nothing, words = to_ids(self.thinking.nothing, tokenizer), words.lstrip("\n")
        return [*nothing, *tokenizer.encode(words), self.end]

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
        """A whole conversation. A last message of the assistant's is a `reply`, and ends with its end.

        Of a model that thinks, only the last reply counts as said: earlier ones stand there without their thoughts.

        Raises:
            DataError: the tokenizer cannot say it.
        """
        if not messages or messages[-1].role != "assistant":
            return self.joined(self.turns(messages, tokenizer), tokenizer)
        ids, said = self.joined(self.turns(messages[:-1], tokenizer), tokenizer, asks=True)
        reply = self.reply(messages[-1].content, tokenizer)
        return Rendered([*ids, *reply], [*said, *[True] * len(reply)])

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer, *, thinking: bool = True) -> list[int]:
        """A conversation in which the assistant is to speak next: a model goes on from these ids.

        Args:
            messages: the conversation.
            tokenizer: its words.
            thinking: whether a model that thinks before it replies may do so.

        Raises:
            DataError: the tokenizer cannot say it.
        """
        return self.joined(self.turns(messages, tokenizer), tokenizer, asks=True, thinking=thinking).ids

    def joined(
        self, turns: Sequence[Turn], tokenizer: Tokenizer, *, asks: bool = False, thinking: bool = True
    ) -> Rendered:
        """Turns as a conversation.

        Args:
            turns: as `turns` gives them.
            tokenizer: its words.
            asks: whether the assistant is to speak next.
            thinking: whether a model that thinks may do so.
        """
        ids = to_ids(self.begin, tokenizer)
        said = [False] * len(ids)
        for turn in turns:
            ids += turn.ids
            said += [False] * len(turn.ids) if self.thinking is not None else turn.said
        if asks:
            ids += self.opening_ids("assistant", tokenizer)
            if self.thinking is not None and not thinking:
                ids += to_ids(self.thinking.nothing, tokenizer)
        return Rendered(ids, [*said, *[False] * (len(ids) - len(said))])

    def names(self, tokenizer: Tokenizer) -> dict[int, str]:
        """What each id of structure is called, for readers."""
        known = tokenizer.vocab_size
        return {id: tokenizer.piece(id).strip("<|>") if id < known else str(id) for id in self.special_ids()}

    def _words(self, content: str) -> str:
        return content.strip() if self.trim else content


def to_ids(segments: Sequence[int | str], tokenizer: Tokenizer) -> list[int]:
    """A piece of a template as ids.

    Raises:
        DataError: the tokenizer cannot say its text.
    """
    ids: list[int] = []
    for segment in segments:
        ids += [segment] if isinstance(segment, int) else tokenizer.encode(segment)
    return ids


def _n_covering(header: str, ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """How many ids hold the header that a text begins with; one may reach beyond it."""
    n_bytes, left = 0, len(header.encode())
    while left > 0 and n_bytes < len(ids):
        left -= len(tokenizer.decode_bytes([ids[n_bytes]]))
        n_bytes += 1
    return n_bytes
