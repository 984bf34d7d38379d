"""`groundling verify-checkpoint DIR`: check every file of a run's checkpoints and bundle."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from groundling.bundle.layout import CHECKPOINTS, val_loss_of
from groundling.config import parse
from groundling.errors import CheckpointError
from groundling.storage.manifest import MANIFEST, check_manifest
from groundling.train.checkpoints.folder import CheckpointFolder


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Verify the size and SHA-256 of every file of a run, a checkpoint or a bundle."""

    path: Annotated[Path, tyro.conf.Positional]
    """Run folder, checkpoint or bundle."""


def main(argv: Sequence[str]) -> int:
    """Run `groundling verify-checkpoint`; return 0 if all files are intact, otherwise 1."""
    config = parse(VerifyConfig, argv, "groundling verify-checkpoint")
    folders = folders_with_manifests(config.path)
    n_bad = 0
    for folder in folders:
        try:
            manifest = check_manifest(folder)
        except CheckpointError as error:
            n_bad += 1
            print(f"BAD   {error}")
        else:
            loss = val_loss_of(manifest)
            about = "" if loss is None else f", validation loss {loss:.4f}"
            print(f"good  {folder}: {len(manifest['files'])} files{about}")
    if n_bad:
        raise CheckpointError(f"{n_bad} of {len(folders)} are damaged; --resume skips them")
    return 0


def folders_with_manifests(path: Path) -> list[Path]:
    """Return the folder itself if it has a manifest, otherwise a run's bundle and checkpoints with one.

    Raises:
        CheckpointError: there is none.
    """
    if os.path.lexists(path / MANIFEST):
        return [path]
    found = [
        *CheckpointFolder(path / CHECKPOINTS).folders(),
        *([path / "bundle"] if os.path.lexists(path / "bundle" / MANIFEST) else []),
    ]
    if not found:
        raise CheckpointError(
            f"{path} holds neither a finished checkpoint nor a bundle; give the folder of one, or of a run"
        )
    return found
