"""Time the native decoder against PyTorch, once per machine, model shape and precision.

Compiled code is usually two to four times as fast. It can be slower if the compiler targets narrower vectors than
PyTorch selects at run time.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from groundling.errors import GroundlingError
from groundling.model.config import GPTConfig
from groundling.sample.quantize import Weights
from groundling.sample.runner import ModelRunner, TokenSpan
from groundling.storage import atomic
from groundling.storage.manifest import read_json_object

PROMPT = 32
"""Tokens of the timed prompt."""
STREAMS = 16
"""The largest timed batch of decoding streams."""
MEASURED_S = 0.005
"""Seconds per runner and case; at least two forward passes."""

_IRRELEVANT_KEYS = ("block_size", "dropout", "attention_dropout", "rope_theta", "norm_eps", "tie_weights")


@dataclass(frozen=True)
class Comparison:
    """CPU seconds per forward pass on one core, by case ("1 stream", "16 streams", "prompt of 32")."""

    native_s: dict[str, float]
    torch_s: dict[str, float]

    def speedups(self) -> dict[str, float]:
        """PyTorch's time divided by the native decoder's, by case."""
        return {case: self.torch_s[case] / self.native_s[case] for case in self.native_s}

    @property
    def speedup(self) -> float:
        """The geometric mean of `speedups()`."""
        ratios = self.speedups().values()
        return math.exp(sum(map(math.log, ratios)) / len(ratios))

    @property
    def prefers_native(self) -> bool:
        """Whether the native decoder is the faster one."""
        return self.speedup > 1.0


def cases(config: GPTConfig, n_slots: int) -> dict[str, list[TokenSpan]]:
    """The timed batches: a step of one stream, a step of `n_slots` streams (at most `STREAMS`), and a prompt."""
    place = min(PROMPT, config.block_size) - 1
    streams = min(n_slots, STREAMS)
    found = {"1 stream": [TokenSpan(0, place, [0], 1)]}
    if streams > 1:
        found[f"{streams} streams"] = [TokenSpan(slot, place, [0], 1) for slot in range(streams)]
    found[f"prompt of {place + 1}"] = [TokenSpan(0, 0, [0] * (place + 1), 1)]
    return found


def measure(native: ModelRunner, by_torch: ModelRunner, config: GPTConfig, n_slots: int) -> Comparison:
    """Time both runners in turn, each on one thread and in CPU time, which a busy machine does not change.

    Overwrites the first slots of both runners' caches.

    Args:
        native: the compiled runner, with one thread.
        by_torch: the PyTorch runner.
        config: the model's.
        n_slots: the intended number of concurrent streams.
    """
    times: tuple[dict[str, float], dict[str, float]] = ({}, {})
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for case, spans in cases(config, n_slots).items():
            for seconds, runner in zip(times, (native, by_torch), strict=True):
                seconds[case] = best_of(lambda runner=runner, spans=spans: runner.read(spans))  # type: ignore[misc]
    finally:
        torch.set_num_threads(n_threads)
    return Comparison(*times)


def best_of(work: Callable[[], object]) -> float:
    """The shortest CPU time of this thread for a call, in seconds, after one warm-up call."""
    work()
    best, spent, n = math.inf, 0.0, 0
    while n < 2 or spent < MEASURED_S:
        start = time.thread_time()
        work()
        seconds = time.thread_time() - start
        best, spent, n = min(best, seconds), spent + seconds, n + 1
    return best


def shape_key(config: GPTConfig, weights: Weights, n_slots: int) -> str:
    """A hash of what a measurement depends on besides the library."""
    shape = {k: v for k, v in dataclasses.asdict(config).items() if k not in _IRRELEVANT_KEYS}
    parts = [shape, weights, list(cases(config, n_slots)), torch.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def load_or_measure(file: Path, key: str, measure_now: Callable[[], Comparison]) -> Comparison:
    """Load the measurement of a key from a file, or measure and store it; errors of the file are ignored."""
    try:
        found = read_json_object(file)
    except (GroundlingError, OSError):
        found = {}
    comparison = _parsed(found.get(key))
    if comparison is None:
        comparison = measure_now()
        with suppress(GroundlingError, OSError):
            atomic.write_json(file, {**found, key: dataclasses.asdict(comparison)})
    return comparison


def _parsed(entry: object) -> Comparison | None:
    """A stored measurement; None if it is malformed."""
    if not isinstance(entry, dict):
        return None
    native_s, torch_s = entry.get("native_s"), entry.get("torch_s")
    if not (
        isinstance(native_s, dict) and isinstance(torch_s, dict) and native_s and native_s.keys() == torch_s.keys()
    ):
        return None
    numbers = [*native_s.values(), *torch_s.values()]
    if not all(isinstance(x, float) and math.isfinite(x) and x > 0 for x in numbers):
        return None
    return Comparison(native_s, torch_s)
