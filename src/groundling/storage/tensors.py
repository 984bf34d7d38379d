"""Read untrusted safetensors files: the header is checked before any tensor is loaded.

The library maps the file into memory and checks that each tensor lies within it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from groundling.errors import CheckpointError
from groundling.storage import files

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of weights, by the format's names. Others (integers, booleans, complex numbers) cannot be cast without loss."""
BYTES = frozenset({"U8"})
MAX_HEADER = 32 << 20
"""Bytes; enough for a few hundred thousand tensors."""


def read_tensors(file: Path, raw: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file written by this package, with floating-point tensors.

    Args:
        file: its path.
        raw: name prefix of tensors that hold bytes; None: no such tensors.

    Raises:
        CheckpointError: it cannot be read, is not a safetensors file, or has a tensor of another type.
    """
    with opened(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118
            is_raw = raw is not None and name.startswith(raw)
            found = tensors.get_slice(name).get_dtype()
            if found not in (BYTES if is_raw else FLOATS):
                expected = "U8" if is_raw else "F32, F16, BF16 or F64, none of which is quantised"
                raise CheckpointError(f"{file}: {name} is of type {found}, expected {expected}")
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


def read_foreign(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file from elsewhere: it may be a link, and its tensors may have any type.

    Raises:
        CheckpointError: it cannot be read, or is not a safetensors file.
    """
    with opened(file, links=True) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


def tensor_names(file: Path) -> list[str]:
    """The names of a safetensors file's tensors. Raises as `read_tensors`."""
    with opened(file) as tensors:
        return list(tensors.keys())


@contextmanager
def opened(file: Path, *, links: bool = False) -> Iterator[Any]:
    """Open a safetensors file.

    Raises:
        CheckpointError: it cannot be read, or is not a safetensors file.
    """
    try:
        with files.held(file, links=links) as (path, own):
            if (n_header := int.from_bytes(own.read(8), "little")) > MAX_HEADER:
                raise files.RefusedFileError(
                    file, f"its header has {n_header:,} bytes, and {MAX_HEADER:,} are read at most"
                )
            with safetensors.safe_open(path, framework="pt") as tensors:
                yield tensors
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{file} is not a readable safetensors file: {reason}") from error
