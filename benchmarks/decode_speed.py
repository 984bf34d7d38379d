"""Decoding speed of Groundling, nanoGPT, transformers and llama.cpp: python benchmarks/decode_speed.py

All run in one session on one machine with the same weights: random ones, which do not affect the speed, of the GPT-2
family (learned positions, GELU), which all can load. With --bundle, a trained model is measured too: speculative
decoding, the validation loss of each precision, and the cold start. benchmarks/README.md describes the output and the
keys of --json; the contestants are in decoders.py and llama_cpp_speed.py.

Over 300 lines because options, jobs and contestants of one command are read together.
"""

import argparse
import hashlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import decode_check
import decode_report
import numpy as np
import torch
import trained
from train_speed import show_bars
from turns import EndedError, Worker

from groundling.bundle import Bundle, load_bundle, save_bundle
from groundling.cli import limit_openmp_spinning
from groundling.export.gguf import export_gguf
from groundling.export.hf import export_hf
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample.generate import encode_prompt
from groundling.system import hardware
from groundling.system.logs import console_logging
from groundling.text.char import CharTokenizer
from groundling.text.gpt2 import GPT2Tokenizer
from groundling.text.tokenizer import Tokenizer

log = logging.getLogger("groundling.benchmarks")

HERE = Path(__file__).parent
N_CHARACTERS = 65
PROMPT = 200
"""Prompt tokens when measuring the time to the first token."""
FIRST_TOKEN_RUNS = 3
"""Measurements of the time to the first token per round; each is short."""
PROBE = (7, 1, 23, 42)
"""Prompt on which all contestants must agree, to show that they run the same model."""
MIN_CORRELATION = 0.99
"""Of a contestant's logits with ours in float32. int8 exceeds it; with other weights there is no correlation."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model of the GPT-2 family."""

    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int = N_CHARACTERS
    bias: bool = False
    longest: int = 1 << 20
    """Longer jobs are skipped, except the shortest one."""

    def config(self, block_size: int) -> GPTConfig:
        names = ("n_layer", "n_head", "n_embd", "vocab_size", "bias")
        return GPTConfig(**{name: getattr(self, name) for name in names}, block_size=block_size)

    def tokenizer(self) -> Tokenizer:
        return CharTokenizer("".join(map(chr, range(48, 48 + N_CHARACTERS)))) if self.n_embd < 768 else GPT2Tokenizer()


