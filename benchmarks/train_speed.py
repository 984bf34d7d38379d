"""Training speed and memory of Groundling and nanoGPT: python benchmarks/train_speed.py --nanogpt PATH

PATH is a checkout of https://github.com/karpathy/nanoGPT; without it only Groundling is measured. Both train nanoGPT's
baby GPT (its config/train_shakespeare_char.py) on the CPU, each as its own training loop does. A sweep of Groundling
over sizes and contexts follows. benchmarks/README.md describes the output and the keys of --json.


Contestants take turns, two steps per round, each in its own process: load on the machine affects all alike, and
allocators, threads and peak memory are not shared. Only the second step is timed, because the caches are cold after
another contestant's turn.

Over 300 lines because the race, the sweep and their report are one experiment.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from groundling.cli import limit_openmp_spinning
from groundling.data.batches import Batch, Batches
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.system import hardware, runtime
from groundling.system.logs import console_logging
from groundling.system.memory import peak_memory_bytes
from groundling.system.runtime import RuntimeConfig, make_deterministic
from groundling.train.compiled import compile_objective
from groundling.train.optim.optimizers import OptimConfig, Optimizers
from groundling.train.step import Objective, train_step

log = logging.getLogger("groundling.benchmarks")

CPU = torch.device("cpu")
SHORT = {"float32": "fp32", "bfloat16": "bf16"}
NANOGPT, OURS = "nanoGPT", "Groundling"
MODULE = "nanogpt_model"
PEAK_SECONDS = 0.3
SIZES = ((5, 2, 128), (6, 4, 256), (6, 6, 384), (6, 10, 640), (12, 12, 768))
"""Layers, heads and width of the sweep: about 1M, 5M, 11M, 30M and 124M parameters. Heads are 64 wide. The last is
GPT-2, with its vocabulary and a quarter of the tokens per step."""
CONTEXTS = (64, 128, 512, 1024)
"""Contexts of the 11M model in the sweep, besides 256."""
RACE_COLUMNS = {
    "contestant": "{name}",
    "tokens/s (median)": "{tokens_per_s:,.0f}",
    "ms/step": "{ms_per_step:,.0f}",
    "x nanoGPT's best": "{times_nanogpt:.2f}",
    "FLOP/s": "{flops_per_s:.3g}",
    "% of matmul peak in its precision": "{utilisation:.0%}",
    "peak memory MB": "{peak_memory_mb:,.0f}",
    "compile s": "{compile_s:.1f}",
}
SWEEP_COLUMNS = {
    "parameters": "{parameters:,}",
    "context": "{block_size}",
    "tokens/step": "{tokens_per_step:,}",
    "tokens/s": "{tokens_per_s:,.0f}",
    "ms per 1,000 tokens": "{ms_per_1000_tokens:.1f}",
    "% of matmul peak in its precision": "{utilisation:.0%}",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes of nanoGPT's baby GPT. Only ours uses micro-batches, which affect memory and speed but not the result."""

    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    block_size: int = 256
    vocab_size: int = 65
    dropout: float = 0.2
    batch_size: int = 64
    micro_batch_size: int = 16

    def gpt_config(self) -> GPTConfig:
        names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "dropout")
        return GPTConfig(**{n: getattr(self, n) for n in names}, attention_dropout=self.dropout, bias=False)

    def tokens_per_step(self) -> int:
        return self.batch_size * self.block_size

    def flops_per_token(self) -> float:
        """Training FLOPs per token, counted alike for both sides."""
        with torch.device("meta"):
            return GPT(self.gpt_config()).flops_per_token()


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """An implementation with its precision, compilation and recipe."""

    whose: str
    dtype: str
    compiled: bool
    recipe: Recipe
    nanogpt: str | None = None

    @property
    def name(self) -> str:
        how = [SHORT[self.dtype], "compiled" if self.compiled else "eager"]
        return f"{self.whose} {' '.join(how)}{'' if self.recipe.dropout else ', no dropout'}"


