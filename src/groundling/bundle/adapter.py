"""LoRA adapters (arXiv:2106.09685), stored apart from their base model."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from groundling.bundle.layout import ADAPTER, WEIGHTS, check_files, find_bundle
from groundling.errors import CheckpointError
from groundling.storage.manifest import MANIFEST, read_manifest

A, B, ROWS = "|a", "|b", "|rows"
"""Suffixes of an adapter's tensor names, after the name of the weight."""


@dataclass(frozen=True)
class Adapter:
    """Low-rank matrices that are added to weights, and embeddings of new ids."""

    low_rank: dict[str, tuple[Tensor, Tensor]]
    """Name of a weight -> (A, B); W becomes W + scale B A."""
    rows: dict[str, Tensor]
    """Name of a weight -> its last rows, which replace existing ones or extend it."""
    scale: float

    def to_tensors(self) -> dict[str, Tensor]:
        """All tensors by name, without the scale."""
        named = {name + ROWS: rows for name, rows in self.rows.items()}
        for name, (a, b) in self.low_rank.items():
            named |= {name + A: a, name + B: b}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], scale: float) -> "Adapter":
        """The inverse of `to_tensors`.

        Raises:
            CheckpointError: a matrix is missing, or there are other tensors.
        """
        names = {suffix: {n.removesuffix(suffix) for n in tensors if n.endswith(suffix)} for suffix in (A, B, ROWS)}
        n_known = sum(map(len, names.values()))
        if names[A] != names[B] or n_known != len(tensors):
            raise CheckpointError("these are not the tensors of an adapter: each weight must have A and B, or rows")
        low_rank = {name: (tensors[name + A], tensors[name + B]) for name in sorted(names[A])}
        if any(matrix.dim() != 2 for matrix in tensors.values()):
            raise CheckpointError("these are not the tensors of an adapter: each must be a matrix")
        return cls(low_rank, {name: tensors[name + ROWS] for name in sorted(names[ROWS])}, scale)

    def applied_to(self, weights: Mapping[str, Tensor], n_rows: int) -> dict[str, Tensor]:
        """Weights of the fine-tuned model.

        Args:
            weights: of the base model.
            n_rows: rows of the fine-tuned model's embeddings.

        Raises:
            CheckpointError: names or shapes do not fit.
        """
        changed = dict(weights)
        try:
            for name, rows in self.rows.items():
                changed[name] = torch.cat([weights[name][: n_rows - rows.size(0)], rows.to(weights[name])])
            for name, (a, b) in self.low_rank.items():
                if (b.size(0), a.size(1)) != weights[name].shape:  # broadcasting would hide it
                    raise CheckpointError(
                        f"the adapter does not fit its model: {name} is {tuple(weights[name].shape)}, and B A is "
                        f"{b.size(0), a.size(1)}"
                    )
                changed[name] = add_low_rank(weights[name], a.to(weights[name]), b.to(weights[name]), self.scale)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"the adapter does not fit its model: {str(error).splitlines()[0]}") from error
        return changed


def add_low_rank(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A. Shared by training, merging and loading, so all three give the same bits."""
    return weight + scale * (b @ a)


@dataclass(frozen=True)
class Base:
    """The bundle that an adapter was trained on."""

    folder: Path
    sha256: str
    """SHA-256 of its weights file."""


def base_at(path: Path | str, checkpoint: str | int = "best") -> Base:
    """Find a bundle and the hash of its weights; arguments as for `find_bundle`.

    Raises:
        CheckpointError: there is no bundle, or it is damaged.
    """
    folder = find_bundle(path, checkpoint)
    sha256s = check_files(folder)
    return Base(folder, sha256s[ADAPTER if ADAPTER in sha256s else WEIGHTS])


def read_base_reference(folder: Path) -> tuple[Path, str, float]:
    """Read from an adapter's manifest its base's folder, the SHA-256 of the base's weights, and the adapter's scale.

    Raises:
        CheckpointError: the manifest is damaged, or there is no such folder.
    """
    manifest = read_manifest(folder)
    path, sha256, scale = (manifest.get(key) for key in ("base", "base_sha256", "scale"))
    if not isinstance(path, str) or not isinstance(sha256, str) or not isinstance(scale, float):
        raise CheckpointError(f"{folder / MANIFEST} does not name the adapter's base model")
    if not math.isfinite(scale):
        raise CheckpointError(f"{folder / MANIFEST} has the scale {scale}, which is not finite")
    where = Path(os.path.normpath(folder.resolve() / path.replace("\0", "?")))
    if not where.is_dir():
        raise CheckpointError(f"{folder} is an adapter of {where}, which does not exist; restore that model")
    return where, sha256, scale
