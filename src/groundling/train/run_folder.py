"""The folder of a run: one process at a time, and never two runs mixed up.

RUN/run.toml  env.json  metrics.jsonl  summary.json  checkpoints/  bundle/
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import filelock

from groundling.errors import CheckpointError, ConfigError
from groundling.storage import atomic, files
from groundling.system.signals import StopRequest
from groundling.train.checkpoints.folder import CheckpointFolder

FILES = ("run.toml", "env.json", "metrics.jsonl", "summary.json")
FOLDERS = ("checkpoints", "bundle", "bundle.previous", "tensorboard")
SPEEDRUN_REPORT = "speedrun.json"
MAX_PID = 20
"""Bytes of a process's number."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run's lock; it falls with the process, however that ends.

    Raises:
        CheckpointError: another process holds it.
        StorageError: the folder cannot be written to.
    """
    atomic.make_folder(run)
    holder = run / ".lock.pid"  # beside the lock file, which a failed attempt to lock empties
    with ExitStack() as stack:
        try:
            stack.enter_context(atomic.locked(run / ".lock", timeout_s=0))
        except filelock.Timeout:
            raise CheckpointError(
                f"{run} is being used by another process (pid {holder_of(run) or 'unknown'}); "
                "wait for it, or choose another --out-dir"
            ) from None
        stack.callback(atomic.remove, holder)
        atomic.write_note(holder, f"{os.getpid()}\n")
        yield


def holder_of(run: Path) -> int | None:
    """The process that says that it works on a run; None: none does."""
    try:
        pid = int(files.read_text(run / ".lock.pid", MAX_PID))
    except (OSError, ValueError):
        return None
    return pid if pid > 0 else None


def has_run(run: Path) -> bool:
    """Whether a run has already left something here."""
    return any(os.path.lexists(run / name) for name in (*FILES, *FOLDERS))


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
    atomic.sweep_temporaries(run)
    atomic.remove(run / "summary.json")
    for name in FOLDERS:
        atomic.remove(run / name)
    for name in FILES:
        atomic.remove(run / name)


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
    atomic.sweep_temporaries(run / "checkpoints")
    atomic.sweep_temporaries(run)
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
        summary = atomic.read_json(run / "summary.json")
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}
