"""`groundling rank`: rank a few replies in the terminal, blind.

Replies come from a file, or are sampled from models on demand. They are shown without model names and in random order.
The order is stored with the answer, so position bias can be measured.
"""

import getpass
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from groundling import config
from groundling.align.chat import Chat
from groundling.align.preferences.judgement import (
    SKIP,
    Candidate,
    Choice,
    Judgement,
    candidates_from_json,
    check_question,
    choice_of_best,
    messages_from_json,
    messages_to_json,
    now_utc,
    short_hash,
    tie_of,
)
from groundling.align.preferences.simulated_rater import named_generator
from groundling.align.preferences.store import Rankings
from groundling.bundle import load_chat_bundle
from groundling.bundle.context import contexts
from groundling.data.examples.conversations import read_prompts
from groundling.data.examples.jsonl import rows
from groundling.errors import ConfigError, DataError, require
from groundling.sample.sampler import SamplingConfig
from groundling.system.output import put
from groundling.text.chat.messages import Message

MAX_SHOWN = 4
"""Candidates that a person can compare at once."""

ReplyFn = Callable[[Path, Sequence[Message], int], str]
"""(bundle, conversation, seed) -> the model's reply."""


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """Rank replies in the terminal: anonymous, in random order.

    Enter the number of the best reply; or several numbers, best first; or t (tie), s (skip), q (quit). Answers are
    saved at once, and answered prompts are not shown again.
    """

    path: tyro.conf.Positional[Path]
    """Rankings file (SQLite); created if missing."""
    candidates: Path | None = None
    """JSONL file of {"id": ..., "prompt": text or messages, "candidates": [{"text": ..., "model": ...}]}."""
    bundles: tuple[Path, ...] = ()
    """Alternatively, models that reply to --prompts, in rotation."""
    prompts: Path | None = None
    """Prompts for --bundles: JSONL of {"prompt": text or messages}, or a .txt file with one prompt per line."""
    n_candidates: int = 2
    """Replies per prompt, 2 to 4."""
    context: int | None = None
    """Context length of the --bundles in tokens; None: each model's."""
    rater: str | None = None
    """Rater name; None: the user name."""
    seed: int = 0
    """Seed of the display order and of the sampler."""

    def __post_init__(self) -> None:
        require(
            (self.candidates is not None) != bool(self.bundles),
            "give either --candidates FILE or --bundles A B --prompts FILE",
        )
        require(bool(self.bundles) == (self.prompts is not None), "--bundles and --prompts come together")
        require(
            2 <= self.n_candidates <= MAX_SHOWN,
            f"n_candidates must be from 2 to {MAX_SHOWN}, not {self.n_candidates}",
        )
        require(self.rater != "", "rater is empty; give a name, or leave --rater out to use the user name")


@dataclass(frozen=True)
class Question:
    """A prompt with a function that returns its replies, sampled on demand."""

    name: str
    """Hash of everything that determines the replies."""
    messages: tuple[Message, ...]
    candidates: Callable[[], tuple[Candidate, ...]]


def main(argv: Sequence[str], reply: ReplyFn | None = None) -> int:
    """Run `groundling rank`. `reply` samples a reply; None: as `groundling chat` does."""
    chosen = config.parse(RankConfig, argv, "groundling rank")
    rater = chosen.rater or _user()
    if chosen.candidates is not None:
        questions = [_question_of_file(row.values, row.where) for row in rows(chosen.candidates)]
    else:
        questions = _questions_for_models(chosen, reply or _reply_fn(chosen))
    with Rankings(chosen.path) as rankings:
        return _ask_all(
            list({question.name: question for question in questions}.values()), rankings, rater, chosen.seed
        )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise ConfigError("this process has no user name; give a rater name: --rater NAME") from None


def _question_of_file(value: Any, where: str) -> Question:
    if not isinstance(value, dict) or set(value) - {"id"} != {"prompt", "candidates"}:
        raise DataError(f"{where}: a question is an object with prompt, candidates and perhaps id")
    messages = messages_from_json(value["prompt"], where)
    candidates = candidates_from_json(value["candidates"], where)
    check_question(messages, candidates, where)
    if len(candidates) > MAX_SHOWN:
        raise DataError(f"{where}: there are {len(candidates)} candidates; the terminal shows {MAX_SHOWN} at most")
    return Question(short_hash(value), messages, lambda: candidates)


