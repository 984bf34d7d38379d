"""Turn plays into dialogues, which need no data but the lecture's text.

A speech is the user's message, and the next speech the assistant's reply; speaker names are dropped. The text has no
scene marks, so a speech counts as a reply only if:

- both have text (125 speeches of the text have lost theirs, so the next one replies to a missing speech);
- they have different speakers, and at most one blank line is between them (two separate plays);
- at least one of the last three speakers is among the next three. Otherwise a new scene has begun.

Measured against the scene marks of the same plays from Project Gutenberg (5,119 adjacent pairs found there, 101 with a
mark between): the last rule detects 93 of the marks and rejects 5 % of the true pairs. With two speakers it
detects 95 and rejects 13 %, with four 89 and 2.5 %. Of the pairs kept, 0.2 % cross a mark.

Long speeches are cut at sentence ends: the last sentences of the user's speech are kept, which the reply refers to, and
the first of the reply. A reply whose first sentence is too long is dropped.

Of 7,222 speeches, 6,282 lie in the training split, 939 in the validation split, and one across the cut. They give 5,073
and 788 dialogues. In training, replies have a median of 50 characters and a ninth decile of 129; 14 validation replies
also occur in training, such as "I am content.".
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from groundling.data import datasets
from groundling.data.examples.conversations import Conversation
from groundling.data.examples.messages import Messages
from groundling.errors import DataError, require
from groundling.storage import files
from groundling.text.chat.messages import Message

Split = Literal["train", "val"]

N_SPEAKERS = 3
"""Number of speakers compared on both sides to detect a new scene."""
MAX_BYTES = 8 << 20
"""Maximum size of the text, which has one million bytes."""
MAX_PROMPT = 92
MAX_REPLY = 160
"""Characters. Both, with the four role tokens of a turn, fit into the lecture's context of 256."""

BLOCK = re.compile(r"[^\n]+(?:\n[^\n]+)*")
NAMED = re.compile(r"([^\n:]{1,40}):(?:\n|\Z)")
SENTENCE_END = re.compile(r"[.!?]['\"]?(?=\s|\Z)")
BEGINNINGS = (re.compile(r"(?<=[.!?])['\"]?\s+"), re.compile(r"\n"), re.compile(r"\s"))
"""Positions to start at: a sentence, a line, a word."""


class Speech(NamedTuple):
    """One speech, and its position in the text from the name to the last word."""

    speaker: str
    words: str
    start: int
    stop: int


def speeches(text: str) -> list[Speech]:
    """Parse the speeches of plays written as `NAME:`, lines, a blank line.

    A block without a name, or without text after it, is a speech without text.

    Raises:
        DataError: there are none.
    """
    found = []
    for block in BLOCK.finditer(text):
        name = NAMED.match(block[0])
        words = block[0][name.end() :].strip() if name else ""
        found.append(Speech(name[1].strip() if name else "", words, block.start(), block.end()))
    if not any(speech.words for speech in found):
        raise DataError("the text has no speeches; plays with a NAME: on a line before each speech are expected")
    return found


def part_of(all_speeches: Sequence[Speech], n_chars: int, split: Split, val_fraction: float = 0.1) -> list[Speech]:
    """Return the speeches of a split; a speech across the cut is in neither.

    Args:
        all_speeches: speeches of the whole text.
        n_chars: length of the text.
        split: the split.
        val_fraction: fraction held out, as in pretraining (`data/corpus.py`).
    """
    require(0.0 < val_fraction < 1.0, f"val_fraction is {val_fraction}; it must be above 0 and below 1")
    cut = int((1 - val_fraction) * n_chars)
    if split == "train":
        return [speech for speech in all_speeches if speech.stop <= cut]
    return [speech for speech in all_speeches if speech.start >= cut]