SIZES = {
    "5M": Size(n_layer=6, n_head=4, n_embd=256),
    "11M": Size(n_layer=6, n_head=6, n_embd=384),  # nanoGPT's baby GPT
    "124M": Size(n_layer=12, n_head=12, n_embd=768, vocab_size=50257, bias=True, longest=255),  # GPT-2
    "tiny": Size(n_layer=1, n_head=1, n_embd=32),  # for a test
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """Generate `new` tokens after each of `batch` prompts, in one batch."""

    prompt: int = 1
    new: int
    batch: int = 1
    ids: tuple[int, ...] | None = None
    """The prompt; None: a new random one for each run."""

    def block_size(self) -> int:
        """The smallest multiple of 256 that fits the job, so that no implementation slides its window."""
        return -(-(self.prompt + self.new) // 256) * 256

    def prompts(self, number: int) -> list[list[int]]:
        if self.ids is not None:
            return [list(self.ids)] * self.batch
        draws = np.random.Generator(np.random.Philox(number))
        return draws.integers(0, N_CHARACTERS, (self.batch, self.prompt)).tolist()  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A decoder to measure: its name in the tables, and the command that starts its process."""

    name: str
    whose: str
    precision: str
    argv: list[str]


def contestant(
    name: str, whose: str, precision: str, script: str, python: str = sys.executable, **values: object
) -> Contestant:
    """A contestant that runs `script` with `values` as JSON."""
    argv = [python, str(HERE / script), json.dumps(values)]
    return Contestant(name=name, whose=whose, precision=precision, argv=argv)


def ours(bundle: Path, threads: int, name: str, weights: str = "float32", **values: object) -> Contestant:
    values = {"kind": "groundling", "bundle": str(bundle), "weights": weights, "threads": threads, **values}
    return contestant(f"Groundling {name}", "Groundling", weights, "decoders.py", **values)


def line_up(bundle: Bundle, folder: Path, options: argparse.Namespace) -> Iterator[Contestant]:
    """Contestants for a model, which is written to the folder in each one's format."""
    threads, native = options.threads, folder / "bundle"
    save_bundle(native, bundle.model, bundle.tokenizer)
    for weights in ("float32", "bfloat16", "int8"):
        yield ours(native, threads, weights, weights, native="on" if options.check else "auto")
    yield ours(native, threads, "float32, PyTorch only", native="off")
    if options.check:
        return
    if options.nanogpt:
        values = {"kind": "nanogpt", "bundle": str(native), "checkout": str(options.nanogpt), "threads": threads}
        yield contestant("nanoGPT", "nanoGPT", "float32", "decoders.py", **values)
    if importlib.util.find_spec("transformers"):
        export_hf(bundle, folder / "hf")
        values = {"kind": "transformers", "folder": str(folder / "hf"), "threads": threads}
        yield contestant("transformers", "transformers", "float32", "decoders.py", **values)
    if options.llama_cpp:
        export_gguf(bundle, folder / "f32.gguf")
        for precision in ("f32", "f16", "bf16", "q8_0"):
            yield llama_cpp(options.llama_cpp, folder, precision, threads)


def llama_cpp(python: str, folder: Path, precision: str, threads: int) -> Contestant:
    path = folder / f"{precision}.gguf"
    if not path.exists():
        values = {"source": str(folder / "f32.gguf"), "target": str(path), "precision": precision}
        subprocess.run([python, HERE / "llama_cpp_speed.py", json.dumps(values)], check=True, stdout=sys.stderr)
    name = f"llama.cpp {precision}"
    return contestant(name, "llama.cpp", precision, "llama_cpp_speed.py", python, path=str(path), threads=threads)


def race(
    contestants: Sequence[Contestant], jobs: Sequence[Job], probe: Sequence[int], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Run each job on all contestants in turn; return a record per contestant and job.

    Every other round runs in reverse order. First all compute the logits after `probe`, to check that they run the same
    model.
    """
    with ExitStack() as stack:
        started = [(each, stack.enter_context(Worker(each.name, each.argv, environ(each)))) for each in contestants]
        contestants, workers = zip(*same_model_only(started, probe), strict=True)
        records = {
            (each.name, job): {
                **{key: getattr(each, key) for key in ("name", "whose", "precision")},
                **{key: getattr(job, key) for key in ("prompt", "new", "batch")},
                "block_size": job.block_size(),
                "runs": [],
                "bandwidths": [],
            }
            for each in contestants
            for job in jobs
        }
        for number in range(options.rounds):
            for job in jobs:
                log.info(f"round {number + 1} of {options.rounds}: {job.batch} x {job.prompt} + {job.new} tokens")
                for worker in workers if number % 2 == 0 else reversed(workers):
                    run_job(worker, job, number, options.budget, records[worker.name, job])
    return [decode_report.conclude(record) for record in records.values()]


def environ(each: Contestant) -> dict[str, str]:
    """The environment of a contestant's process; ours limits spinning threads, as the command `groundling` does."""
    found = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if each.whose == "Groundling":
        limit_openmp_spinning(found)
    return found


def run_job(worker: Worker, job: Job, number: int, budget_s: float, record: dict[str, Any]) -> None:
    """Run a job once, or several times for the first token, and append the results to its record."""
    for attempt in range(FIRST_TOKEN_RUNS if job.new == 1 else 1):
        prompts = job.prompts(FIRST_TOKEN_RUNS * number + attempt)
        record["runs"].append(worker.ask("decode", prompts=prompts, new=job.new, budget_s=budget_s))
    if record["whose"] == "Groundling" and job.batch == 1 < job.new and job.ids is None:
        tokens = record["runs"][-1]["tokens"]
        record["bandwidths"].append(worker.ask("bandwidth", length=job.prompt + tokens / 2))


def same_model_only(
    started: Sequence[tuple[Contestant, Worker]], ids: Sequence[int]
) -> list[tuple[Contestant, Worker]]:
    """Contestants that compute the logits after these ids. Third-party programs that crash are dropped with a message.

    Raises:
        SystemExit: a contestant's logits differ from the first one's.
    """
    able, first = list[tuple[Contestant, Worker]](), list[float]()
    for each, worker in started:
        try:
            scores = worker.ask("logits", ids=ids)["logits"][:N_CHARACTERS]
        except EndedError as ended:
            if each.whose == "Groundling":
                raise
            log.info(f"{ended}; skipped")
            continue
        first = first or scores
        correlation = float(np.corrcoef(first, scores)[0, 1])
        if not correlation > MIN_CORRELATION:
            raise SystemExit(
                f"{each.name} runs a different model than {started[0][0].name}: correlation {correlation:.3f}"
            )
        able.append((each, worker))
    return able


def measure(size: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all jobs at one size; jobs of one block_size share their processes."""
    shortest = min(options.new)
    lengths = [new for new in options.new if new == shortest or new <= SIZES[size].longest]
    batches = [batch for batch in options.batches if batch > 1]
    jobs = [Job(new=new) for new in lengths] + [Job(new=shortest, batch=batch) for batch in batches]
    jobs.append(Job(prompt=PROMPT, new=1))
    records = []
    for block_size in sorted({job.block_size() for job in jobs}):
        config, tokenizer = SIZES[size].config(block_size), SIZES[size].tokenizer()
        torch.manual_seed(1337)
        bundle = Bundle(config, GPT(config).eval(), tokenizer)
        log.info(f"{size}: {bundle.model.n_parameters():,} parameters, block_size {block_size}")
        with tempfile.TemporaryDirectory() as folder:
            contestants = list(line_up(bundle, Path(folder), options))
            these = [job for job in jobs if job.block_size() == block_size]
            raced = race(contestants, these, PROBE, options)
        records += [{"size": size, "parameters": bundle.model.n_parameters(), **record} for record in raced]
    return records


def guess_ahead(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure a trained model with and without speculative decoding."""
    ids = tuple(encode_prompt(load_bundle(options.bundle).tokenizer, options.prompt))
    entrants = [ours(options.bundle, options.threads, "float32")]
    entrants.append(ours(options.bundle, options.threads, "4 draft tokens from the text", speculate=4))
    if options.draft:
        name = "4 draft tokens from the draft model"
        entrants.append(ours(options.bundle, options.threads, name, speculate=4, draft=str(options.draft)))
    return race(entrants, [Job(prompt=len(ids), new=trained.NEW, ids=ids)], ids, options)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="a checkout of nanoGPT")
    words = "a Python with llama-cpp-python; default: this one"
    parser.add_argument("--llama-cpp", nargs="?", const=sys.executable, metavar="PYTHON", help=words)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["5M", "11M", "124M"], help="model sizes")
    parser.add_argument("--rounds", type=int, default=2, help="rounds; the best one counts")
    parser.add_argument("--new", nargs="+", type=int, default=[128, 1024], help="new tokens per stream")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16, 64], help="concurrent streams")
    parser.add_argument("--budget", type=float, default=20.0, help="time limit of a job in seconds")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads per contestant")
    parser.add_argument("--bundle", type=Path, metavar="RUN", help="also measure this trained model")
    parser.add_argument("--draft", type=Path, metavar="RUN", help="draft model for speculative decoding")
    parser.add_argument("--prompt", default="ROMEO:", help="prompt for the trained model")
    parser.add_argument("--text", metavar="FILE", help="training text of the trained model; default: Tiny Shakespeare")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    words = "only compare our compiled code with PyTorch; exit with 1 if it is not faster"
    parser.add_argument("--check", action="store_true", help=words)
    options = parser.parse_args()
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.parent}; make it first")
    if min(options.rounds, options.threads, *options.new, *options.batches) < 1 or options.budget <= 0:
        parser.error("numbers must be at least 1")
    if min(options.new) < 2:
        parser.error("--new must be at least 2; the time to the first token is always measured")
    if options.nanogpt and not (options.nanogpt / "model.py").is_file():
        parser.error(f"--nanogpt {options.nanogpt} has no model.py; give a checkout of github.com/karpathy/nanoGPT")
    if options.draft and not options.bundle:
        parser.error("--draft needs a trained model; give it with --bundle RUN")
    if options.check and (options.nanogpt or options.llama_cpp or options.bundle or options.json):
        parser.error("--check compares our own decoders only; leave out --nanogpt, --llama-cpp, --bundle and --json")
    options.llama_cpp_version = None
    if options.llama_cpp:
        options.llama_cpp_version = version_of_llama_cpp(options.llama_cpp)
        if not options.llama_cpp_version:
            parser.error(f"--llama-cpp {options.llama_cpp} cannot import llama_cpp; install llama-cpp-python there")
    return options


