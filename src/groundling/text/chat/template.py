"""Encode messages, and mark the ids that the assistant generated.

A conversation is   <user> words <end> <assistant> words <end> ...   (after an optional <system> message). Special
tokens have ids above the tokenizer's, and `Tokenizer.encode` treats all text as ordinary text, so no user text can end
a turn or start another.

Imported models have their own templates. `ChatTemplate` is the common interface: text between an opening and a closing
that depend on the role. `RoleTokens` is ours; `WrappedTurns` (`wrapped_turns.py`) covers ChatML and similar ones. A
bundle stores a template by name and parameters, never as code.

The loss mask covers the assistant's messages with their end tokens, so a fine-tuned model learns to stop.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from groundling.text.chat.messages import ROLES, Message, Role
from groundling.text.tokenizer import Tokenizer

Segments = tuple[int | str, ...]
"""A part of a template: special ids, and ordinary text between them."""


class Rendered(NamedTuple):
    """A conversation as ids."""

    ids: list[int]
    loss_mask: list[bool]
    """True for each id that the assistant generates: its text, and the end of its replies."""


class Turn(NamedTuple):
    """A message as ids: opening, text, closing."""

    role: Role
    ids: list[int]
    loss_mask: list[bool]
    n_opening: int
    """Number of ids before the text."""
    n_closing: int
    """Number of ids after the text."""

    def without_front(self, n: int) -> "Turn":
        """Return the turn without the first `n` ids of its text, or without any text."""
        n = min(n, len(self.ids) - self.n_opening - self.n_closing)
        kept = [*range(self.n_opening), *range(self.n_opening + n, len(self.ids))]
        return self._replace(ids=[self.ids[i] for i in kept], loss_mask=[self.loss_mask[i] for i in kept])


@dataclass(frozen=True)
class Thinking:
    """Tags around a model's reasoning before its reply."""

    opening: int
    closing: int
    nothing: Segments
    """Empty reasoning, which precedes a reply without reasoning: both tags, and their line breaks."""