def dialogues(
    text: str,
    split: Split = "train",
    *,
    max_prompt: int = MAX_PROMPT,
    max_reply: int = MAX_REPLY,
    max_turns: int = 3,
    val_fraction: float = 0.1,
) -> list[Conversation]:
    """Return one dialogue for each speech that replies to another, ending with it, in the order of the text.

    Earlier turns are included as long as the assistant stays the same speaker.

    Args:
        text: plays.
        split: split of the text.
        max_prompt: maximum characters of a user message.
        max_reply: maximum characters of an assistant message.
        max_turns: maximum number of prompt-reply pairs.
        val_fraction: fraction of the text held out.

    Raises:
        DataError: the text has no speeches.
    """
    for name, value in (("max_prompt", max_prompt), ("max_reply", max_reply), ("max_turns", max_turns)):
        require(value > 0, f"{name} is {value}; it must be positive")
    chosen = part_of(speeches(text), len(text), split, val_fraction)
    answers = [False, *(_answers(chosen, number) for number in range(1, len(chosen)))]
    found = []
    for last in range(1, len(chosen)):
        messages: list[Message] = []
        number = last
        while answers[number] and len(messages) < 2 * max_turns:
            prompt, reply = closing(chosen[number - 1].words, max_prompt), opening(chosen[number].words, max_reply)
            if not (prompt and reply):
                break
            messages[:0] = [Message("user", prompt), Message("assistant", reply)]
            number -= 2
            # The earlier reply has to answer its own prompt, have the same speaker, and be what the prompt answers.
            if number < 1 or chosen[number].speaker != chosen[last].speaker or not answers[number + 1]:
                break
        if messages:
            found.append(Conversation(tuple(messages), f"speech at character {chosen[last].start}"))
    return found


def shakespeare_dialogues(
    *, max_prompt: int = MAX_PROMPT, max_reply: int = MAX_REPLY, max_turns: int = 3
) -> tuple[list[Conversation], list[Conversation]]:
    """Return the dialogues of Tiny Shakespeare's training split and validation split; download the text if necessary.

    Raises:
        DataError: it cannot be downloaded.
    """
    text = files.read_text(datasets.get("tiny_shakespeare"), MAX_BYTES, links=True)
    limits = {"max_prompt": max_prompt, "max_reply": max_reply, "max_turns": max_turns}
    return dialogues(text, "train", **limits), dialogues(text, "val", **limits)


def prompts(conversations: Sequence[Conversation]) -> list[Messages]:
    """Return each conversation's prompt: the last user message, after the system message if there is one."""
    found = []
    for conversation in conversations:
        users = [message for message in conversation.messages if message.role == "user"]
        if users:
            system = [message for message in conversation.messages[:1] if message.role == "system"]
            found.append((*system, users[-1]))
    return found


def opening(words: str, max_chars: int) -> str:
    """Return the first whole sentences of a speech; empty if the first one is too long."""
    if len(words) <= max_chars:
        return words
    ends = [end.end() for end in SENTENCE_END.finditer(words, 0, max_chars + 1) if end.end() <= max_chars]
    return words[: ends[-1]] if ends else ""


def closing(words: str, max_chars: int) -> str:
    """Return the last whole sentences of a speech; if the last one is too long, its last lines or words."""
    if len(words) <= max_chars:
        return words
    for beginning in BEGINNINGS:
        starts = [found.end() for found in beginning.finditer(words) if len(words) - found.end() <= max_chars]
        if starts and starts[0] < len(words):
            return words[starts[0] :]
    return ""


def _answers(all_speeches: Sequence[Speech], number: int) -> bool:
    """Whether a speech replies to the previous one."""
    before, this = all_speeches[number - 1], all_speeches[number]
    if not (before.words and this.words) or this.start - before.stop > 2:
        return False
    earlier = {speech.speaker.lower() for speech in all_speeches[max(0, number - N_SPEAKERS) : number]}
    later = {speech.speaker.lower() for speech in all_speeches[number : number + N_SPEAKERS]}
    return before.speaker.lower() != this.speaker.lower() and bool(earlier & later)