def version_of_llama_cpp(python: str) -> str:
    """The version of llama-cpp-python in a Python; empty if it has none."""
    try:
        command = [python, HERE / "llama_cpp_speed.py", "--version"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """The conditions of the measurement: machine, versions, settings."""
    nanogpt = options.nanogpt
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": hardware.environment(),
        "threads": options.threads,
        "rounds": options.rounds,
        "budget_s": options.budget,
        "nanogpt_model_sha256": nanogpt and hashlib.sha256((nanogpt / "model.py").read_bytes()).hexdigest(),
        "transformers": version("transformers") if importlib.util.find_spec("transformers") else None,
        "llama_cpp_python": options.llama_cpp_version,
    }


def main() -> int:
    options = read_options()
    if options.check:
        return decode_check.check(options.sizes, lambda size: measure(size, options))
    about = facts(options)
    decode_report.print_header(about)
    records: list[dict[str, Any]] = []
    for size in options.sizes:
        measured = measure(size, options)
        decode_report.show_size(size, measured)
        records += measured
    guessing, losses, cold_starts = [], {}, []
    if options.bundle:
        guessing = guess_ahead(options)
        losses = trained.losses(options.bundle, options.text)
        cold_starts = trained.cold_starts(options.bundle, options.prompt)
        decode_report.show_trained(guessing, losses, cold_starts)
    bars = decode_report.judge(records, "11M" if "11M" in options.sizes else options.sizes[0], cold_starts)
    show_bars(bars)
    if options.json:
        whole = {**about, "decoding": records, "guessing": guessing, "losses": losses}
        whole |= {"cold_starts_s": cold_starts, "bars": bars}
        options.json.write_text(json.dumps(whole, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    with console_logging():
        raise SystemExit(main())
