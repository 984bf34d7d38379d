"""`groundling doctor`: show the hardware and the settings chosen for it, and measure training and decoding speed."""

import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from groundling.config import parse
from groundling.data.batches import Batches
from groundling.errors import require
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample.auto_runner import compare
from groundling.sample.engine import DecodeConfig, Engine, deterministic_decode
from groundling.sample.native.build import Compilation
from groundling.sample.native.comparison import STREAMS
from groundling.sample.native.runner import can_read
from groundling.sample.quantize import Weights
from groundling.sample.request import row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.storage import atomic
from groundling.system import hardware, runtime
from groundling.system.hardware import Peak
from groundling.system.optional import install_command
from groundling.system.runtime import Runtime, RuntimeConfig
from groundling.train.optim.optimizers import OptimConfig, Optimizers
from groundling.train.step import Objective, train_step

EXTRAS = {
    "align": ("pronouncing", "vaderSentiment"),
    "export": ("gguf", "huggingface_hub", "tokenizers"),
    "plot": ("matplotlib",),
    "safety": ("sklearn",),
    "serve": ("fastapi", "prometheus_client", "pydantic", "re2", "starlette", "uvicorn"),
    "text": ("tiktoken", "tokenizers", "sentencepiece", "zstandard"),
    "track": ("tensorboard", "wandb"),
}


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(RuntimeConfig):
    """Show the hardware, the settings that will be used and why, and the training speed in tokens per second."""

    seconds: float = 3.0
    """Duration of the benchmark in seconds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.seconds < math.inf, f"seconds is {self.seconds}; it must be a number of at least 0")


def main(argv: Sequence[str]) -> int:
    """Run `groundling doctor`."""
    config = parse(DoctorConfig, argv, "groundling doctor")
    picked = runtime.pick(config)
    grid = Table("what", "here", show_header=False)
    about = hardware.environment()
    grid.add_row("Python", f"{about['python']} ({sys.executable})")
    grid.add_row("system", f"{platform.platform()}, {about['processor']}")
    grid.add_row("PyTorch", about["torch"])
    grid.add_row("memory", f"{about['memory_gb']} GB")
    grid.add_row("bfloat16", runtime.bfloat16_support(picked.device) or "no fast products; float32 is used")
    grid.add_row("compiler", runtime.find_compiler() or "none found: training runs without compilation")
    grid.add_row("cache", str(atomic.cache_folder()))
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if find_spec(name) is None]
        said = f"missing: {', '.join(missing)}\n{install_command(extra)}" if missing else "installed"
        grid.add_row(f"extra {extra}", said)
    grid.add_section()
    for name, reason in picked.reasons.items():
        grid.add_row(name, reason)
    grid.add_section()
    before = hardware.measure_matmul_peak(picked.device, picked.compute_dtype)
    model = GPT(GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=256))
    tokens_per_s = measure_training(model, picked, config.seconds)
    # Measure twice: another busy process during the first must not make training look faster than it is.
    peak = Peak(max(before, hardware.measure_matmul_peak(picked.device, picked.compute_dtype)))
    share = peak.share(tokens_per_s * model.flops_per_token())
    dtype = str(picked.compute_dtype).removeprefix("torch.")
    grid.add_row("matrix products", f"{peak.per_s / 1e9:,.0f} GFLOP/s in {dtype}")
    grid.add_row(
        "training",
        f"{tokens_per_s:,.0f} tokens/s without compilation, {share:.0%} of the above, "
        f"for a GPT of {model.n_parameters() / 1e6:.1f} M parameters (6 layers, width 384, context 256)",
    )
    grid.add_row("native decoder", describe_native_decoder(model))
    engine = Engine(model, deterministic_decode(model, DecodeConfig(), n_slots=1))
    how = "by the native decoder" if engine.is_native else "by PyTorch"
    grid.add_row("decoding", f"{measure_decoding(engine, config.seconds / 3):,.0f} tokens/s of that model, {how}")
    Console(markup=False).print(grid)  # an extra in brackets is not markup
    return 0


def measure_training(model: GPT, picked: Runtime, seconds: float, batch_size: int = 8) -> float:
    """Measure tokens per second of whole uncompiled training steps, after one warm-up step."""
    model.to(picked.device, picked.weight_dtype).train()
    objective = Objective(model, autocast=picked.autocast)
    optimizers = Optimizers(model, OptimConfig(), picked.compute_dtype)
    tokens = np.arange(model.block_size * 20, dtype=np.uint16) % model.config.vocab_size
    batches = Batches(tokens, block_size=model.block_size, batch_size=batch_size)
    train_step(objective, batches.next_step(), optimizers)
    start, n_tokens = time.perf_counter(), 0
    while n_tokens == 0 or time.perf_counter() - start < seconds:
        n_tokens += train_step(objective, batches.next_step(), optimizers).n_targets
    return n_tokens / (time.perf_counter() - start)


def describe_native_decoder(model: GPT) -> str:
    """Compare compiled decoding with PyTorch for each precision; compiles the decoder if necessary."""
    if not can_read(model):
        return "none: only float32 on a CPU is supported"
    compilation = Compilation()
    library = compilation.wait()
    if library is None:
        return f"none: {compilation.reason}"
    lines = [f"vectors of {library.lanes} floats; compared with PyTorch on one core:"]
    for weights in get_args(Weights):
        found = compare(model, STREAMS, weights, compilation, library)
        speeds = ", ".join(f"{case} {speedup:.1f} times as fast" for case, speedup in found.speedups().items())
        lines.append(f"{weights}: {speeds}; {'used' if found.prefers_native else 'PyTorch is used'}")
    return "\n".join(lines)


def measure_decoding(engine: Engine, seconds: float) -> float:
    """Measure tokens per second of one sample, after a warm-up."""
    engine.try_add(engine.new_request([0], SamplingConfig(max_new_tokens=1_000_000), row_generator(0, 0)))
    engine.step()
    start, before = time.perf_counter(), engine.counts.generated
    while time.perf_counter() - start < seconds or engine.counts.generated == before:
        engine.step()
    return (engine.counts.generated - before) / (time.perf_counter() - start)
