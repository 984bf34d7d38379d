"""Read messages back from the ids of a conversation, for display and for reward functions."""

from collections.abc import Sequence
from itertools import takewhile

from groundling.text.chat.messages import ROLES, Message, Role
from groundling.text.chat.template import ChatTemplate
from groundling.text.tokenizer import Tokenizer


def messages_in(ids: Sequence[int], chat: ChatTemplate, tokenizer: Tokenizer) -> list[Message]:
    """Return the messages of a conversation given as ids; an opened reply is an empty message."""
    found, structure = [], set(chat.special_ids())
    shapes = [(role, *_shape(chat, role)) for role in ROLES]
    for start in range(len(ids)):
        for role, leading, header, closing in shapes:
            if list(ids[start : start + len(leading)]) == leading:
                words = takewhile(lambda id: id != closing, ids[start:])  # noqa: B023 - consumed at once
                text = tokenizer.decode([id for id in words if id not in structure])
                if text.startswith(header):
                    found.append(Message(role, text[len(header) :]))
                    break
    return found


def last_words(ids: Sequence[int], role: Role, chat: ChatTemplate, tokenizer: Tokenizer) -> str:
    """Return the text of a role's last message; "" if there is none."""
    found = messages_in(ids, chat, tokenizer)
    return next((message.content for message in reversed(found) if message.role == role), "")


def _shape(chat: ChatTemplate, role: Role) -> tuple[list[int | str], str, int | str]:
    """Return the special ids that an opening starts with, its text, and the first id of the closing."""
    opening = chat.opening(role)
    leading = list(takewhile(lambda part: isinstance(part, int), opening))
    return leading, "".join(part for part in opening if isinstance(part, str)), chat.closing(role)[0]
