"""`groundling rankings simulate`: replies of a model, ranked by a judge who follows a measure that people can check.

What is written is what people would have written: texts and an order. The measure itself is not among it.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from groundling import atomicio
from groundling.align.conversations import ChatDataConfig, prompt_ids, prompt_room, read_asked
from groundling.align.gold import measure_by_name
from groundling.align.judge import Judge, named_generator
from groundling.align.judgements import MOST_CANDIDATES, Candidate, Judgement, name_of, now_utc
from groundling.align.rankings import Rankings
from groundling.align.replies import Reply, Speaker
from groundling.align.vocabulary import require_chat
from groundling.bundle import load_bundle
from groundling.config import parse
from groundling.data.examples import Messages, least_ids
from groundling.errors import require
from groundling.log import say
from groundling.sample.engine import DecodeConfig, settled


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Let a model reply and a simulated rater rank: groundling rankings simulate BUNDLE [--field value ...]."""

    path: tyro.conf.Positional[str]
    """The model that replies."""
    rankings: Path = Path("runs/rankings.sqlite")
    """Where the answers go; they are added to what is there."""
    gold: str = "warm"
    """The measure that the rater follows: warm (VADER's sentiment) or verse (lines of ten syllables)."""
    noise: float = 0.2
    """The gap in the measure at which the better reply wins with 73 %."""
    candidates: int = 4
    """Replies to each prompt."""
    prompts: int = 2000
    """Prompts, of the training split."""
    max_new_tokens: int = 128
    """After which a reply is cut."""
    temperature: float = 1.0
    """Of drawing replies."""
    context: int | None = None
    """Tokens of context to use; None: all that the model has."""
    seed: int = 1337
    """Of the replies and the rater."""
    data: ChatDataConfig = field(default_factory=ChatDataConfig)

    def __post_init__(self) -> None:
        require(
            2 <= self.candidates <= MOST_CANDIDATES,
            f"candidates is {self.candidates}; a ranking has from 2 to {MOST_CANDIDATES}",
        )
        for name in ("prompts", "max_new_tokens"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.noise >= 0, f"noise is {self.noise}; it must be at least 0")
        measure_by_name(self.gold)


def main(argv: Sequence[str]) -> int:
    """The verb `rankings simulate`."""
    return simulate(parse(SimulateConfig, argv, "groundling rankings simulate"))


def simulate(config: SimulateConfig) -> int:
    """Fill a store with simulated rankings; return the exit code.

    Raises:
        GroundlingError: one of its kinds, in one line.
    """
    started = time.perf_counter()
    bundle = require_chat(load_bundle(config.path, context=config.context), config.path)
    assert bundle.chat is not None
    least = least_ids(bundle.chat, bundle.tokenizer)
    room = prompt_room(bundle.config.block_size, config.max_new_tokens, least)
    asked = prompt_ids(read_asked(config.data).train[: config.prompts], bundle.chat, bundle.tokenizer, room)
    speaker = Speaker(
        bundle.model,
        bundle.chat,
        bundle.tokenizer,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        decode=settled(bundle.model, DecodeConfig(weights="bfloat16")),
    )
    judge = Judge(measure_by_name(config.gold), config.noise, config.seed)
    judge.measure("")  # what it needs is there
    atomicio.make_folder(config.rankings.parent)
    with Rankings(config.rankings) as rankings:
        groups = speaker.reply([list(ids) for ids in asked], config.seed, config.candidates)
        n_new = rankings.add_all(judged(config, judge, list(asked.values()), groups))
    say(f"{n_new:,} new rankings of {config.candidates} replies each by the measure {config.gold!r}, "
        f"in {time.perf_counter() - started:.0f} s: {config.rankings}")  # fmt: skip
    return 0


def judged(
    config: SimulateConfig, judge: Judge, asked: Sequence[Messages], groups: Iterable[Sequence[Reply]]
) -> Iterable[Judgement]:
    """The judge's answers, as a rater's who was shown the replies in an order of chance."""
    rater, moment = f"simulated-{config.gold}", now_utc()
    for number, (messages, replies) in enumerate(zip(asked, groups, strict=True)):
        texts = [reply.text for reply in replies]
        order = named_generator("shown", config.seed, number).permutation(len(texts))
        yield Judgement(
            key=name_of([rater, config.seed, config.noise, number, texts]),
            messages=messages,
            candidates=tuple(Candidate(text, config.path, config.seed) for text in texts),
            shown=tuple(int(place) for place in order),
            choice=judge.rank(number, texts),
            rater=rater,
            time=moment,
        )