Step = Callable[[Sequence[Batch]], float]
"""Makes one update and returns its loss."""


def our_step(contestant: Contestant) -> tuple[int, Step]:
    """The number of parameters of our model, and its step, as in `groundling pretrain`."""
    compiling = "on" if contestant.compiled else "off"
    picked = runtime.pick(RuntimeConfig(device="cpu", dtype=contestant.dtype, compile=compiling))  # type: ignore[arg-type]
    make_deterministic(picked.device)
    model = GPT(contestant.recipe.gpt_config()).train()
    objective = Objective(model, autocast=picked.autocast)
    compile_objective(objective, picked)
    config = OptimConfig(kind="adamw", lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    optimizers = Optimizers(model, config, picked.compute_dtype)
    return model.n_parameters(), lambda batches: train_step(objective, batches, optimizers, max_norm=1.0).loss


def nanogpt_step(contestant: Contestant) -> tuple[int, Step]:
    """The number of parameters of nanoGPT's model, and its step, as in its train.py on a CPU.

    On a CPU its autocast is a nullcontext, its GradScaler is off, and gradients are accumulated over one batch.
    """
    recipe = contestant.recipe
    module = import_file(Path(contestant.nanogpt or "") / "model.py")
    names = [field.name for field in dataclasses.fields(module.GPTConfig) if hasattr(recipe, field.name)]
    with redirect_stdout(io.StringIO()):  # it prints its parameter count
        model = module.GPT(module.GPTConfig(**{n: getattr(recipe, n) for n in names}, bias=False)).train()
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    called = torch.compile(model) if contestant.compiled else model

    def step(batches: Sequence[Batch]) -> float:
        (batch,) = batches
        _, loss = called(batch.idx_BT, batch.targets_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value: float = loss.item()
        return value

    return sum(parameter.numel() for parameter in model.parameters()), step


def import_file(path: Path) -> Any:
    """Import a module by path, and register it in sys.modules, where torch.compile looks it up."""
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[MODULE] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Notes(logging.Handler):
    """Collects log messages, for example of a failed compilation."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__()
        self._notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        self._notes.append(record.getMessage())


def work(contestant: Contestant) -> None:
    """Main loop of a contestant's process: for each line of input, run a step or measure the peak; reply in JSON."""
    answers, recipe = sys.stdout, contestant.recipe
    notes: list[str] = []
    logging.getLogger("groundling").addHandler(Notes(notes))

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    def timed_step() -> dict[str, float]:
        batches = source.next_step()
        start = time.perf_counter()
        loss = step(batches)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "loss": loss, "memory_mb": peak_memory_bytes(CPU) / 1e6}

    with redirect_stdout(sys.stderr):
        torch.manual_seed(1337)
        ours = contestant.whose == OURS
        parameters, step = our_step(contestant) if ours else nanogpt_step(contestant)
        tokens = np.random.Generator(np.random.Philox(1337)).integers(0, recipe.vocab_size, 2**18).astype(np.uint16)
        source = Batches(
            tokens,
            block_size=recipe.block_size,
            batch_size=recipe.batch_size,
            micro_batch_size=recipe.micro_batch_size if ours else None,
            order="random",
            seed=1337,
        )
        answer(parameters=parameters, first_step=timed_step(), notes=notes)
        for line in sys.stdin:
            if line.strip() == "step":
                answer(**timed_step())
            else:
                dtype = runtime.DTYPES[contestant.dtype]
                answer(flops_per_s=hardware.measure_matmul_peak(CPU, dtype, PEAK_SECONDS))


class Worker:
    """A contestant in its own process: `with Worker(contestant, folder) as worker: worker.step()`.

    On Linux a child's peak memory starts at that of its parent, so this process does no training itself.

    Args:
        contestant: the contestant.
        compiled: empty folder for compiled code, so that compilation is timed.
    """

    def __init__(self, contestant: Contestant, compiled: Path) -> None:
        self.contestant, self._compiled = contestant, compiled
        self.steps: list[dict[str, float]] = []
        self.peaks: list[float] = []

    def __enter__(self) -> "Worker":
        log.info(f"{self.contestant.name}: the first step ...")
        environ = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(self._compiled)}
        limit_openmp_spinning(environ)  # for both sides, as the command `groundling` does
        argv = [sys.executable, __file__, "--work", json.dumps(dataclasses.asdict(self.contestant))]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=environ)
        self.ready = self._answer()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # ends its main loop
        self._process.wait()
        self._process.stdout.close()

    def warm_up(self) -> None:
        """Make an untimed step."""
        self._ask("step")

    def step(self) -> float:
        """Make a timed step; return its seconds."""
        self.steps.append(self._ask("step"))
        return self.steps[-1]["seconds"]

    def measure_peak(self) -> None:
        """Measure the matrix-product peak of its precision in its process."""
        self.peaks.append(self._ask("peak")["flops_per_s"])

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has exited, which `_answer` reports
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise SystemExit(f"{self.contestant.name}: its process exited with code {code}; see its output above")
        return dict(json.loads(line))

    def record(self) -> dict[str, Any]:
        """Results without the comparison with nanoGPT."""
        recipe, seconds = self.contestant.recipe, [step["seconds"] for step in self.steps]
        tokens_per_s = recipe.tokens_per_step() / median(seconds)
        flops_per_s = tokens_per_s * recipe.flops_per_token()
        return {
            "name": self.contestant.name,
            **{key: getattr(self.contestant, key) for key in ("whose", "dtype", "compiled")},
            **{key: getattr(recipe, key) for key in ("n_layer", "n_head", "n_embd", "block_size", "dropout")},
            "parameters": self.ready["parameters"],
            "tokens_per_step": recipe.tokens_per_step(),
            "seconds": seconds,
            "losses": [step["loss"] for step in self.steps],
            "ms_per_step": 1000 * median(seconds),
            "ms_per_1000_tokens": 1e6 / tokens_per_s,
            "tokens_per_s": tokens_per_s,
            "flops_per_s": flops_per_s,
            "peaks_flops_per_s": self.peaks,
            "utilisation": hardware.Peak(median(self.peaks)).share(flops_per_s),
            "peak_memory_mb": max(step["memory_mb"] for step in [self.ready["first_step"], *self.steps]),
            "compile_s": self.ready["first_step"]["seconds"],
            "notes": self.ready["notes"],
        }


