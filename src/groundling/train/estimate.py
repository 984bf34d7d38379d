"""Estimate the cost of a run before its first step: parameters, work, memory, time."""

import time
from dataclasses import dataclass

import torch

from groundling.data.batches import Batch
from groundling.errors import require
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.uninitialized import count_parameters
from groundling.system import distributed, hardware, memory
from groundling.system.memory import memory_of
from groundling.system.runtime import Runtime
from groundling.train.step import Objective

COMPILED_SPEED_UP = 1.4
"""Speed-up of compiled over eager code on two cores, between 1.2 in float32 and 1.7 in bfloat16
(benchmarks/README.md); for the ETA only."""


@dataclass(frozen=True)
class Estimate:
    """The cost of a run."""

    n_parameters: int
    n_tokens: int
    flops: float
    memory_bytes: int
    seconds: float
    n_train_tokens: int

    def lines(self) -> list[str]:
        """Four lines to log."""
        epochs = self.n_tokens / max(1, self.n_train_tokens)
        total = memory.memory_total_bytes()
        of_total = f" of {total / 1e9:,.1f} GB" if total else ""
        return [
            f"parameters  {self.n_parameters:,}",
            f"tokens      {self.n_tokens:,} in all, {epochs:,.1f} times the training text of {self.n_train_tokens:,}",
            f"work        {self.flops:.2e} FLOPs, about {self.memory_bytes / 1e9:,.2f} GB of memory{of_total}",
            f"time        about {describe_seconds(self.seconds)}",
        ]


def describe_seconds(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def total_flops(model: GPT, n_steps: int, batch_size: int) -> float:
    """Floating-point operations of a whole run."""
    return model.flops_per_token() * n_steps * batch_size * model.block_size


def estimate(
    model: GPT, picked: Runtime, *, n_steps: int, batch_size: int, micro_batch_size: int, n_train_tokens: int
) -> Estimate:
    """Estimate the cost of a run. The time is extrapolated from one forward and backward pass."""
    per_micro_batch = _measure(model, picked, micro_batch_size) / (COMPILED_SPEED_UP if picked.compile else 1.0)
    n_micro_batches = batch_size / (micro_batch_size * distributed.world_size())
    return Estimate(
        n_parameters=model.n_parameters(),
        n_tokens=n_steps * batch_size * model.block_size,
        flops=total_flops(model, n_steps, batch_size),
        memory_bytes=memory_bytes(model, picked, micro_batch_size),
        seconds=n_steps * n_micro_batches * per_micro_batch,
        n_train_tokens=n_train_tokens,
    )


def memory_bytes(model: GPT, picked: Runtime, micro_batch_size: int) -> int:
    """Approximate memory of training: weights, gradients, two moments, and activations.

    Each block keeps about 12 activations of width C and 4 of width F per token.
    """
    c = model.config
    of_weights = 16 * model.n_parameters()
    per_token = c.n_layer * (12 * c.n_embd + 4 * c.hidden_width()) * picked.compute_dtype.itemsize
    per_token += 3 * 4 * c.vocab_size
    return of_weights + micro_batch_size * c.block_size * per_token


def require_buildable(config: GPTConfig) -> None:
    """Check, before the model is built, that its weights fit into free memory.

    Raises:
        ConfigError: they do not.
    """
    weights, known = 4 * count_parameters(config), memory_of()
    require(
        known is None or weights <= known.free,
        f"the weights of this model take {weights / 1e9:,.1f} GB, and {known.free / 1e9 if known else 0:,.1f} GB of "
        "memory are free; take a smaller model",
    )


def require_memory(model: GPT, picked: Runtime, micro_batch_size: int) -> None:
    """Check that training fits into main memory, where the kernel would kill the process. A GPU raises its own error.

    Raises:
        ConfigError: the estimate, a lower bound, exceeds the memory.
    """
    needed, total = memory_bytes(model, picked, micro_batch_size), memory.memory_total_bytes()
    require(
        picked.device.type != "cpu" or not total or needed <= total,
        f"{micro_batch_size:,} sequences at once need about {needed / 1e9:,.0f} GB of memory and this machine has "
        f"{total / 1e9:,.0f}; cut the batch with --micro-batch-size, or take a smaller model",
    )


def _measure(model: GPT, picked: Runtime, micro_batch_size: int) -> float:
    """Seconds of one uncompiled forward and backward pass, the second of two. Leaves model and generators unchanged."""
    tokens_BT = torch.zeros(micro_batch_size, model.block_size, dtype=torch.long)
    batch = Batch(tokens_BT, tokens_BT, tokens_BT.numel()).to(picked.device)
    objective = Objective(model, autocast=picked.autocast)
    seconds = 0.0
    devices = [picked.device] if picked.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for _ in range(2):
            hardware.synchronize(picked.device)
            start = time.perf_counter()
            objective(batch).backward()
            hardware.synchronize(picked.device)
            seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return seconds
