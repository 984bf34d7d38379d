"""Plays as dialogues: the conversations that need no data but the lecture's text.

A speech is what the user says, and the next one the assistant's reply. Who speaks is no part of it. There are no scene
marks in the text, so a speech counts as an answer only where nothing speaks against it:

- both have words (125 speeches of the text have lost theirs, so what follows answers something that is not there);
- two persons speak, and no more than one blank line is between them (two are where a play ends);
- of the last three speakers at least one is among the next three. Where all of them change, so has the scene.

Measured against the scene marks of the same plays from Project Gutenberg (5,119 pairs of neighbours found there, 101
with a mark between): the last rule finds 93 of the marks and takes 5 % of the true neighbours for scenes. Looking at
two speakers finds 95 and takes 13 %, at four 89 and 2.5 %. Of what is kept 0.2 % crosses a mark.

Long speeches are cut where sentences end: of the user's the last sentences are kept, which are what is answered, and of
the reply the first. A reply whose first sentence is too long is none.

Of the 7,222 speeches 6,282 lie in the training part, 939 in the validation part, one across the cut. They give 5,073
and 788 dialogues. In training a reply has 50 characters in the median and 129 at the ninth decile; 14 of the validation
replies are replies in training as well, such as "I am content.".
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
"""So many speakers on both sides of a place tell whether the scene changes there."""
MAX_BYTES = 8 << 20
"""Of the text: it has one million."""
MAX_PROMPT = 92
MAX_REPLY = 160
"""Characters. Both and the four ids of a turn's structure fit into the lecture's 256 characters of context."""

BLOCK = re.compile(r"[^\n]+(?:\n[^\n]+)*")
NAMED = re.compile(r"([^\n:]{1,40}):(?:\n|\Z)")
SENTENCE_END = re.compile(r"[.!?]['\"]?(?=\s|\Z)")
BEGINNINGS = (re.compile(r"(?<=[.!?])['\"]?\s+"), re.compile(r"\n"), re.compile(r"\s"))
"""Before a good place to begin: a sentence, a line, a word."""


class Speech(NamedTuple):
    """What one person says, and where in the text that stands, from the name to the last word."""

    speaker: str
    words: str
    start: int
    stop: int


def speeches(text: str) -> list[Speech]:
    """The speeches of plays written as `NAME:`, lines, a blank line.

    A block that begins with no name, or has no words after it, is a speech without words.

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
    """The speeches of the part of a text that pretraining trains on, or of the part that it holds out.

    A speech that lies across the cut is in neither.

    Args:
        all_speeches: of the whole text.
        n_chars: how long the text is.
        split: which part.
        val_fraction: how much is held out, as pretraining does (`data/corpus.py`).
    """
    require(0.0 < val_fraction < 1.0, f"val_fraction is {val_fraction}; it has to be above 0 and below 1")
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
    """Each speech that answers another as the last reply of one dialogue, in the text's order.

    What was said before comes with it as long as the assistant stays the same person.

    Args:
        text: plays.
        split: of which part of the text.
        max_prompt: characters of what the user says, each time.
        max_reply: characters of what the assistant says, each time.
        max_turns: pairs of prompt and reply at most.
        val_fraction: how much of the text is held out.

    Raises:
        DataError: the text has no speeches.
    """
    for name, value in (("max_prompt", max_prompt), ("max_reply", max_reply), ("max_turns", max_turns)):
        require(value > 0, f"{name} is {value}; it has to be positive")
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
            # The one before has to answer its own, be the same person's, and be what the prompt speaks to.
            if number < 1 or chosen[number].speaker != chosen[last].speaker or not answers[number + 1]:
                break
        if messages:
            found.append(Conversation(tuple(messages), f"speech at character {chosen[last].start}"))
    return found


def shakespeare_dialogues(
    *, max_prompt: int = MAX_PROMPT, max_reply: int = MAX_REPLY, max_turns: int = 3
) -> tuple[list[Conversation], list[Conversation]]:
    """The dialogues of Tiny Shakespeare's training part and of its validation part; fetched if it is not here.

    Raises:
        DataError: it could not be fetched.
    """
    text = files.read_text(datasets.get("tiny_shakespeare"), MAX_BYTES, links=True)
    limits = {"max_prompt": max_prompt, "max_reply": max_reply, "max_turns": max_turns}
    return dialogues(text, "train", **limits), dialogues(text, "val", **limits)


def prompts(conversations: Sequence[Conversation]) -> list[Messages]:
    """What each conversation's last reply was said to: the user's message alone, after the system's if there is one."""
    found = []
    for conversation in conversations:
        users = [message for message in conversation.messages if message.role == "user"]
        if users:
            system = [message for message in conversation.messages[:1] if message.role == "system"]
            found.append((*system, users[-1]))
    return found


def opening(words: str, max_chars: int) -> str:
    """The first whole sentences of a speech, or nothing where the first is too long."""
    if len(words) <= max_chars:
        return words
    ends = [end.end() for end in SENTENCE_END.finditer(words, 0, max_chars + 1) if end.end() <= max_chars]
    return words[: ends[-1]] if ends else ""


def closing(words: str, max_chars: int) -> str:
    """The last whole sentences of a speech; if the last is too long, its last lines, or else its last words."""
    if len(words) <= max_chars:
        return words
    for beginning in BEGINNINGS:
        starts = [found.end() for found in beginning.finditer(words) if len(words) - found.end() <= max_chars]
        if starts and starts[0] < len(words):
            return words[starts[0] :]
    return ""


def _answers(all_speeches: Sequence[Speech], number: int) -> bool:
    """Whether a speech answers the one before it."""
    before, this = all_speeches[number - 1], all_speeches[number]
    if not (before.words and this.words) or this.start - before.stop > 2:
        return False
    earlier = {speech.speaker.lower() for speech in all_speeches[max(0, number - N_SPEAKERS) : number]}
    later = {speech.speaker.lower() for speech in all_speeches[number : number + N_SPEAKERS]}
    return before.speaker.lower() != this.speaker.lower() and bool(earlier & later)