def compile_cache() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder for compiled code. A compiler process may still write to it while it is removed."""
    return tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def race(contestants: Sequence[Contestant], rounds: int) -> list[dict[str, Any]]:
    """Run the contestants in turn; every other round in reverse, so that none always follows the same one."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(compile_cache()))
        workers = [stack.enter_context(Worker(each, folder / str(place))) for place, each in enumerate(contestants)]
        sizes = {worker.ready["parameters"] for worker in workers}
        if len(sizes) > 1:
            raise SystemExit(f"not the same model: {sorted(sizes)} parameters; is --nanogpt a checkout of nanoGPT?")
        for number in range(rounds):
            log.info(f"round {number + 1} of {rounds}")
            for worker in workers if number % 2 == 0 else reversed(workers):
                worker.warm_up()
                worker.step()
                worker.measure_peak()
        records = [worker.record() for worker in workers]
    theirs = [record["tokens_per_s"] for record in records if record["whose"] == NANOGPT]
    for record in records:
        record["times_nanogpt"] = record["tokens_per_s"] / max(theirs) if theirs else None
    return records


def line_up(nanogpt: Path | None, recipe: Recipe) -> list[Contestant]:
    """The contestants: nanoGPT and ours in each precision, eager and compiled; the last one is our default."""
    compiling = [False, True] if runtime.find_compiler() else [False]
    path = None if nanogpt is None else str(nanogpt)
    rows = [] if path is None else [(NANOGPT, "float32")]
    rows += [(OURS, dtype) for dtype in (["float32", "bfloat16"] if runtime.bfloat16_support(CPU) else ["float32"])]
    return [
        Contestant(whose=whose, dtype=dtype, compiled=compiled, recipe=recipe, nanogpt=path)
        for whose, dtype in rows
        for compiled in compiling
    ]


