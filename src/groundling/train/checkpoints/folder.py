"""The folder of a run's checkpoints. Each is written atomically, and old ones are removed only after new ones exist."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec

from groundling.bundle.layout import finished_checkpoints, val_loss_of
from groundling.errors import CheckpointError, GroundlingError, StorageError
from groundling.storage import atomic
from groundling.storage.manifest import check_manifest, read_manifest, write_manifest
from groundling.system import distributed

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
"""Numbers in `state.json`, which is validated as untrusted input."""


class CheckpointFolder:
    """The checkpoints of one run, independent of their content.

    Args:
        folder: `RUN/checkpoints`.
        keep: newest checkpoints to keep; the one with the lowest validation loss is kept too.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def path_of(self, step: int) -> Path:
        """The path for the checkpoint of a step."""
        return self.folder / f"step-{step:08d}"

    def finished(self) -> list[Path]:
        """All that have a manifest, in the order of their steps."""
        return list(finished_checkpoints(self.folder).values())

    def folders(self) -> list[Path]:
        """All checkpoints, also those that lost their manifest, in the order of their steps."""
        found = [path for path in self.folder.glob("step-*") if path.is_dir() and path.name[5:].isdecimal()]
        return sorted(found, key=_step_of)

    def save_together(self, step: int, run_id: str, write: Callable[[], None]) -> None:
        """Write the checkpoint of a step on the first rank, then prune. All ranks call this together.

        Raises:
            StorageError: it could not be written; all older checkpoints are kept.
        """
        failure = ""
        if distributed.is_first():
            try:
                write()
                self.prune(run_id, step)
            except StorageError as error:
                failure = str(error)
        if distributed.any_rank(bool(failure)):
            raise StorageError(failure or "the first rank could not write the checkpoint")

    def write(self, step: int, facts: dict[str, Any], n_bytes: int, fill: Callable[[Path], None]) -> None:
        """Write a new checkpoint.

        Args:
            step: its step.
            facts: further entries of its manifest.
            n_bytes: its approximate size.
            fill: writes its files into a folder.

        Raises:
            StorageError: it could not be written; nothing of it is left.
        """
        atomic.make_folder(self.folder)
        atomic.require_room(self.folder, int(1.5 * n_bytes))
        target = self.path_of(step)
        with atomic.new_folder(target) as new:
            fill(new)
            write_manifest(new, {**facts, "step": step})
            check_manifest(new)
        atomic.write_text(self.folder / "LATEST", target.name + "\n")  # for people; no code reads it

    def has(self, step: int, run_id: str) -> dict[str, Any] | None:
        """The manifest of the checkpoint of a step, if it is intact; a damaged one is removed.

        Raises:
            StorageError: it belongs to another run.
        """
        target = self.path_of(step)
        if not os.path.lexists(target):
            return None
        try:
            manifest = check_manifest(target)
        except CheckpointError:
            atomic.remove(target)
            return None
        if manifest.get("run_id") != run_id:
            raise StorageError(f"{target} belongs to another run; nothing was written")
        return manifest

    def prune(self, run_id: str, step: int) -> None:
        """Remove this run's old checkpoints, but not the newest, the best, or another run's.

        Checkpoints after `step` are damaged ones that were skipped on resume; they do not count as newest.
        """
        ranked = [path for path in self.by_loss(run_id) if _step_of(path) <= step]
        kept = {*sorted(ranked, key=_step_of)[-self.keep :], *ranked[:1]}
        for path in ranked:
            if path not in kept:
                atomic.remove(path)

    def by_loss(self, run_id: str) -> list[Path]:
        """This run's checkpoints, lowest validation loss first, then those without one, newest first.

        Checkpoints with a damaged manifest are left out: their run is unknown.
        """
        measured: dict[Path, float] = {}
        others: list[Path] = []
        for path in self.finished():
            try:
                manifest = read_manifest(path)
            except CheckpointError:
                continue
            loss = val_loss_of(manifest)
            if manifest.get("run_id") != run_id:
                continue
            if loss is None:
                others.insert(0, path)
            else:
                measured[path] = loss
        return [*sorted(measured, key=measured.__getitem__), *others]

    def newest_good(self) -> tuple[Path, list[str]]:
        """The newest checkpoint whose files match its manifest, and why newer ones were skipped.

        Raises:
            CheckpointError: there is no intact checkpoint.
        """
        skipped: list[str] = []
        for path in reversed(self.folders()):
            try:
                check_manifest(path)
            except CheckpointError as error:
                skipped.append(str(error))
            else:
                return path, skipped
        why = f": {'; '.join(skipped)}" if skipped else ""
        raise CheckpointError(f"{self.folder} holds no good checkpoint to resume from{why}")


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """While restoring a checkpoint, turn errors of a wrong shape, type or key into a CheckpointError."""
    try:
        yield
    except GroundlingError:
        raise
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit its run: {type(error).__name__}: {error}") from error


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
