"""`groundling speedrun`: train by a fixed recipe, each seed in a fresh process; report loss and time.

The wall time is that of the whole process: imports, data, compilation, training, one evaluation at the end, saving.
No decision uses validation data: the recipe fixes the number of steps, and the loss is measured once, at the end.
Teachers of the recipe are trained first, and their cost counts.

One file of over 300 lines: recipes, processes and report serve this verb alone.
"""

import dataclasses
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from groundling.bundle import load_bundle, save_bundle
from groundling.bundle.layout import CHECKPOINTS
from groundling.config import parse
from groundling.errors import ConfigError, TrainingError, require
from groundling.storage import atomic
from groundling.system import hardware
from groundling.system.console import print_table
from groundling.system.signals import handled_by
from groundling.train import run_folder
from groundling.train.settings import PretrainConfig

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


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One process: a recipe with a seed, its teachers if any, and its run folder."""

    preset: str
    recipe: PretrainConfig
    seed: int
    run: Path
    teachers: tuple[Path, ...] = ()

    def command(self) -> list[str]:
        """The command line: the recipe with one evaluation, at the end."""
        words = ["pretrain", self.preset, f"--seed={self.seed}", f"--out-dir={self.run}", "--overwrite"]
        words += [f"--eval-every={self.recipe.steps}", f"--save-every={self.recipe.steps}"]
        words += ["--patience=None", "--sample-every=None", "--no-estimate-train-loss"]
        words += ["--teacher.models", *map(str, self.teachers)] if self.teachers else []
        return [sys.executable, "-m", "groundling", *words]


@dataclass(frozen=True, kw_only=True)
class Recipes:
    """A recipe and those of its teachers, by preset."""

    preset: str
    by_preset: dict[str, PretrainConfig]

    @classmethod
    def of(cls, preset: str) -> "Recipes":
        """Read all of them; raise ConfigError for what cannot work before anything runs."""
        preset = _file_name(preset)
        by_preset = {preset: _read(preset)}
        for name in dict.fromkeys(map(_file_name, by_preset[preset].teacher.recipes)):
            by_preset[name] = _read(name)
            if by_preset[name].teacher.recipes:
                raise ConfigError(f"{name}, a teacher of {preset}, has teacher.recipes of its own; it can have none")
            if by_preset[name].data != by_preset[preset].data:
                raise ConfigError(
                    f"{name}, a teacher of {preset}, has other settings of data; a teacher has to read what its "
                    "student reads, and nothing of what the student is tested on"
                )
        for name, recipe in by_preset.items():
            if recipe.teacher.models:
                raise ConfigError(f"{name} has teacher.models, whose cost is not known here; name teacher.recipes")
            if recipe.init_from is not None:
                raise ConfigError(f"{name} has init_from, whose cost is not known here; leave it out")
        return cls(preset=preset, by_preset=by_preset)

    @property
    def teachers(self) -> list[str]:
        """The preset of each teacher."""
        return [_file_name(name) for name in self.by_preset[self.preset].teacher.recipes]

    @property
    def usual_seeds(self) -> tuple[int, ...]:
        """Three; one with teachers, which make a run an hour of work."""
        return (1337,) if self.teachers else (1337, 1338, 1339)

    def jobs(self, seed: int, out_dir: Path) -> list[_Job]:
        """The jobs of a seed, teachers first. Teachers have seeds of their own, different for each seed."""
        jobs = [
            _Job(
                preset=preset,
                recipe=self.by_preset[preset],
                seed=1000 * seed + number,
                run=out_dir / f"seed-{seed}-teacher-{number}",
            )
            for number, preset in enumerate(self.teachers, start=1)
        ]
        teachers = tuple(job.run for job in jobs)
        recipe, run = self.by_preset[self.preset], out_dir / f"seed-{seed}"
        return [*jobs, _Job(preset=self.preset, recipe=recipe, seed=seed, run=run, teachers=teachers)]


def _file_name(preset: str) -> str:
    """The file name of a preset, as `pretrain` takes it."""
    return preset if preset.endswith(".toml") else f"{preset}.toml"


def _read(preset: str) -> PretrainConfig:
    return parse(PretrainConfig, [preset], "groundling pretrain")


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """Result of one seed: an entry of speedrun.json."""

    seed: int
    wall_s: float
    """Seconds from the start of the process to its end; with teachers, of all processes."""
    train_s: float
    """Seconds in updates, including compilation in the first one."""
    tokens: int
    val_loss: float
    """Mean nats per token over the whole validation split, in windows of block_size."""
    tokens_per_s: float
    """tokens / train_s."""
    utilisation: float
    """The model's FLOP/s in training as a share of the measured peak of matrix products in the same precision."""


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
            results.append(_result(seed, wall_s, [job.run for job in jobs]))
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

    A signal to stop is passed on to the command. If it comes too late to stop it, the code still reports the signal.
    """
    with _compiler_cache(cold=cold) as environment:
        start = time.perf_counter()
        process: subprocess.Popen[bytes] | None = None
        came: list[int] = []
        early: list[int] = []  # received before the process was started

        def pass_on(number: int, _: object) -> None:
            came.append(number)
            early.append(number) if process is None else process.send_signal(number)

        # SIGTERM is passed on; Ctrl-C reaches the process directly, from the terminal.
        with handled_by(sigterm=pass_on, sigint=lambda number, _: came.append(number)):
            process = subprocess.Popen(command, env=environment)
            for number in early:
                process.send_signal(number)
            code = process.wait()
        code = 128 - code if code < 0 else code
        return time.perf_counter() - start, code or (128 + came[0] if came else 0)


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
        done = f"the seeds that were done before are in {report}" if report.exists() else "no seed was done"
        log.info(f"the speedrun was stopped as asked in {run}; {done}; --overwrite begins it anew")
        return code
    raise TrainingError(f"{run} ended with exit code {code}; what it said stands above")


def _result(seed: int, wall_s: float, runs: Sequence[Path]) -> SeedResult:
    """Loss of the last run, the student; time and tokens summed over the student and its teachers."""
    summaries = [run_folder.read_summary(run) for run in runs]
    tokens, train_s = (sum(summary[name] for summary in summaries) for name in ("tokens", "train_s"))
    busy_s = sum(summary["utilisation"] * summary["train_s"] for summary in summaries)
    return SeedResult(
        seed=seed,
        wall_s=round(wall_s, 1),
        train_s=round(train_s, 3),
        tokens=tokens,
        val_loss=summaries[-1]["val_loss"],
        tokens_per_s=round(tokens / train_s, 1),
        utilisation=round(busy_s / train_s, 4),
    )


def _leave_bundle(source: Path, target: Path) -> None:
    """Save the first seed's bundle, not the best one: choosing would use the validation loss."""
    bundle = load_bundle(source)
    save_bundle(target, bundle.model, bundle.tokenizer, {"run": str(source.parent.name)})


