"""What came of a run: `summary.json`, and its last words."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from groundling.train.estimate import describe_seconds


@dataclass(frozen=True)
class RunSummary:
    """What `summary.json` says of a run, and `pretrain` returns."""

    reason: str
    """"finished", or why it ended before."""
    exit_code: int
    steps: int
    tokens: int
    train_s: float
    wall_s: float
    """Seconds from the call of `pretrain` to its end, all resumptions together; not from the start of the process."""
    val_loss: float | None
    train_loss: float | None
    """The estimate at the newest evaluation; None where it is not asked for."""
    best_val_loss: float | None
    best_step: int | None
    parameters: int
    tokens_per_s: float | None
    utilisation: float | None
    memory_mb: float


def last_words(summary: RunSummary, run: Path) -> str:
    """The end of a run in one line."""
    done = f"{summary.steps:,} steps, {summary.tokens:,} tokens in {describe_seconds(summary.train_s)} of training"
    if summary.exit_code:
        command = f"groundling pretrain --resume if-present --out-dir {shlex.quote(str(run))}"
        return f"stopped as asked after {done}; go on: {command}"
    loss = "" if summary.best_val_loss is None else f"; best validation loss {summary.best_val_loss:.4f}"
    why = "" if summary.reason == "finished" else f" ({summary.reason})"
    return f"done{why}: {done}{loss}; let it speak: groundling sample {shlex.quote(str(run))}"
