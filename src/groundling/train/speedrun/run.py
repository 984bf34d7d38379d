"""`groundling speedrun`: train a fixed recipe, each seed in a fresh process, and report time and loss.

The wall time covers the whole process: imports, data, compilation, training, the evaluation at the end, and saving. No
decision depends on validation data: the recipe fixes the number of steps, and the loss is measured once, at the end.
Teachers named by the recipe are trained first, and their cost counts.
"""

import dataclasses
import logging
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from groundling.bundle import load_bundle, save_bundle
from groundling.config import parse
from groundling.errors import ConfigError, TrainingError, require
from groundling.storage import atomic
from groundling.system import hardware
from groundling.system.console import print_table
from groundling.system.signals import handled_by
from groundling.train import run_folder
from groundling.train.speedrun.recipes import Recipes
from groundling.train.speedrun.report import SeedResult, seed_result, table

log = logging.getLogger(__name__)

REPORT = run_folder.SPEEDRUN_REPORT
RUN_NAME = re.compile(r"seed-\d+(-teacher-\d+)?")
"""Name of a run folder of a speedrun."""


@dataclass(frozen=True, kw_only=True)
class SpeedrunConfig:
    """Train by a fixed recipe, each seed in a fresh process; report total time and final loss."""

    preset: str = "speedrun"
    """The recipe: "speedrun", "best", or the name or path of any other preset of `pretrain`. Its teachers
        (teacher.recipes) are trained first, for each seed; the report includes their time and tokens.
    """
    seeds: tuple[int, ...] | None = None
    """One run each; the report ends with mean and worst. None: 1337, 1338 and 1339; with teachers, 1337 alone."""
    out_dir: Path | None = None
    """Folder for speedrun.json, the first seed's bundle, and the run folders; None: runs/ and the preset's name."""
    overwrite: bool = False
    """Remove an earlier speedrun in out_dir, finished or not."""
    cold: bool = True
    """Compile from scratch, as on a new machine; --no-cold: use the compiler's cache."""

    def __post_init__(self) -> None:
        if self.seeds is None:
            return
        require(bool(self.seeds), "seeds is empty; give one or more")
        require(len(set(self.seeds)) == len(self.seeds), f"seeds {self.seeds} names one twice; each must be different")
        for seed in self.seeds:
            require(0 <= seed < 2**50, f"seed {seed} is out of range; it must be at least 0 and below 2**50")


def main(argv: Sequence[str]) -> int:
    """Run `groundling speedrun`; return 0, or 128 + the number of the signal that stopped it."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words[0] = f"--preset={words[0]}"  # `groundling speedrun my.toml`
    return speedrun(parse(SpeedrunConfig, words, "groundling speedrun"))


def speedrun(config: SpeedrunConfig) -> int:
    """Run all seeds in turn, print the report, and write it after each seed.

    Raises:
        ConfigError: there is no such preset, or out_dir holds a speedrun.
        TrainingError: a run failed; its error message is above.
    """
    recipes = Recipes.of(config.preset)
    seeds = config.seeds or recipes.usual_seeds
    out_dir = config.out_dir or Path("runs") / Path(recipes.preset).stem
    report = out_dir / REPORT
    with run_folder.locked(out_dir):
        _make_room(out_dir, overwrite=config.overwrite)
        results: list[SeedResult] = []
        for seed in seeds:
            jobs, wall_s = recipes.jobs(seed, out_dir), 0.0
            for job in jobs:
                log.info(f"seed {seed}: {job.run.name}, {job.preset} ...")
                seconds, code = _run_in_a_process(job.command(), cold=config.cold)
                if code != 0:
                    return _unfinished(job.run.name, code, report)
                wall_s += seconds
            if not results:
                _leave_bundle(jobs[-1].run / "bundle", out_dir / "bundle")
            results.append(seed_result(seed, wall_s, [job.run for job in jobs]))
            atomic.write_json(report, [dataclasses.asdict(result) for result in results])
    print_table(table(results))
    print(f"{hardware.processor_name()}, {os.cpu_count()} cores; wrote {report} and {out_dir / 'bundle'}")
    return 0


def _make_room(out_dir: Path, *, overwrite: bool) -> None:
    """Check that `out_dir` is free for a new speedrun, or remove an earlier one.

    Raises:
        ConfigError: there is an earlier one and `overwrite` is off, or a run of `pretrain`.
    """
    if any((out_dir / name).exists() for name in (*run_folder.FILES, "checkpoints")):
        raise ConfigError(f"{out_dir} holds a run of `groundling pretrain`; choose another --out-dir")
    runs = [path for path in sorted(out_dir.iterdir()) if path.is_dir() and RUN_NAME.fullmatch(path.name)]
    left = [path for path in (out_dir / REPORT, out_dir / "bundle", *runs) if path.exists()]
    if left and not overwrite:
        raise ConfigError(f"{left[0]} is there already; remove it (--overwrite), or choose another --out-dir")
    for path in left:  # the report first, because it refers to the rest
        atomic.remove(path)


def _run_in_a_process(command: list[str], *, cold: bool) -> tuple[float, int]:
    """Run a command; return its duration in seconds and its exit code.

    Signals are forwarded to the command, which handles them itself. If one came too late to stop it, the exit code
    still reports the signal.
    """
    with _compiler_cache(cold=cold) as environment:
        start = time.perf_counter()
        process: subprocess.Popen[bytes] | None = None
        came: list[int] = []
        early: list[int] = []  # signals received before the process started

        def pass_on(number: int, _: object) -> None:
            came.append(number)
            early.append(number) if process is None else process.send_signal(number)

        # SIGTERM is forwarded; the terminal sends Ctrl-C to the process itself.
        with handled_by(sigterm=pass_on, sigint=lambda number, _: came.append(number)):
            process = subprocess.Popen(command, env=environment)
            for number in early:
                process.send_signal(number)
            code = process.wait()
        code = 128 - code if code < 0 else code
        return time.perf_counter() - start, code or (128 + came[0] if came else 0)


@contextmanager
def _compiler_cache(*, cold: bool) -> Iterator[dict[str, str]]:
    """Return the environment of a run, with an empty compiler cache if `cold`."""
    if not cold:
        yield dict(os.environ)
        return
    with tempfile.TemporaryDirectory(prefix="groundling-", ignore_cleanup_errors=True) as folder:
        yield {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}


def _unfinished(run: str, code: int, report: Path) -> int:
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        done = f"the seeds that were done before are in {report}" if report.exists() else "no seed was done"
        log.info(f"the speedrun was stopped as asked in {run}; {done}; --overwrite begins it anew")
        return code
    raise TrainingError(f"{run} ended with exit code {code}; what it said stands above")


def _leave_bundle(source: Path, target: Path) -> None:
    """Keep the first seed's bundle, because choosing by validation loss would be a decision."""
    bundle = load_bundle(source)
    save_bundle(target, bundle.model, bundle.tokenizer, {"run": str(source.parent.name)})
