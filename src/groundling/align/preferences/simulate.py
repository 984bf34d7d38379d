"""`groundling rankings simulate`: sample replies of a model, and rank them by a simulated rater.

The store holds what a person's rankings would: texts and an order, but not the measure.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from groundling.align.data import ChatDataConfig, encode_prompts, prompt_room, read_prompt_splits
from groundling.align.preferences.judgement import MAX_CANDIDATES, Candidate, Judgement, now_utc, short_hash
from groundling.align.preferences.measures import measure_by_name
from groundling.align.preferences.simulated_rater import SimulatedRater, named_generator
from groundling.align.preferences.store import Rankings
from groundling.align.replies import Reply, ReplySampler, reproducible_sampler
from groundling.bundle import load_chat_bundle
from groundling.bundle.adapter import base_at
from groundling.config import parse, to_dict
from groundling.data.examples.encoding import least_ids
from groundling.data.examples.messages import Messages
from groundling.errors import require
from groundling.storage import atomic
from groundling.system.progress import Progress

log = logging.getLogger(__name__)

COMMIT_S = 2.0
"""Seconds between commits: the most work a kill can lose."""


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Rank generated replies with a simulated rater: groundling rankings simulate BUNDLE [--field value ...]."""

    path: tyro.conf.Positional[str]
    """Model that replies."""
    rankings: Path = Path("runs/rankings.sqlite")
    """Rankings file (SQLite); new answers are appended."""
    gold: str = "warm"
    """Gold score that the rater follows: warm (VADER sentiment) or verse (lines of ten syllables)."""
    noise: float = 0.2
    """Score gap at which the better reply wins with a probability of 73 %."""
    candidates: int = 4
    """Replies per prompt."""
    prompts: int = 2000
    """Number of prompts, from the training split."""
    max_new_tokens: int = 128
    """Maximum reply length in tokens."""
    temperature: float = 1.0
    """Sampling temperature."""
    context: int | None = None
    """Context length in tokens; None: the model's."""
    seed: int = 1337
    """Seed of the sampler and the rater."""
    data: ChatDataConfig = field(default_factory=ChatDataConfig)

    def __post_init__(self) -> None:
        require(
            2 <= self.candidates <= MAX_CANDIDATES,
            f"candidates is {self.candidates}; a ranking has from 2 to {MAX_CANDIDATES}",
        )
        for name in ("prompts", "max_new_tokens"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.noise >= 0, f"noise is {self.noise}; it must be at least 0")
        measure_by_name(self.gold)


def main(argv: Sequence[str]) -> int:
    """The verb `rankings simulate`."""
    return simulate(parse(SimulateConfig, argv, "groundling rankings simulate"))


def simulate(config: SimulateConfig) -> int:
    """Add simulated rankings to a store; return the exit code.

    Rankings are committed as they are made, and a repeated command makes only those that are missing.

    Raises:
        GroundlingError: any subclass.
    """
    started = time.perf_counter()
    bundle = load_chat_bundle(config.path, context=config.context)
    least = least_ids(bundle.chat, bundle.tokenizer)
    room = prompt_room(bundle.config.block_size, config.max_new_tokens, least)
    prompts = encode_prompts(read_prompt_splits(config.data).train[: config.prompts], bundle, room)
    sampler = reproducible_sampler(bundle, max_new_tokens=config.max_new_tokens, temperature=config.temperature)
    judge = SimulatedRater(measure_by_name(config.gold), config.noise, config.seed)
    judge.measure("")  # fail early if its package is missing
    questions = _questions(config, base_at(config.path).sha256, prompts)
    atomic.make_folder(config.rankings.parent)
    with Rankings(config.rankings) as rankings:
        left = [question for question in questions if question.key not in rankings]
        n_there = len(questions) - len(left)
        if n_there:
            log.info(f"{n_there:,} of {len(questions):,} rankings already exist; making the others")
        write_progress(config, done=False)
        with Progress("simulating rankings", len(left)) as progress:
            n_new = _rank(config, sampler, judge, left, rankings, progress)
    write_progress(config, done=True)
    log.info(f"{n_new:,} new rankings of {config.candidates} replies each by the measure {config.gold!r}, "
        f"in {time.perf_counter() - started:.0f} s: {config.rankings}")  # fmt: skip
    return 0


@dataclass(frozen=True)
class Question:
    """A prompt whose replies will be ranked."""

    number: int
    ids: list[int]
    messages: Messages
    key: str
    """Key of the ranking: a hash of the model and all settings, known before sampling."""


def _questions(config: SimulateConfig, model: str, prompts: Mapping[tuple[int, ...], Messages]) -> list[Question]:
    settings = [_rater(config), config.seed, config.noise, config.candidates, config.temperature]
    settings += [config.max_new_tokens, config.context, model]
    return [
        Question(number, list(ids), messages, short_hash([*settings, number, ids]))
        for number, (ids, messages) in enumerate(prompts.items())
    ]


def _rank(
    config: SimulateConfig,
    sampler: ReplySampler,
    judge: SimulatedRater,
    questions: Sequence[Question],
    rankings: Rankings,
    progress: Progress,
) -> int:
    """Sample and rank; commit every `COMMIT_S` seconds and on Ctrl-C. Return the number of new rankings."""
    by_number = {question.number: question for question in questions}
    ready, n_new, kept_at = list[Judgement](), 0, time.monotonic()
    prompts = ((question.number, question.ids) for question in questions)
    try:
        for number, replies in sampler.stream(prompts, config.seed, config.candidates):
            ready.append(judged(config, judge, by_number[number], replies))
            progress.advance(1)
            if time.monotonic() - kept_at >= COMMIT_S:
                n_new += rankings.add_all(ready)
                ready, kept_at = [], time.monotonic()
    except KeyboardInterrupt:
        n_new += rankings.add_all(ready)
        log.info(f"{n_new:,} new rankings are in {config.rankings}; the same command makes the others")
        raise
    return n_new + rankings.add_all(ready)


def judged(config: SimulateConfig, judge: SimulatedRater, question: Question, replies: Sequence[Reply]) -> Judgement:
    """The simulated rater's judgement, with the replies shown in random order."""
    texts = [reply.text for reply in replies]
    order = named_generator("shown", config.seed, question.number).permutation(len(texts))
    return Judgement(
        key=question.key,
        messages=question.messages,
        candidates=tuple(Candidate(text, config.path, config.seed) for text in texts),
        shown=tuple(int(place) for place in order),
        choice=judge.rank(question.number, texts),
        rater=_rater(config),
        time=now_utc(),
    )


def _rater(config: SimulateConfig) -> str:
    return f"simulated-{config.gold}"


def write_progress(config: SimulateConfig, *, done: bool) -> None:
    """Record next to the rankings whether the simulation is complete."""
    atomic.write_json(progress_file(config.rankings), {"rankings simulate": to_dict(config), "done": done})


def is_unfinished(rankings: Path) -> bool:
    """Whether a simulation that writes to this store was interrupted."""
    try:
        return atomic.read_json(progress_file(rankings))["done"] is not True
    except (OSError, ValueError, LookupError, TypeError):
        return False


def progress_file(rankings: Path) -> Path:
    """File in which `rankings simulate` records its progress."""
    return rankings.with_name(f"{rankings.name}.simulated.json")
