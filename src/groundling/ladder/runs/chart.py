"""Plot the ladder: each rung's learning curve, and its final loss beside the lecture's."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from groundling.system.plotting import save_figure, subplots

if TYPE_CHECKING:
    from groundling.ladder.runs.results import RungResult


def draw(results: Sequence["RungResult"], path: Path) -> None:
    """Write the chart as a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: the file could not be written.
    """
    figure, (curves, ends) = subplots(1, 2, figsize=(12, 5), width_ratios=(3, 2))
    for result in results:
        steps, losses = zip(*result.val_losses, strict=True)
        curves.plot(steps, losses, label=f"{result.rung} {result.adds}", linewidth=1.8)
    curves.set(xlabel="step", ylabel="validation loss, nats per character", title="How each rung learns")
    floor = min(result.val_loss for result in results)
    curves.set_ylim(floor - 0.1, min(4.5, floor + 1.6))
    curves.legend(fontsize=8)
    curves.grid(alpha=0.3)

    names = [result.rung for result in results]
    ends.plot(names, [result.val_loss for result in results], "o-", label="ours, whole validation split")
    ends.plot(
        names, [result.val_loss_random_batches for result in results], "x", label="ours, random batches", color="grey"
    )
    known = [(result.rung, result.lecture_val_loss) for result in results if result.lecture_val_loss is not None]
    if known:
        ends.plot(*zip(*known, strict=True), "D", label="the lecture", color="tab:red", markerfacecolor="none")
    for result in results:
        ends.annotate(
            f"{result.val_loss:.2f}",
            (result.rung, max(result.val_loss, result.lecture_val_loss or 0.0)),
            textcoords="offset points",
            xytext=(0, 9),
            ha="center",
            fontsize=8,
        )
    ends.margins(y=0.12)
    ends.set(ylabel="validation loss at the end", title="Where each rung ends")
    ends.legend(fontsize=8)
    ends.grid(alpha=0.3)
    save_figure(figure, path)
