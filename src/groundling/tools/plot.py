"""`groundling plot RUN [RUN ...]`: plot loss curves of runs to a PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from groundling.config import parse
from groundling.errors import DataError, require
from groundling.system.metrics import read_records
from groundling.system.plotting import save_figure, subplots


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """Plot the loss curves of runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    out: Path = Path("losses.png")
    """Output PNG."""
    by: Literal["step", "n_tokens", "train_s"] = "n_tokens"
    """X axis."""

    def __post_init__(self) -> None:
        require(bool(self.runs), "no run was given; name at least one run's folder")


def main(argv: Sequence[str]) -> int:
    """Run `groundling plot`."""
    config = parse(PlotConfig, argv, "groundling plot")
    draw(config)
    print(f"wrote {config.out}")
    return 0


def draw(config: PlotConfig) -> None:
    """Plot training losses as thin lines; their estimates and validation losses with markers.

    Raises:
        DataError: a run has no records.
        MissingExtraError: matplotlib is not installed.
    """
    figure, axes = subplots(1, 1, figsize=(9, 5))
    for run in config.runs:
        records = read_records(run / "metrics.jsonl")
        training = [record for record in records if "loss" in record and config.by in record]
        if not training:
            raise DataError(f"{run} has no records of losses in metrics.jsonl; give the folder of a run")
        along = {record["step"]: record[config.by] for record in training}
        (line,) = axes.plot(
            list(along.values()),
            [record["loss"] for record in training],
            linewidth=0.8,
            alpha=0.6,
            label=f"{run}: loss of the batch",
        )
        for kind, words, marks in (("val_loss", "validation loss", "o-"), ("train_loss", "training loss", "x--")):
            measured = [record for record in records if kind in record]
            if measured:
                axes.plot(
                    [_position(along, record["step"]) for record in measured],
                    [record[kind] for record in measured],
                    marks,
                    color=line.get_color(),
                    markersize=4,
                    label=f"{run}: {words}",
                )
    axis = {"step": "step", "n_tokens": "tokens", "train_s": "seconds of training"}
    axes.set(xlabel=axis[config.by], ylabel="nats per token")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save_figure(figure, config.out)


def _position(along: dict[int, float], step: int) -> float:
    """Interpolate the x position of an evaluation between the training records around it."""
    before = max((s for s in along if s <= step), default=min(along))
    after = min((s for s in along if s >= step), default=before)
    if after == before:
        return along[before]
    return along[before] + (along[after] - along[before]) * (step - before) / (after - before)
