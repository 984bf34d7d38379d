"""`groundling sample`: let a trained model speak, on the terminal and as it thinks."""

import sys
import time
from dataclasses import dataclass, field
from typing import Literal

import tyro

from groundling.bundle import Bundle, load_bundle
from groundling.config import parse
from groundling.errors import DataError, require
from groundling.runtime import pick_device
from groundling.sample.generate import SamplingConfig, stream_batch
from groundling.text.tokenizer import require_unicode

SEPARATOR = "-" * 15


@dataclass(frozen=True, kw_only=True)
class Config:
    """Let a trained model go on from a prompt. The same seed gives the same text."""

    path: tyro.conf.Positional[str]
    """A bundle, a checkpoint, or the folder of a training run."""
    prompt: str = ""
    """What the text goes on from; "-", or none and something piped in, reads it from stdin."""
    num_samples: int = 1
    """Different texts to generate from the prompt; the first is shown as it comes."""
    checkpoint: str = "best"
    """Of a run: best, last, or a step."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    sampling: tyro.conf.OmitArgPrefixes[SamplingConfig] = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        require(self.num_samples >= 1, f"num_samples is {self.num_samples}; it must be at least 1")


def main(argv: list[str]) -> int:
    """Run the verb; return the exit code."""
    config = parse(Config, argv, "groundling sample")
    bundle = load_bundle(config.path, pick_device(config.device), checkpoint=config.checkpoint)
    prompt = _read_prompt(config.prompt)
    start = time.perf_counter()
    n_tokens = _speak(bundle, prompt, config)
    if sys.stderr.isatty():
        seconds = time.perf_counter() - start
        print(f"{n_tokens} tokens in {seconds:.1f} s: {n_tokens / seconds:,.0f} tokens/s", file=sys.stderr)
    return 0


def _read_prompt(prompt: str) -> str:
    """The prompt as given, or from stdin.

    Raises:
        DataError: it is not UTF-8.
    """
    if prompt != "-" and (prompt or sys.stdin is None or sys.stdin.isatty()):
        require_unicode(prompt)
        return prompt
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"the prompt on stdin is not UTF-8: byte {error.start}; convert it first") from error


def _speak(bundle: Bundle, prompt: str, config: Config) -> int:
    """Print the prompt and each sample, the first as it comes; return the number of generated tokens."""
    steps = stream_batch(bundle, prompt, config.sampling, config.num_samples)
    print(prompt, end="", flush=True)
    others: list[list[str]] = [[] for _ in range(config.num_samples - 1)]
    n_steps = -1  # the last step is text that was held back
    for piece, *rest in steps:
        n_steps += 1
        print(piece, end="", flush=True)
        for pieces, other_piece in zip(others, rest, strict=True):
            pieces.append(other_piece)
    print()
    for pieces in others:
        print(SEPARATOR)
        print(prompt + "".join(pieces))
    return n_steps * config.num_samples
