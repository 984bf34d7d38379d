"""Training data of a reward model as token ids: rankings, preference pairs or labelled replies.

A labelled reply is compared with a reward of 0, so its loss, -log sigmoid(r) or -log sigmoid(-r), is that of logistic
regression.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundling.align.preferences.judgement import Judgement
from groundling.bundle import ChatBundle
from groundling.data.examples.conversations import read_preferences
from groundling.data.examples.labelled import holds_labels, read_labelled
from groundling.data.examples.messages import Messages
from groundling.errors import DataError
from groundling.model.packing import Exchange
from groundling.system.progress import Progress

ZERO_REWARD = -1
"""Index that stands for a reward of 0, with which labelled replies are compared."""


@dataclass(frozen=True)
class Ranked:
    """The candidates of one judgement as token ids, and the preferences among them."""

    messages: Messages
    """The prompt."""
    sequences: list[Exchange]
    """Prompt and reply of each; an empty reply in place of one that is too long."""
    texts: list[str]
    pairs: list[tuple[int, int, float]]
    """(a, b, target probability that a is preferred): 1, or 0.5 for a tie. Either index may be `ZERO_REWARD`."""


@dataclass
class LeftOut:
    """Counts of judgements that cannot be used."""

    undecided: int = 0
    """Judgements without a preference between two replies that fit into the context."""
    unknown: int = 0
    """Judgements with text that the tokenizer cannot encode."""
    first_unknown: str = ""

    def note(self, where: str, error: DataError) -> None:
        """Count a judgement that the tokenizer cannot encode."""
        self.unknown += 1
        self.first_unknown = self.first_unknown or f"{where}: {error}"

    def line(self) -> str:
        """The counts that are not 0, to append to a log line."""
        undecided = f"; {self.undecided:,} without a preference between replies that fit" if self.undecided else ""
        unknown = f"; {self.unknown:,} cannot be encoded (first {self.first_unknown})" if self.unknown else ""
        return undecided + unknown


def ranked(judgements: Iterable[Judgement], bundle: ChatBundle, max_ids: int) -> tuple[list[Ranked], LeftOut]:
    """Encode judgements; also count those that cannot be used."""
    answers, left_out = [], LeftOut()
    for judgement in judgements:
        texts = [candidate.text for candidate in judgement.candidates]
        try:
            sequences = _sequences(judgement.messages, texts, bundle, max_ids)
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
            nothing = (bundle.chat.opening_ids("assistant", bundle.tokenizer), [bundle.chat.end])
            answers.append(Ranked(judgement.messages, [each or nothing for each in sequences], texts, pairs))
        else:
            left_out.undecided += 1
    return answers, left_out


def shortened(prompt: list[int], reply: list[int], block_size: int) -> Exchange | None:
    """Truncate the prompt from the left, keeping its first token, so that prompt and reply fit.

    None: the reply alone is too long.
    """
    room = block_size - len(reply)
    if room < 2:
        return None
    if len(prompt) > room:
        prompt = [prompt[0], *prompt[len(prompt) - room + 1 :]]
    return prompt, reply


def ranked_rows(path: Path, bundle: ChatBundle, max_ids: int) -> tuple[list[Ranked], LeftOut]:
    """Encode a file of preferences or labelled replies; also count the rows that cannot be used.

    Raises:
        DataError: the file cannot be read, or a row is invalid; the message names file and line.
    """
    pairs: list[tuple[int, int, float]]
    rows: list[tuple[str, Messages, list[str], list[tuple[int, int, float]]]] = []
    if holds_labels(path):
        for labelled in read_labelled(path):
            pairs = [(0, ZERO_REWARD, 1.0)] if labelled.is_good else [(ZERO_REWARD, 0, 1.0)]
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
                sequences = _sequences(prompt, texts, bundle, max_ids)
            except DataError as error:
                left_out.note(where, error)
                continue
            if pairs and all(sequences) and all(text.strip() for text in texts):
                answers.append(Ranked(prompt, [each for each in sequences if each], texts, pairs))
            else:
                left_out.undecided += 1
    return answers, left_out


def _sequences(prompt: Messages, texts: Sequence[str], bundle: ChatBundle, max_ids: int) -> list[Exchange | None]:
    ids = bundle.encode_chat(prompt)
    return [shortened(ids, bundle.encode_reply(text), max_ids) for text in texts]
