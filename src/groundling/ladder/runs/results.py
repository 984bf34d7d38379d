"""Results of a rung, and the table of all rungs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.table import Table
from torch import nn

NOTE = (
    "val_loss is over the whole validation split. The lecture estimates its losses on 200 random batches, "
    "as val_loss_random_batches and train_loss_random_batches do."
)
RECORDED = (
    "rung",
    "adds",
    "parameters",
    "val_loss",
    "val_loss_random_batches",
    "train_loss_random_batches",
    "lecture_val_loss",
    "seconds",
    "sample",
)
"""Fields written to ladder.json; curves and model are left out."""


@dataclass(frozen=True)
class RungResult:
    """Losses, timing, a sample and the model of a trained rung."""

    rung: str
    adds: str
    parameters: int
    val_loss: float
    val_loss_random_batches: float
    train_loss_random_batches: float
    lecture_val_loss: float | None
    seconds: float
    sample: str
    losses: list[tuple[int, float]] = field(repr=False)
    """(step, mean training loss since the last entry)."""
    val_losses: list[tuple[int, float]] = field(repr=False)
    """(step, loss on the whole validation split)."""
    model: nn.Module = field(repr=False)

    def record(self) -> dict[str, object]:
        """Return the entry for ladder.json."""
        return {name: getattr(self, name) for name in RECORDED}


def table(results: Sequence[RungResult]) -> Table:
    """Format results as a table for the terminal."""
    in_all = sum(result.seconds for result in results)
    grid = Table("rung", title=f"The ladder, {in_all:.0f} s of training", box=box.SIMPLE_HEAD, title_justify="left")
    grid.add_column("adds", overflow="fold")
    for heading in ("parameters", "val_loss", "random batches", "lecture", "training loss", "seconds"):
        grid.add_column(heading, justify="right")
    for result in results:
        lecture = result.lecture_val_loss
        grid.add_row(
            result.rung,
            result.adds,
            f"{result.parameters:,}",
            f"{result.val_loss:.3f}",
            f"{result.val_loss_random_batches:.3f}",
            "" if lecture is None else f"{lecture:.2f}",
            f"{result.train_loss_random_batches:.3f}",
            f"{result.seconds:.1f}",
        )
    return grid