@dataclass(frozen=True)
class _Column:
    """A column of the report: a field of `SeedResult`, its heading, its format, and which of its values is worst."""

    field: str
    heading: str
    shown_as: str
    worst: Callable[[list[float]], float]


_COLUMNS = (
    _Column("val_loss", "val_loss", "{:.4f}", max),
    _Column("wall_s", "wall s", "{:.1f}", max),
    _Column("train_s", "training s", "{:.1f}", max),
    _Column("tokens", "tokens", "{:,.0f}", max),
    _Column("tokens_per_s", "tokens/s", "{:,.0f}", min),
    _Column("utilisation", "utilisation", "{:.1%}", min),
)


def table(results: Sequence[SeedResult]) -> Table:
    """The report: a row for each seed, then the mean and the worst of each column."""
    names = [str(result.seed) for result in results] + (["mean", "worst"] if len(results) > 1 else [])
    columns = []
    for column in _COLUMNS:
        values = [getattr(result, column.field) for result in results]
        values += [sum(values) / len(values), column.worst(values)]
        columns.append([column.shown_as.format(value) for value in values])
    grid = Table("seed", box=box.SIMPLE)
    for column in _COLUMNS:
        grid.add_column(column.heading, justify="right")
    for row, (name, *cells) in enumerate(zip(names, *columns, strict=False), start=1):
        grid.add_row(name, *cells, end_section=row == len(results) > 1)
    return grid