class ChatTemplate(ABC):
    """A chat template as data: how a conversation becomes ids."""

    template: ClassVar[str]
    """Name of the template in `chat.json`."""

    end: int
    """Id that ends a reply."""
    begin: Segments = ()
    """Precedes the first message."""
    default_system: str | None = None
    """System message of a conversation without one."""
    trim: bool = False
    """Whether to strip white space around a message's text."""
    thinking: Thinking | None = None
    """Reasoning tags, if the model reasons before it replies."""

    @abstractmethod
    def opening(self, role: Role) -> Segments:
        """Return what precedes a role's text; starts with a special id."""

    @abstractmethod
    def closing(self, role: Role) -> Segments:
        """Return what follows a role's text; starts with a special id."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the template by name and parameters; `template_from_json` reads it."""

    def marks(self) -> set[int]:
        """Return the ids that start and end messages."""
        segments = [self.begin, *(part for role in ROLES for part in (self.opening(role), self.closing(role)))]
        return {part for parts in segments for part in parts if isinstance(part, int)}

    def special_ids(self) -> tuple[int, ...]:
        """Return all structural ids, ascending and unique: message marks and reasoning tags."""
        tags = () if self.thinking is None else (self.thinking.opening, self.thinking.closing)
        return tuple(sorted({*self.marks(), *tags}))

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Return the ids that end a reply: the template's own, then the tokenizer's end of text."""
        return tuple(dict.fromkeys((self.end, *tokenizer.end_ids)))

    def n_reply_ids(self, tokenizer: Tokenizer) -> int:
        """Return the bound below which ids may be part of a reply: all text, and its end."""
        return max(tokenizer.vocab_size, self.end + 1)

    def opening_ids(self, role: Role, tokenizer: Tokenizer) -> list[int]:
        """Return the opening ids of a role; after the assistant's, the model replies."""
        return to_ids(self.opening(role), tokenizer)

    def turn(self, message: Message, tokenizer: Tokenizer) -> Turn:
        """Encode a message.

        Opening and text are encoded together, as by programs that render a conversation to text.

        Raises:
            DataError: the tokenizer cannot encode it.
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
        loss_mask = [False] * len(ids)
        if message.role == "assistant":
            n_trained = len(first) + len(words) - n_opening + 1
            loss_mask[n_opening : n_opening + n_trained] = [True] * n_trained
        return Turn(message.role, ids, loss_mask, n_opening, len(closing))

    def turns(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Turn]:
        """Encode messages one by one; prepend the default system message if the conversation has none.

        Raises:
            DataError: the tokenizer cannot encode one.
        """
        if self.default_system is not None and (not messages or messages[0].role != "system"):
            messages = [Message("system", self.default_system), *messages]
        return [self.turn(message, tokenizer) for message in messages]

    def message(self, message: Message, tokenizer: Tokenizer) -> list[int]:
        """Encode a message with its opening and closing.

        Raises:
            DataError: the tokenizer cannot encode it.
        """
        return self.turn(message, tokenizer).ids

    def reply(self, words: str, tokenizer: Tokenizer) -> list[int]:
        """Return the ids of a reply, all of them trained on, with the end token last.

        They follow a prompt. A reasoning model's reply starts with empty reasoning.

        Raises:
            DataError: the tokenizer cannot encode it.
        """
        words = self._words(words)
        reasoning: list[int] = []
        if self.thinking is not None:
            reasoning, words = to_ids(self.thinking.nothing, tokenizer), words.lstrip("\n")
        return [*reasoning, *tokenizer.encode(words), self.end]

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
        """Encode a whole conversation. A final assistant message is a `reply` and ends with its end token.

        For a reasoning model only the last reply is trained on, because earlier ones lack their reasoning.

        Raises:
            DataError: the tokenizer cannot encode it.
        """
        if not messages or messages[-1].role != "assistant":
            return self.joined(self.turns(messages, tokenizer), tokenizer)
        ids, loss_mask = self.joined(self.turns(messages[:-1], tokenizer), tokenizer, add_generation_prompt=True)
        reply = self.reply(messages[-1].content, tokenizer)
        return Rendered([*ids, *reply], [*loss_mask, *[True] * len(reply)])

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer, *, thinking: bool = True) -> list[int]:
        """Encode a conversation up to the assistant's opening, for generation.

        Args:
            messages: the conversation.
            tokenizer: encodes the text.
            thinking: whether a reasoning model may reason.

        Raises:
            DataError: the tokenizer cannot encode it.
        """
        return self.joined(
            self.turns(messages, tokenizer), tokenizer, add_generation_prompt=True, thinking=thinking
        ).ids

    def joined(
        self, turns: Sequence[Turn], tokenizer: Tokenizer, *, add_generation_prompt: bool = False, thinking: bool = True
    ) -> Rendered:
        """Join turns into a conversation.

        Args:
            turns: from `turns`.
            tokenizer: encodes the text of openings.
            add_generation_prompt: whether to append the assistant's opening.
            thinking: whether a reasoning model may reason.
        """
        ids = to_ids(self.begin, tokenizer)
        loss_mask = [False] * len(ids)
        for turn in turns:
            ids += turn.ids
            loss_mask += [False] * len(turn.ids) if self.thinking is not None else turn.loss_mask
        if add_generation_prompt:
            ids += self.opening_ids("assistant", tokenizer)
            if self.thinking is not None and not thinking:
                ids += to_ids(self.thinking.nothing, tokenizer)
        return Rendered(ids, [*loss_mask, *[False] * (len(ids) - len(loss_mask))])

    def names(self, tokenizer: Tokenizer) -> dict[int, str]:
        """Return a readable name for each structural id."""
        known = tokenizer.vocab_size
        return {id: tokenizer.piece(id).strip("<|>") if id < known else str(id) for id in self.special_ids()}

    def _words(self, content: str) -> str:
        return content.strip() if self.trim else content


def to_ids(segments: Sequence[int | str], tokenizer: Tokenizer) -> list[int]:
    """Encode a part of a template.

    Raises:
        DataError: the tokenizer cannot encode its text.
    """
    ids: list[int] = []
    for segment in segments:
        ids += [segment] if isinstance(segment, int) else tokenizer.encode(segment)
    return ids


def _n_covering(header: str, ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Return how many ids hold a text's header; the last one may reach beyond it."""
    n_bytes, left = 0, len(header.encode())
    while left > 0 and n_bytes < len(ids):
        left -= len(tokenizer.decode_bytes([ids[n_bytes]]))
        n_bytes += 1
    return n_bytes