def _reply_fn(chosen: RankConfig) -> ReplyFn:
    """Samples replies; each bundle is loaded once."""
    chats: dict[Path, Chat] = {}
    context_of = dict(zip(chosen.bundles, contexts(chosen.bundles, chosen.context), strict=True))

    def reply(path: Path, messages: Sequence[Message], seed: int) -> str:
        if path not in chats:
            bundle = load_chat_bundle(path, context=context_of[path])
            chats[path] = Chat(bundle, SamplingConfig(max_new_tokens=200, temperature=1.0), thinking=False)
        return chats[path].one_reply(messages, seed)

    return reply


def _questions_for_models(chosen: RankConfig, reply: ReplyFn) -> list[Question]:
    assert chosen.prompts is not None
    prompts = read_prompts(chosen.prompts)
    bundles = [chosen.bundles[number % len(chosen.bundles)] for number in range(chosen.n_candidates)]
    return [_question_for_models(messages, bundles, chosen.seed, reply) for messages in prompts]


def name_and_seeds(messages: Sequence[Message], models: Sequence[str], seed: int) -> tuple[str, list[int]]:
    """Name of a question and the seed of each model's reply, independent of the rater."""
    name = short_hash([messages_to_json(messages), list(models), seed])
    return name, [int(draw) for draw in named_generator("replies", name).integers(2**32, size=len(models))]


def _question_for_models(messages: tuple[Message, ...], bundles: Sequence[Path], seed: int, reply: ReplyFn) -> Question:
    name, seeds = name_and_seeds(messages, [str(bundle) for bundle in bundles], seed)

    def candidates() -> tuple[Candidate, ...]:
        return tuple(
            Candidate(reply(bundle, messages, own), str(bundle), own)
            for bundle, own in zip(bundles, seeds, strict=True)
        )

    return Question(name, messages, candidates)


def _ask_all(questions: Sequence[Question], rankings: Rankings, rater: str, seed: int) -> int:
    """Ask the questions that this rater has not answered."""
    key_of = {question.name: short_hash(["rank", rater, question.name]) for question in questions}
    left = [question for question in questions if key_of[question.name] not in rankings]
    print(f"{len(questions)} questions for {rater}, {len(questions) - len(left)} already answered")
    n_answered = 0
    for number, question in enumerate(left, 1):
        candidates = question.candidates()
        if len({candidate.text for candidate in candidates}) == 1:
            print(f"\n[{number} of {len(left)}] all replies are the same; there is nothing to choose")
            continue
        key = key_of[question.name]
        shown = tuple(named_generator("shown", seed, key).permutation(len(candidates)).tolist())
        put(f"\n[{number} of {len(left)}]\n{_on_screen(question.messages, [candidates[i].text for i in shown])}\n")
        choice = _ask(shown)
        if choice is None:
            break
        make = partial(Judgement, key=key, messages=question.messages, candidates=candidates, shown=shown)
        rankings.add(make(choice=choice, rater=rater, time=now_utc()))
        n_answered += 1
    print(f"\n{n_answered} answers stored in {rankings.path}; {len(left) - n_answered} questions left")
    return 0


def _on_screen(messages: Sequence[Message], texts: Sequence[str]) -> str:
    lines = [f"{message.role}: {_visible(message.content)}" for message in messages]
    return "\n".join([*lines, *(f"\n({place}) {_visible(text)}" for place, text in enumerate(texts, 1))])


def _visible(text: str) -> str:
    """Escape control characters, with which a reply could overwrite another on the screen."""
    return "".join(char if char == "\n" or char.isprintable() else f"<U+{ord(char):04X}>" for char in text)


def _ask(shown: Sequence[int]) -> Choice | None:
    """Ask until the answer is valid; None: quit, or end of input."""
    for line in _lines(f"\nbest? 1-{len(shown)}, or an order like 21; t tie, s skip, q quit > "):
        word = line.strip().lower()
        if word == "q":
            return None
        choice = parse_answer(word, shown)
        if choice is not None:
            return choice
        print(f"{_visible(word)!r} is not an answer")
    return None


def _lines(question: str) -> Iterator[str]:
    """Lines of input until its end."""
    while True:
        try:
            yield input(question)
        except EOFError:
            return
        except UnicodeDecodeError:
            yield "?"


def parse_answer(word: str, shown: Sequence[int]) -> Choice | None:
    """Parse an answer; None if it is invalid.

    Args:
        word: "t", "s", the position of the best, from 1, or several positions, best first.
        shown: candidate indices in the order shown.
    """
    if word == "t":
        return tie_of(len(shown))
    if word == "s":
        return SKIP
    places = {str(place): number for place, number in enumerate(shown, 1)}
    if not word or not set(word) <= set(places) or len(set(word)) != len(word):
        return None
    if len(word) == 1:
        return choice_of_best(places[word], len(shown))
    return tuple((places[digit],) for digit in word)
