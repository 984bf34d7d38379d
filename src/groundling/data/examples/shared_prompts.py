"""Find the prompt of two replies given as whole texts: their common beginning.

    "\\n\\nHuman: who? \\n\\nAssistant: me."  and  "... \\n\\nAssistant: you."      Anthropic's hh-rlhf
    "The sky is blue."                       and  "The sky is green."            any other two texts

In the first form the shared turns are the prompt. In the second, the shared beginning is the user's message, and the
replies continue from the last blank before they differ.
"""

import re
from typing import NamedTuple

from groundling.errors import DataError
from groundling.text.chat.messages import Message, check_messages

_TURN = re.compile(r"(?:\A|\n\n)[ \t]*(Human|Assistant):")


class SharedPrompt(NamedTuple):
    """The common beginning of two texts, and the rest of each."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


def split_shared(chosen: str, rejected: str, where: str) -> SharedPrompt:
    """Split two whole texts into a common prompt and two replies.

    Raises:
        DataError: they share no beginning, or one is empty after it; the message starts with `where`.
    """
    chosen, rejected = chosen.lstrip(), rejected.lstrip()
    n_shared = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    shared = chosen[:n_shared] if n_shared is not None else min(chosen, rejected, key=len)
    if _TURN.match(chosen) and _TURN.match(rejected):
        return _by_turns(chosen, rejected, shared, where)
    cut = max((place for place, sign in enumerate(shared) if sign.isspace()), default=0)
    prompt, replies = shared[:cut].strip(), [text[cut:].strip() for text in (chosen, rejected)]
    if not prompt:
        raise DataError(f"{where}: there is no prompt, and chosen and rejected share no beginning; give a prompt")
    if not all(replies):
        raise DataError(f"{where}: there is no prompt, and one of the texts is only what both share; give a prompt")
    return SharedPrompt((Message("user", prompt),), *replies)


def _by_turns(chosen: str, rejected: str, shared: str, where: str) -> SharedPrompt:
    marks = [mark for mark in _TURN.finditer(shared) if mark[1] == "Assistant"]
    if not marks:
        raise DataError(f"{where}: chosen and rejected do not share the human's turn; give them a prompt")
    cut = marks[-1].end()
    replies = [chosen[cut:], rejected[cut:]]
    for name, reply in zip(("chosen", "rejected"), replies, strict=True):
        if _TURN.search(reply):
            raise DataError(
                f"{where}: {name} continues after the assistant's reply; one reply to one prompt is expected"
            )
    turns = _TURN.split(shared[: marks[-1].start()])[1:]
    prompt = tuple(
        Message("user" if speaker == "Human" else "assistant", text.strip())
        for speaker, text in zip(turns[::2], turns[1::2], strict=True)
    )
    check_messages(prompt, where)
    return SharedPrompt(prompt, replies[0].strip(), replies[1].strip())
