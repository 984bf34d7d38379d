"""What a reward model learns from, as ids: people's rankings, or a file of preferences or of labelled replies.

A reply that was only called good or bad is compared with nothing, whose reward is 0: the loss of that pair,
-log sigmoid(r) or -log sigmoid(-r), is the one of logistic regression.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundling.align.preferences.judgement import Judgement
from groundling.data.examples.conversations import read_preferences
from groundling.data.examples.labelled import holds_labels, read_labelled
from groundling.data.examples.messages import Messages
from groundling.errors import DataError
from groundling.model.packing import Exchange
from groundling.system.progress import Progress
from groundling.text.chat.template import ChatTemplate
from groundling.text.tokenizer import Tokenizer

NOTHING = -1
"""In the place of a reply's number: what a labelled reply is compared with, of reward 0."""


@dataclass(frozen=True)
class Ranked:
    """The candidates of one answer as ids, and what was said about which two."""

    messages: Messages
    """The prompt."""
    sequences: list[Exchange]
    """Prompt and reply of each; nothing where the reply is too long."""
    texts: list[str]
    pairs: list[tuple[int, int, float]]
    """(a, b, the part of preferences that a has): 1, or 0.5 for a tie. Either may be `NOTHING`."""


@dataclass
class LeftOut:
    """Answers that nothing is learned from."""

    silent: int = 0
    """They say nothing about two replies that fit into the model's context."""
    unknown: int = 0
    """The tokenizer cannot say them."""
    first_unknown: str = ""

    def note(self, where: str, error: DataError) -> None:
        """Count one that the tokenizer cannot say."""
        self.unknown += 1
        self.first_unknown = self.first_unknown or f"{where}: {error}"

    def line(self) -> str:
        """For people, to be put behind what was kept; what did not happen is not mentioned."""
        silent = f"; {self.silent:,} said nothing about two replies that fit" if self.silent else ""
        unknown = f"; {self.unknown:,} cannot be encoded (first {self.first_unknown})" if self.unknown else ""
        return silent + unknown


def ranked(
    judgements: Iterable[Judgement], chat: ChatTemplate, tokenizer: Tokenizer, block_size: int
) -> tuple[list[Ranked], LeftOut]:
    """Answers as ids, and what became of those that nothing can be learned from."""
    answers, left_out = [], LeftOut()
    for judgement in judgements:
        texts = [candidate.text for candidate in judgement.candidates]
        try:
            sequences = _sequences(judgement.messages, texts, chat, tokenizer, block_size)
        except DataError as error:
            left_out.note(f"the answer {judgement.key}", error)
            continue
        number_of = {id(candidate): number for number, candidate in enumerate(judgement.candidates)}
        pairs = [
            (a, b, 0.5 if comparison.tie else 1.0)
            for comparison in judgement.comparisons()
            if sequences[a := number_of[id(comparison.better)]] and sequences[b := number_of[id(comparison.worse)]]
        ]
        if pairs:
            nothing = (chat.opening_ids("assistant", tokenizer), [chat.end])
            answers.append(Ranked(judgement.messages, [each or nothing for each in sequences], texts, pairs))
        else:
            left_out.silent += 1
    return answers, left_out


def shortened(prompt: list[int], reply: list[int], block_size: int) -> Exchange | None:
    """A prompt and a reply that fit together: the prompt loses its beginning, but not the id it begins with.

    None if the reply alone is too long.
    """
    room = block_size - len(reply)
    if room < 2:
        return None
    if len(prompt) > room:
        prompt = [prompt[0], *prompt[len(prompt) - room + 1 :]]
    return prompt, reply


def ranked_rows(path: Path, chat: ChatTemplate, tokenizer: Tokenizer, block_size: int) -> tuple[list[Ranked], LeftOut]:
    """The preferences or labelled replies of a file as ids, and what became of those that cannot be learned from.

    Raises:
        DataError: the file cannot be read, or a row is wrong; the message names file and line.
    """
    pairs: list[tuple[int, int, float]]
    rows: list[tuple[str, Messages, list[str], list[tuple[int, int, float]]]] = []
    if holds_labels(path):
        for labelled in read_labelled(path):
            pairs = [(0, NOTHING, 1.0)] if labelled.is_good else [(NOTHING, 0, 1.0)]
            rows.append((labelled.where, labelled.prompt, [labelled.reply], pairs))
    else:
        for each in read_preferences(path):
            pairs = [] if each.chosen == each.rejected else [(0, 1, 1.0)]
            rows.append((each.where, each.prompt, [each.chosen, each.rejected], pairs))
    answers, left_out = [], LeftOut()
    with Progress("encoding the preferences", len(rows)) as progress:
        for where, prompt, texts, pairs in rows:
            progress.advance(1)
            try:
                sequences = _sequences(prompt, texts, chat, tokenizer, block_size)
            except DataError as error:
                left_out.note(where, error)
                continue
            if pairs and all(sequences) and all(text.strip() for text in texts):
                answers.append(Ranked(prompt, [each for each in sequences if each], texts, pairs))
            else:
                left_out.silent += 1
    return answers, left_out


def _sequences(
    prompt: Messages, texts: Sequence[str], chat: ChatTemplate, tokenizer: Tokenizer, block_size: int
) -> list[Exchange | None]:
    ids = chat.prompt(prompt, tokenizer)
    return [shortened(ids, chat.reply(text, tokenizer), block_size) for text in texts]
