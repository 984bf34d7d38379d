"""Estimate how long `groundling chatgpt` takes, from two short measurements; corrected as steps end."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from groundling.bundle import Bundle
from groundling.model.loss import loss_sum
from groundling.model.packing import logits_at, pack
from groundling.sample.engine import DecodeConfig, Engine, deterministic_decode
from groundling.sample.request import row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.sample.scheduler import run_all
from groundling.system import runtime
from groundling.system.runtime import RuntimeConfig


@dataclass(frozen=True)
class Speed:
    """Seconds that a model takes for two small workloads on a machine."""

    training: float
    """16 rows of 48 tokens, forward and backward."""
    decoding: float
    """32 completions of 24 tokens."""


REFERENCE = Speed(training=0.10, decoding=0.14)
"""The model of `make chatgpt` on two cores of an Intel Xeon with AMX (2026-11-29).

Five trials: 0.09 to 0.12 and 0.13 to 0.18.
"""

SECONDS: Mapping[str, tuple[float, float]] = {
    "sft": (60, 4),
    "rankings simulate": (0, 205),
    "reward": (197, 0),
    "dpo": (34, 0),
    "grpo": (9, 18),
    "ppo": (43, 18),
    "without-kl": (22, 44),
    "verse.sqlite": (0, 25),
    "reward-verse": (10, 0),
    "over-optimised": (24, 48),
    "align-report": (12, 92),
}
"""Seconds of training and of decoding per step on that machine (2026-11-28), by the name of its output or its verb."""


def step_key(verb: str, output: Path) -> str:
    """The key of a step in SECONDS: the name of its output, else its verb."""
    return output.name if output.name in SECONDS else verb


N_DIALOGUES = 3409
"""Prompts of Tiny Shakespeare's dialogues in the training split."""
MAX_SCALE = 5000 / N_DIALOGUES
"""The recipe ranks replies to at most 5,000 prompts. PPO, GRPO and the report do not grow with the data."""


class Clock:
    """Estimates the time left.

    Args:
        names: keys in SECONDS of the steps to run.
        speed: measured speed of this model on this machine.
        scale: size of the data relative to Tiny Shakespeare's dialogues.
    """

    def __init__(self, names: Sequence[str], speed: Speed, scale: float = 1.0) -> None:
        training, decoding = speed.training / REFERENCE.training, speed.decoding / REFERENCE.decoding
        most = {"sft": math.inf, "rankings simulate": MAX_SCALE, "reward": MAX_SCALE, "dpo": MAX_SCALE}
        self._left = [
            (SECONDS[name][0] * training + SECONDS[name][1] * decoding)
            * (min(scale, most[name]) if name in most else 1)
            for name in names
        ]
        self._expected = self._passed = 0.0

    @property
    def seconds_left(self) -> float:
        """The estimate for the steps left, scaled by the error of the estimate for those that ended."""
        # Weight the error less until a tenth of the work is done: one step tells little.
        known = self._expected / (self._expected + sum(self._left)) if self._left else 1.0
        kept = self._passed / self._expected if self._expected else 1.0
        weight = min(1.0, 10 * known)
        return sum(self._left) * (weight * kept + 1 - weight)

    def end(self, seconds: float) -> None:
        """Record how long the next step took."""
        self._expected += self._left.pop(0)
        self._passed += seconds


def measure(bundle: Bundle, config: RuntimeConfig) -> Speed:
    """Time short training and decoding with a bundle's model, which stays unchanged."""
    picked = runtime.pick(config, worth_compiling=False)
    model = bundle.model.to(picked.device)
    length = min(48, bundle.config.block_size)
    idx = [[(7 * row + column) % bundle.n_ids for column in range(length)] for row in range(16)]
    rows = pack(idx, length)
    all_BT = torch.ones(rows.idx_BT.shape, dtype=torch.bool, device=picked.device)
    targets_N = torch.zeros(rows.idx_BT.numel(), dtype=torch.long)

    def learn() -> None:
        with picked.autocast():
            logits_NV = logits_at(model, rows.idx_BT.to(picked.device), rows.layout.to(picked.device), all_BT)
        torch.autograd.backward(loss_sum(logits_NV, targets_N.to(picked.device)))
        model.zero_grad(set_to_none=True)

    decode = deterministic_decode(model, DecodeConfig(weights="bfloat16"))

    def sample() -> None:
        engine, how = Engine(model, decode, 32, n_ids=bundle.n_ids), SamplingConfig(max_new_tokens=24)
        requests = [engine.new_request(idx[row % 16][:8], how, row_generator(0, row)) for row in range(32)]
        for _ in run_all(engine, requests):
            pass

    return Speed(_fastest(learn), _fastest(sample))


def _fastest(work: Callable[[], None], n_times: int = 5) -> float:
    """The shortest of a few runs after a warm-up, to exclude the load of other processes."""
    work()
    seconds = []
    for _ in range(n_times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
