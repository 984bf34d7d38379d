"""Encode conversations with their loss masks, preference pairs and prompts; count cut and dropped examples.

Long examples lose their oldest turns first, then the start of the user's message, then the end of the reply.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from groundling.data.examples.conversations import (
    Conversation,
    Preference,
    holds_prompts,
    iterate_conversations,
    read_conversations,
    read_preferences,
    read_prompts,
)
from groundling.data.examples.messages import Messages
from groundling.errors import DataError, require
from groundling.text.chat.messages import Message
from groundling.text.chat.template import ChatTemplate, Turn
from groundling.text.tokenizer import Tokenizer

__all__ = [
    "Conversation",
    "Encoded",
    "EncodedPair",
    "EncodingCounts",
    "Messages",
    "Preference",
    "encode_chat_prompt",
    "encode_conversation",
    "encode_preference",
    "holds_prompts",
    "iterate_conversations",
    "least_ids",
    "read_conversations",
    "read_preferences",
    "read_prompts",
]

MIN_CONTENT_IDS = 4
"""Minimum number of content ids on each side of a conversation."""


def least_ids(chat: ChatTemplate, tokenizer: Tokenizer) -> int:
    """Return the minimum context, in ids, of a user message and a reply."""
    prompt = chat.joined([chat.turn(Message("user", ""), tokenizer)], tokenizer, add_generation_prompt=True)
    return len(prompt.ids) + len(chat.reply("", tokenizer)) + MIN_CONTENT_IDS


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids, and its loss mask: the assistant's messages with their end tokens."""

    ids: list[int]
    loss_mask: list[bool]


@dataclass(frozen=True)
class EncodedPair:
    """A preference pair as ids."""

    prompt: list[int]
    """Ends with the assistant's opening."""
    chosen: list[int]
    """Reply and end token."""
    rejected: list[int]


@dataclass
class EncodingCounts:
    """How many examples were kept, cut or dropped."""

    n_read: int = 0
    n_kept: int = 0
    n_shortened: int = 0
    """Kept without the oldest turns, or without unanswered turns."""
    n_cut_fronts: int = 0
    """Kept without the start of the user's message."""
    n_cut: int = 0
    """Kept without the end of the reply, so the end token is not trained on."""
    n_empty: int = 0
    """Dropped: there is no reply."""
    n_same: int = 0
    """Dropped: both replies of the pair are equal."""
    n_long: int = 0
    """Dropped: the pair leaves no room for its prompt."""
    n_unknown: int = 0
    """Dropped: the tokenizer cannot encode it."""
    first_unknown: str = ""
    """First error of the tokenizer, and where."""

    def unknown(self, where: str, error: DataError) -> None:
        """Count an example that the tokenizer cannot encode."""
        self.n_unknown += 1
        self.first_unknown = self.first_unknown or (f"{where}: {error}" if where else str(error))

    def line(self) -> str:
        """Format the counts as one line; zeros are left out."""
        parts = [
            f"{number:,} {words}"
            for number, words in (
                (self.n_shortened, "lost early turns"),
                (self.n_cut_fronts, "lost the start of the user's message"),
                (self.n_cut, "lost the end of the reply"),
                (self.n_empty, "dropped as empty"),
                (self.n_same, "dropped because both replies are the same"),
                (self.n_long, "dropped as too long"),
                (self.n_unknown, f"dropped because the tokenizer cannot encode them (first: {self.first_unknown})"),
            )
            if number
        ]
        return "; ".join([f"{self.n_kept:,} of {self.n_read:,} examples kept", *parts])


class _Prompt(NamedTuple):
    ids: list[int]
    loss_mask: list[bool]
    is_shortened: bool
    is_cut: bool


def encode_conversation(
    conversation: Conversation, chat: ChatTemplate, tokenizer: Tokenizer, max_ids: int, counts: EncodingCounts
) -> Encoded | None:
    """Encode a conversation up to its last reply in at most `max_ids` ids; None if there is nothing to train on.

    Up to a quarter of the ids is reserved for the last prompt: a reply without its prompt is useless.

    Args:
        conversation: valid by `check_messages`.
        chat: chat template.
        tokenizer: encodes the messages.
        max_ids: block_size + 1 for a row of its own, because the last id is only a target; block_size for packed rows.
        counts: updated with the outcome.
    """
    _require_room(max_ids, chat, tokenizer)
    counts.n_read += 1
    answered = _answered(conversation.messages)
    if not answered:
        counts.n_empty += 1
        return None
    *before, last = answered
    try:
        parts = chat.turns(before, tokenizer)
        reply = chat.reply(last.content, tokenizer)
    except DataError as error:
        counts.unknown(conversation.where, error)
        return None
    if len(reply) <= len(chat.reply("", tokenizer)):  # a tokenizer that skips unknown characters left nothing
        counts.n_empty += 1
        return None
    opening = chat.opening_ids("assistant", tokenizer)
    room = max(max_ids - len(reply), _least_room(parts, opening, max_ids))
    prompt = _fit(parts, chat, tokenizer, room)
    reply = reply[: max_ids - len(prompt.ids)]
    prompt_mask = [False] * len(prompt.loss_mask) if conversation.only_last else prompt.loss_mask
    ids, loss_mask = prompt.ids + reply, prompt_mask + [True] * len(reply)
    _count_prompt(counts, prompt, len(before) < len(conversation.messages[:-1]))
    counts.n_cut += ids[-1] != chat.end
    return Encoded(ids, loss_mask)