def without_dropout(contestants: Sequence[Contestant]) -> list[Contestant]:
    """nanoGPT's contestants and our default, without dropout."""
    recipe = dataclasses.replace(contestants[0].recipe, dropout=0.0)
    best = [contestant for contestant in contestants if contestant.whose == NANOGPT] + [contestants[-1]]
    return [dataclasses.replace(contestant, recipe=recipe) for contestant in best]


def sweep(default: Contestant, seconds: float) -> Iterator[dict[str, Any]]:
    """Measure our default over sizes at a context of 256, and over contexts of the 11M model."""
    points = [(size, 256) for size in SIZES] + [(SIZES[2], block_size) for block_size in CONTEXTS]
    with compile_cache() as folder:
        for (n_layer, n_head, n_embd), block_size in points:
            vocab_size, step_tokens = (50257, 1024) if n_embd == 768 else (65, 4096)
            recipe = Recipe(
                n_layer=n_layer,
                n_head=n_head,
                n_embd=n_embd,
                block_size=block_size,
                vocab_size=vocab_size,
                dropout=0.0,
                batch_size=step_tokens // block_size,
                micro_batch_size=step_tokens // block_size,
            )
            with Worker(dataclasses.replace(default, recipe=recipe), Path(folder)) as worker:
                worker.measure_peak()
                spent = 0.0
                while spent < seconds or len(worker.steps) < 3:
                    spent += worker.step()
                worker.measure_peak()
            yield worker.record()


