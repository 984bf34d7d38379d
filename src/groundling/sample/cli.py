"""`groundling sample`: generate text from a trained model and stream it to the terminal."""

import logging
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from groundling.bundle import load_bundle
from groundling.bundle.context import contexts
from groundling.bundle.layout import require_language_model
from groundling.config import parse
from groundling.errors import DataError, GroundlingError, require
from groundling.flags import any_text
from groundling.sample.engine import DecodeConfig, EngineStats
from groundling.sample.generate import TextDelta, stream_batch, text_engine
from groundling.sample.sampler import SamplingConfig
from groundling.system.logs import show_decoder
from groundling.system.output import put
from groundling.system.runtime import pick_device
from groundling.text.tokenizer import require_unicode

log = logging.getLogger(__name__)

SEPARATOR = "-" * 15
MAX_AT_ONCE = 64
"""Completions decoded at once; each takes memory."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Generate text from a trained model. The same seed gives the same text."""

    path: tyro.conf.Positional[str]
    """Bundle, checkpoint or run folder."""
    prompt: Annotated[str | None, any_text()] = None
    """Prompt; empty: the beginning of a line; "-": stdin; None: piped input, if any."""
    num_samples: int = 1
    """Number of samples; the first is streamed."""
    checkpoint: str = "best"
    """Checkpoint of a run: best, last, or a step number."""
    context: int | None = None
    """Context length in tokens; a shorter one uses less memory. None: the model's."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device."""
    draft: str | None = None
    """Draft model for speculative decoding: smaller, with the same tokenizer; see speculate."""
    sampling: tyro.conf.OmitArgPrefixes[SamplingConfig] = field(default_factory=SamplingConfig)
    decode: tyro.conf.OmitArgPrefixes[DecodeConfig] = field(default_factory=DecodeConfig)

    def __post_init__(self) -> None:
        require(self.num_samples >= 1, f"num_samples is {self.num_samples}; it must be at least 1")
        guesses = self.draft is None or self.decode.speculate > 0
        require(guesses, "a draft model guesses tokens ahead; say how many with --speculate")


def main(argv: list[str]) -> int:
    """Run the verb; return the exit code."""
    config = parse(Config, argv, "groundling sample")
    show_decoder()
    device = pick_device(config.device)
    require_language_model(config.path)
    bundle = load_bundle(config.path, device, checkpoint=config.checkpoint, context=config.context)
    draft = None
    if config.draft is not None:
        _, context = contexts([config.path, config.draft], config.context)
        draft = load_bundle(config.draft, device, context=context)
    prompt = _read_prompt(config.prompt)
    start = time.perf_counter()
    n_slots = min(config.num_samples, MAX_AT_ONCE)
    engine = text_engine(bundle, config.decode, n_slots, draft)
    deltas = stream_batch(engine, bundle.tokenizer, prompt, config.sampling, config.num_samples)
    try:
        _print(deltas, prompt, config.num_samples)
    except GroundlingError:
        print(flush=True)  # the error gets a line of its own
        raise
    if sys.stderr.isatty():
        log.info(_summary(engine.counts, time.perf_counter() - start))
    return 0


def _summary(counts: EngineStats, seconds: float) -> str:
    text = f"{counts.generated} tokens in {seconds:.1f} s: {counts.generated / seconds:,.0f} tokens/s"
    if counts.guessed:
        text += f"; {counts.right / counts.guessed:.0%} of {counts.guessed} guesses were right"
    return text


def _read_prompt(prompt: str | None) -> str:
    """The prompt as given, or from stdin: with "-" always, without a prompt unless stdin is a terminal.

    Raises:
        DataError: it is not UTF-8.
    """
    if prompt not in (None, "-"):
        require_unicode(prompt)
        return prompt
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")  # PowerShell writes a byte-order mark
    except UnicodeDecodeError as error:
        raise DataError(f"the prompt on stdin is not UTF-8: byte {error.start}; convert it first") from error


def _print(deltas: Iterator[TextDelta], prompt: str, num_samples: int) -> None:
    """Print each text after its prompt, in order: stream the current one, and hold the others until it ends."""
    now, held, ended = 0, defaultdict[int, list[str]](list), set[int]()
    put(prompt)
    for number, text, is_last in deltas:
        held[number].append(text)
        if is_last:
            ended.add(number)
        while now < num_samples:
            put("".join(held.pop(now, [])))
            if now not in ended:
                break
            now += 1
            put(f"\n{SEPARATOR}\n{prompt}" if now < num_samples else "\n")