def encode_preference(
    preference: Preference, chat: ChatTemplate, tokenizer: Tokenizer, max_ids: int, counts: EncodingCounts
) -> EncodedPair | None:
    """Encode a pair so that the prompt with either reply fits into `max_ids` ids; None if the pair is dropped.

    Only the prompt is cut, because a cut reply may lose what it was preferred for. For the arguments, see
    `encode_conversation`.
    """
    _require_room(max_ids, chat, tokenizer)
    counts.n_read += 1
    if not (preference.chosen.strip() and preference.rejected.strip()):
        counts.n_empty += 1
        return None
    try:
        parts = chat.turns(preference.prompt, tokenizer)
        chosen, rejected = (chat.reply(words, tokenizer) for words in (preference.chosen, preference.rejected))
        n_without_words = len(chat.reply("", tokenizer))
    except DataError as error:
        counts.unknown(preference.where, error)
        return None
    room = max_ids - max(len(chosen), len(rejected))
    opening = chat.opening_ids("assistant", tokenizer)
    if min(len(chosen), len(rejected)) <= n_without_words:
        counts.n_empty += 1
    elif chosen == rejected:
        counts.n_same += 1
    elif room < _least_room(parts, opening, max_ids):
        counts.n_long += 1
    else:
        prompt = _fit(parts, chat, tokenizer, room)
        _count_prompt(counts, prompt)
        return EncodedPair(prompt.ids, chosen, rejected)
    return None


def encode_chat_prompt(
    messages: Sequence[Message], chat: ChatTemplate, tokenizer: Tokenizer, max_ids: int, counts: EncodingCounts
) -> list[int] | None:
    """Encode a prompt in at most `max_ids` ids, up to the assistant's opening; None if it is empty.

    For the arguments, see `encode_conversation`; the rest of the context is for the reply.
    """
    _require_room(max_ids, chat, tokenizer)
    counts.n_read += 1
    if not messages[-1].content.strip():
        counts.n_empty += 1
        return None
    try:
        parts = chat.turns(messages, tokenizer)
    except DataError as error:
        counts.unknown("a prompt", error)
        return None
    prompt = _fit(parts, chat, tokenizer, max_ids)
    _count_prompt(counts, prompt)
    return prompt.ids


def _answered(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation up to its last reply, without unanswered turns."""
    turns = list(messages)
    kept = [turns.pop(0)] if turns and turns[0].role == "system" else []
    answered = [
        message
        for user, reply in zip(turns[::2], turns[1::2], strict=False)
        if reply.content.strip()
        for message in (user, reply)
    ]
    return kept + answered if answered else []


def _fit(parts: list[Turn], chat: ChatTemplate, tokenizer: Tokenizer, room: int) -> _Prompt:
    """Fit the messages of a prompt, with the assistant's opening, into at most `room` ids."""
    n_around = len(chat.joined([], tokenizer, add_generation_prompt=True).ids)
    has_system = parts[0].role == "system"
    head, turns = parts[: int(has_system)], parts[int(has_system) :]
    n_parts, n_gone, length = len(parts), 0, _length(parts) + n_around
    while len(turns) - n_gone > 1 and length > room:
        length -= _length(turns[n_gone : n_gone + 2])
        n_gone += 2
    turns = turns[n_gone:]
    least = n_around + len(turns[-1].without_front(len(turns[-1].ids)).ids)
    if _length(head + turns) + n_around > room and _length(head) > min(room // 2, room - least):
        head = []  # drop instructions that leave too little room
    over = _length(head + turns) + n_around - room
    if over > 0:
        (user,) = turns
        turns = [user.without_front(over)]
    ids, loss_mask = chat.joined(head + turns, tokenizer, add_generation_prompt=True)
    assert len(ids) <= room, "`_require_room` leaves room for a prompt without content"
    return _Prompt(ids, loss_mask, len(head) + len(turns) < n_parts, over > 0)


def _least_room(parts: list[Turn], opening: list[int], max_ids: int) -> int:
    """Return the minimum size of a prompt: all of its last message, or a quarter of the context."""
    around = len(parts[-1].without_front(len(parts[-1].ids)).ids) + len(opening)
    return max(around + 1, min(len(parts[-1].ids) + len(opening), max_ids // 4))


def _length(parts: list[Turn]) -> int:
    return sum(len(part.ids) for part in parts)


def _count_prompt(counts: EncodingCounts, prompt: _Prompt, is_shortened: bool = False) -> None:
    counts.n_kept += 1
    counts.n_shortened += is_shortened or prompt.is_shortened
    counts.n_cut_fronts += prompt.is_cut


def _require_room(max_ids: int, chat: ChatTemplate, tokenizer: Tokenizer) -> None:
    """Raise ConfigError if the role tokens, the end token and minimal content do not fit."""
    least = least_ids(chat, tokenizer)
    require(max_ids >= least, f"a conversation does not fit into {max_ids} ids; it needs at least {least}")
