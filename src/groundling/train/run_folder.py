"""The run folder: its lock, making room for a new run, finding a checkpoint, and summary.json.

RUN/run.toml  env.json  metrics.jsonl  summary.json  checkpoints/  bundle/
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock

from groundling.bundle.layout import CHECKPOINTS
from groundling.errors import CheckpointError, ConfigError
from groundling.storage import atomic, files
from groundling.system.signals import StopRequest
from groundling.train.checkpoints.folder import CheckpointFolder

SUMMARY = "summary.json"
FILES = ("run.toml", "env.json", "metrics.jsonl", SUMMARY)
FOLDERS = (CHECKPOINTS, "bundle", "bundle.previous", "tensorboard")
SPEEDRUN_REPORT = "speedrun.json"
MAX_PID = 20
"""Bytes of a process ID."""
MAX_SUMMARY = 1 << 20
"""Bytes of summary.json."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """`summary.json`: how a run ended, whatever it trained."""

    stage: str
    """The verb: pretrain, sft, ...; ladder for a rung."""
    reason: str
    """"finished", "asked to stop", or why the run ended early."""
    failed: bool
    """The loss or the gradient was not finite."""
    exit_code: int
    """128 + the signal's number for a run that was stopped, else 0."""
    wall_s: float
    """Seconds from the call that trains to its end, summed over resumptions; the process may have started earlier."""
    config: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    """Final metrics, by name; in the file they stand beside the other keys."""

    def to_json(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        values = asdict(self)
        figures = values.pop("figures")
        return {**values, **figures}


def read_summary(run: Path) -> dict[str, Any]:
    """The content of a run's `summary.json`; empty if it cannot be read.

    Stages of earlier versions wrote `ended` in place of `reason`.
    """
    try:
        summary: Any = atomic.read_json(run / SUMMARY, MAX_SUMMARY)
    except (OSError, ValueError):
        summary = {}
    if not isinstance(summary, dict):
        return {}
    if "ended" in summary:
        summary.setdefault("reason", summary.pop("ended"))
    return summary


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run's lock. It is released when the process ends, even if it is killed.

    A folder that was made for the lock, and got nothing else, is removed at the end: its run was refused.

    Raises:
        CheckpointError: another process holds it.
        StorageError: the folder cannot be written to.
    """
    is_new = not run.exists()
    atomic.make_folder(run)
    lock, holder = run / ".lock", run / ".lock.pid"  # two files: a failed attempt to lock empties the first
    with ExitStack() as stack:
        try:
            stack.enter_context(atomic.locked(lock, timeout_s=0))
        except filelock.Timeout:
            raise CheckpointError(
                f"{run} is being used by another process (pid {holder_of(run) or 'unknown'}); "
                "wait for it, or choose another --out-dir"
            ) from None
        if is_new:
            stack.callback(_remove_if_unused, run, lock)  # while locked, or another process could lose its lock
        stack.callback(atomic.remove, holder)
        atomic.write_note(holder, f"{os.getpid()}\n")
        yield


def _remove_if_unused(run: Path, lock: Path) -> None:
    with suppress(OSError):  # Windows cannot remove an open file
        if list(run.iterdir()) == [lock]:
            lock.unlink()
            run.rmdir()


def holder_of(run: Path) -> int | None:
    """Process ID recorded by the holder of a run's lock; None: no holder."""
    try:
        pid = int(files.read_text(run / ".lock.pid", MAX_PID))
    except (OSError, ValueError):
        return None
    return pid if pid > 0 else None


def has_run(run: Path) -> bool:
    """Whether the folder holds any file of a run."""
    return any(os.path.lexists(run / name) for name in (*FILES, *FOLDERS))


def has_nothing_to_lose(run: Path) -> bool:
    """Whether the folder holds no checkpoint, not even a damaged one, and no model."""
    left = ("bundle", "bundle.previous", SUMMARY)
    return not any((run / CHECKPOINTS).glob("step-*")) and not any((run / name).exists() for name in left)


def require_room(run: Path, *, overwrite: bool, resumable: bool = True) -> None:
    """Check that a new run may use the folder.

    Raises:
        ConfigError: it holds a run and `overwrite` is false, or it holds a speedrun.
    """
    _require_no_speedrun(run)
    if has_run(run) and not overwrite:
        resume = "resume it (--resume), " if resumable and _finished(run) else ""
        raise ConfigError(f"{run} already holds a run; {resume}remove it (--overwrite), or choose another --out-dir")


def make_room(run: Path) -> None:
    """Remove the run in the folder, if any; other files stay.

    The summary goes first: it marks a run as finished, and the process may be killed before the rest is removed.
    """
    if not has_run(run):
        return
    atomic.sweep_temporaries(run)
    atomic.remove(run / SUMMARY)
    for name in FOLDERS:
        atomic.remove(run / name)
    for name in FILES:
        atomic.remove(run / name)


@contextmanager
def new_run(run: Path, stop: StopRequest) -> Iterator[None]:
    """Remove the run in the folder; at the end, remove the new run if a signal ended it before its first step."""
    make_room(run)
    try:
        yield
    finally:
        if stop.ended_at_once:
            make_room(run)


def find_resumable(run: Path) -> tuple[Path, list[str]]:
    """The newest intact checkpoint, and why newer ones were skipped. Removes temporary files left by a crash.

    Raises:
        CheckpointError: the folder holds no intact checkpoint.
        ConfigError: it holds a speedrun.
    """
    _require_no_speedrun(run)
    checkpoints = CheckpointFolder(run / CHECKPOINTS)
    if not checkpoints.finished():
        other = "remove what is there (--overwrite), or choose another --out-dir"
        way_out = other if has_run(run) else "start it without --resume"
        raise CheckpointError(f"{run} holds no finished checkpoint to resume from; {way_out}")
    atomic.sweep_temporaries(run / CHECKPOINTS)
    atomic.sweep_temporaries(run)
    return checkpoints.newest_good()


def _require_no_speedrun(run: Path) -> None:
    if (run / SPEEDRUN_REPORT).exists():
        raise ConfigError(f"{run} holds a speedrun; choose another --out-dir")


def _finished(run: Path) -> list[Path]:
    return CheckpointFolder(run / CHECKPOINTS).finished()


def new_run_id() -> str:
    """A unique name for a new run."""
    return uuid.uuid4().hex[:12]
