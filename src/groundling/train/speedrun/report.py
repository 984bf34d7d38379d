"""Results of a speedrun, seed by seed, and their table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from groundling.train import run_folder


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


def seed_result(seed: int, wall_s: float, runs: Sequence[Path]) -> SeedResult:
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
