"""`groundling speedrun`: train by a fixed recipe, each seed in a fresh process; report loss and time.

The wall time is that of the whole process: imports, data, compilation, training, one evaluation at the end, saving.
No decision uses validation data: the recipe fixes the number of steps, and the loss is measured once, at the end.
Teachers of the recipe are trained first, and their cost counts.
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
from groundling.bundle.layout import CHECKPOINTS
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
"""Name of a run's folder in a speedrun."""


@dataclass(frozen=True, kw_only=True)
class SpeedrunConfig:
    """Train a fixed recipe with several seeds, each in a fresh process; report total time and final loss."""

    preset: str = "speedrun"
    """Recipe: "speedrun", "best", or the name or path of another `pretrain` preset. Its teachers (teacher.recipes) are
    trained first, once per seed; the report includes their time and tokens."""
    seeds: tuple[int, ...] | None = None
    """One run per seed; the report ends with their mean and the worst. None: 1337, 1338 and 1339; 1337 alone for a
    recipe with teachers."""
    out_dir: Path | None = None
    """Folder for speedrun.json, the first seed's bundle and the runs; None: runs/ and the name of the preset."""
    overwrite: bool = False
    """Remove an earlier speedrun in out_dir, finished or not."""
    cold: bool = True
    """Compile without caches, as on a new machine; --no-cold: use cached compilations."""

    def __post_init__(self) -> None:
        if self.seeds is None:
            return
        require(bool(self.seeds), "seeds is empty; give one or more")
        require(len(set(self.seeds)) == len(self.seeds), f"seeds {self.seeds} names one twice; each must be different")
        for seed in self.seeds:
            require(0 <= seed < 2**50, f"seed {seed} is out of range; it must be at least 0 and below 2**50")


def main(argv: Sequence[str]) -> int:
    """The verb `speedrun`: returns 0, or 128 + the signal's number if a signal stopped it."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words[0] = f"--preset={words[0]}"  # `groundling speedrun my.toml`
    return speedrun(parse(SpeedrunConfig, words, "groundling speedrun"))


def speedrun(config: SpeedrunConfig) -> int:
    """Run the seeds one after another; write the report after each, and print it at the end.

    Raises:
        ConfigError: no such preset, or out_dir already holds a speedrun.
        TrainingError: a run failed; it has printed its own message.
    """
    recipes = Recipes.of(config.preset)
    seeds = config.seeds or recipes.default_seeds
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
    """Check that out_dir holds no run, and remove an earlier speedrun if `overwrite` is set.

    Raises:
        ConfigError: it holds a speedrun and `overwrite` is false, or a run of `pretrain`.
    """
    if any((out_dir / name).exists() for name in (*run_folder.FILES, CHECKPOINTS)):
        raise ConfigError(f"{out_dir} holds a run of `groundling pretrain`; choose another --out-dir")
    runs = [path for path in sorted(out_dir.iterdir()) if path.is_dir() and RUN_NAME.fullmatch(path.name)]
    left = [path for path in (out_dir / REPORT, out_dir / "bundle", *runs) if path.exists()]
    if left and not overwrite:
        raise ConfigError(f"{left[0]} is there already; remove it (--overwrite), or choose another --out-dir")
    for path in left:  # the report first: a report implies that its runs are complete
        atomic.remove(path)


def _run_in_a_process(command: list[str], *, cold: bool) -> tuple[float, int]:
    """Run a command; return its seconds and its exit code.

    SIGTERM and SIGINT stop the command. If a signal arrives too late to stop it, the code still reports the signal.
    """
    with _compiler_cache(cold=cold) as environment:
        start = time.perf_counter()
        process: subprocess.Popen[bytes] | None = None
        received: list[int] = []
        early: list[int] = []  # received before the process was started

        def forward(number: int, _: object) -> None:
            received.append(number)
            early.append(number) if process is None else process.send_signal(number)

        # SIGTERM is forwarded; Ctrl-C reaches the process directly, from the terminal.
        with handled_by(sigterm=forward, sigint=lambda number, _: received.append(number)):
            process = subprocess.Popen(command, env=environment)
            for number in early:
                process.send_signal(number)
            code = process.wait()
        code = 128 - code if code < 0 else code
        return time.perf_counter() - start, code or (128 + received[0] if received else 0)


@contextmanager
def _compiler_cache(*, cold: bool) -> Iterator[dict[str, str]]:
    """The environment of a run, with an empty compile cache if `cold`."""
    if not cold:
        yield dict(os.environ)
        return
    with tempfile.TemporaryDirectory(prefix="groundling-", ignore_cleanup_errors=True) as folder:
        yield {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}


def _unfinished(run: str, code: int, report: Path) -> int:
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        done = f"the finished seeds are in {report}" if report.exists() else "no seed has finished"
        log.info(f"the speedrun was stopped as asked in {run}; {done}; start again with --overwrite")
        return code
    raise TrainingError(f"{run} ended with exit code {code}; its output is above")


def _leave_bundle(source: Path, target: Path) -> None:
    """Save the first seed's bundle, not the best one: choosing would use the validation loss."""
    bundle = load_bundle(source)
    save_bundle(target, bundle.model, bundle.tokenizer, {"run": str(source.parent.name)})