def memory(records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Peak memory of eager nanoGPT, as its README recommends for a laptop, and of our default."""
    theirs = next((r["peak_memory_mb"] for r in records if r["whose"] == NANOGPT and not r["compiled"]), None)
    ours = records[-1]["peak_memory_mb"]
    return {"nanogpt_mb": theirs, "groundling_mb": ours, "ratio": ours / theirs if theirs else None}


def judge(races: Sequence[Sequence[dict[str, Any]]], points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each target with its measured value, and whether it is met; None if it was not measured."""
    bars: list[dict[str, Any]] = []

    def bar(text: str, value: float | None, met: Callable[[float], bool]) -> None:
        bars.append({"bar": text, "value": value, "met": None if value is None else met(value)})

    def at_11m(record: dict[str, Any], where: str) -> None:
        used = record["utilisation"] if record["dtype"] == "bfloat16" else None
        bar(f">= 0.65 of the bf16 peak at 11M, {where}", used, lambda x: x >= 0.65)

    for records, where in zip(races, ("the recipe", "without dropout"), strict=False):
        bar(f">= 3.5 x nanoGPT, {where}", records[-1]["times_nanogpt"], lambda x: x >= 3.5)
        at_11m(records[-1], where)
    for point in points:
        if point["block_size"] == 256 and 10e6 < point["parameters"] < 12e6:
            at_11m(point, "the sweep")
    single = [r["times_nanogpt"] for r in races[0] if r["whose"] == OURS and r["dtype"] == "float32"]
    bar("fp32 >= 1.3 x nanoGPT", None if None in single else max(single), lambda x: x >= 1.3)
    bar("memory <= half of nanoGPT's", memory(races[0])["ratio"], lambda x: x <= 0.5)
    return bars


def show(columns: dict[str, str], records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print records as table rows as they arrive, then their notes; return all records."""
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    shown = []
    for record in records:
        print(f"| {' | '.join(column.format(**record) for column in columns.values())} |", flush=True)
        shown.append(record)
    print("\n" + "".join(f"{record['name']}: {note}\n\n" for record in shown for note in record["notes"]), end="")
    return shown


def show_bars(bars: Iterable[dict[str, Any]]) -> None:
    """Print each target and whether it is met."""
    words = {True: "yes", False: "no", None: "not measured"}
    for bar in bars:
        print(f"- {bar['bar']}: {words[bar['met']]}" + ("" if bar["value"] is None else f" ({bar['value']:.2f})"))


def read_options() -> argparse.Namespace:
    usage = "train_speed.py [--nanogpt PATH] [--json OUT] [--rounds N] [--seconds S] [--no-plain] [--no-sweep]"
    parser = argparse.ArgumentParser(description=__doc__, usage=usage, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the results to this file")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps per contestant")
    parser.add_argument("--micro-batch-size", type=int, default=16, help="ours only; nanoGPT uses whole batches")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each point of the sweep")
    for name, what in (("--plain", "also race without dropout"), ("--sweep", "also sweep our sizes and contexts")):
        parser.add_argument(name, action=argparse.BooleanOptionalAction, default=True, help=what)
    for name, default in (("--layers", 6), ("--batch-size", 64)):  # smaller ones for tests
        parser.add_argument(name, type=int, default=default, help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)  # runs a contestant
    options = parser.parse_args()
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.parent}; make it first")
    if min(options.rounds, options.micro_batch_size, options.layers, options.batch_size) < 1:
        parser.error("--rounds and sizes must be at least 1")
    if options.batch_size % min(options.batch_size, options.micro_batch_size):
        parser.error(f"--micro-batch-size {options.micro_batch_size} does not divide the batch of {options.batch_size}")
    if options.nanogpt and not (options.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt {options.nanogpt} has no model.py; give a checkout of github.com/karpathy/nanoGPT")
    return options


def facts(nanogpt: Path | None, recipe: Recipe) -> dict[str, Any]:
    """The conditions of the measurement: machine, settings, recipe."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": hardware.environment(),
        "threads": torch.get_num_threads(),
        "bfloat16": runtime.bfloat16_support(CPU),
        "compiler": runtime.find_compiler(),
        "nanogpt_model_sha256": nanogpt and hashlib.sha256((nanogpt / "model.py").read_bytes()).hexdigest(),
        "recipe": {**dataclasses.asdict(recipe), "flops_per_token": recipe.flops_per_token()},
    }


def main() -> int:
    options = read_options()
    if options.work:
        values = json.loads(options.work)
        work(Contestant(**{**values, "recipe": Recipe(**values["recipe"])}))
        return 0
    recipe = Recipe(n_layer=options.layers, batch_size=options.batch_size, micro_batch_size=options.micro_batch_size)
    about = facts(options.nanogpt, recipe)
    print(f"{about['date']}; {about['environment']}; {about['threads']} threads")
    print(f"Medians of {options.rounds} rounds; compile s is the duration of the first, untimed step.\n")
    columns = dict(RACE_COLUMNS)
    if not options.nanogpt:
        print("nanoGPT was not measured: give a checkout with --nanogpt PATH\n")
        del columns["x nanoGPT's best"]
    contestants = line_up(options.nanogpt, recipe)
    line_ups = [contestants, without_dropout(contestants)] if options.plain else [contestants]
    races = [show(columns, race(each, options.rounds)) for each in line_ups]
    points = show(SWEEP_COLUMNS, sweep(contestants[-1], options.seconds)) if options.sweep else []
    bars = judge(races, points)
    show_bars(bars)
    if options.json:
        whole = {**about, "races": races, "memory": memory(races[0]), "sweep": points, "bars": bars}
        options.json.write_text(json.dumps(whole, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    with console_logging():
        raise SystemExit(main())
