"""The folder of a run: one process at a time, and never two runs mixed up.

RUN/run.toml  env.json  metrics.jsonl  summary.json  checkpoints/  bundle/
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from groundling import atomicio
from groundling.errors import CheckpointError, ConfigError
from groundling.train.checkpoint_folder import CheckpointFolder
from groundling.train.signals import StopRequest

FILES = ("run.toml", "env.json", "metrics.jsonl", "summary.json")
FOLDERS = ("checkpoints", "bundle", "bundle.previous", "tensorboard")
SPEEDRUN_REPORT = "speedrun.json"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run's lock; it falls with the process, however that ends.

    Raises:
        CheckpointError: another process holds it.
        StorageError: the folder cannot be written to.
    """
    atomicio.make_folder(run)
    holder = run / ".lock.pid"  # beside the lock file, which a failed attempt to lock empties
    lock = filelock.FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        pid = holder.read_text(encoding="utf-8").strip() if holder.exists() else "unknown"
        raise CheckpointError(
            f"{run} is being used by another process (pid {pid}); wait for it, or choose another --out-dir"
        ) from None
    try:
        holder.write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def has_run(run: Path) -> bool:
    """Whether a run has already left something here."""
    return any((run / name).exists() for name in (*FILES, *FOLDERS))


def has_nothing_to_lose(run: Path) -> bool:
    """Whether a run that began here, if there was one, ended before it had left a checkpoint, even a damaged one, or
    a model."""
    left = ("bundle", "bundle.previous", "summary.json")
    return not any((run / "checkpoints").glob("step-*")) and not any((run / name).exists() for name in left)


def require_room(run: Path, *, overwrite: bool, resumable: bool = True) -> None:
    """Before a new run: the folder has no run in it, or its run may be removed.

    Raises:
        ConfigError: there is one, and nobody said that it may go; or there is a speedrun's report.
    """
    _require_no_speedrun(run)
    if has_run(run) and not overwrite:
        go_on = "go on with it (--resume), " if resumable and _finished(run) else ""
        raise ConfigError(f"{run} already holds a run; {go_on}remove it (--overwrite), or choose another --out-dir")


def make_room(run: Path) -> None:
    """Remove the run that is in the folder, if there is one; what else lies there stays.

    First the summary, by which a run is known to have finished: a kill may come after it.
    """
    if not has_run(run):
        return
    atomicio.sweep_temporaries(run)
    (run / "summary.json").unlink(missing_ok=True)
    for name in FOLDERS:
        if (run / name).exists():
            atomicio.remove_tree(run / name)
    for name in FILES:
        (run / name).unlink(missing_ok=True)


@contextmanager
def new_run(run: Path, stop: StopRequest) -> Iterator[None]:
    """Remove the run that is in the folder; and what a new one wrote, if a signal ends it before its first step."""
    make_room(run)
    try:
        yield
    finally:
        if stop.ended_at_once:
            make_room(run)


def find_resumable(run: Path) -> tuple[Path, list[str]]:
    """The newest good checkpoint, and why newer ones were passed over; sweeps what a crash left behind.

    Raises:
        CheckpointError: there is nothing to go on from.
        ConfigError: a speedrun lives there.
    """
    _require_no_speedrun(run)
    checkpoints = CheckpointFolder(run / "checkpoints")
    if not checkpoints.finished():
        other = "remove what is there (--overwrite), or choose another --out-dir"
        way_out = other if has_run(run) else "start it without --resume"
        raise CheckpointError(f"{run} holds no finished checkpoint to resume from; {way_out}")
    atomicio.sweep_temporaries(run / "checkpoints")
    atomicio.sweep_temporaries(run)
    return checkpoints.newest_good()


def _require_no_speedrun(run: Path) -> None:
    if (run / SPEEDRUN_REPORT).exists():
        raise ConfigError(f"{run} holds a speedrun; choose another --out-dir")


def _finished(run: Path) -> list[Path]:
    return CheckpointFolder(run / "checkpoints").finished()


def new_run_id() -> str:
    """A name for a new run, different from all others."""
    return uuid.uuid4().hex[:12]


def read_summary(run: Path) -> dict[str, Any]:
    """What `summary.json` of a finished run says; empty where there is none that can be read."""
    try:
        summary = atomicio.read_json(run / "summary.json")
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}
