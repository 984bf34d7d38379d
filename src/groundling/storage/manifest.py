"""Manifest of a complete folder: size and SHA-256 of each file, written last and verified before use.

A folder without `manifest.json` is incomplete; one whose files differ from it is damaged. The manifest contains its own
SHA-256, which protects its other facts, too.
"""

import hashlib
import json
import os
from itertools import starmap
from pathlib import Path, PurePosixPath
from typing import Any

from groundling.errors import CheckpointError
from groundling.storage import atomic, files

MANIFEST = "manifest.json"
MAX_FILES = 1000
"""Maximum number of files in a manifest; usually there are about ten, and each is read."""
MAX_JSON = 16 << 20
"""Bytes of a JSON file such as a config, a manifest or the index of a large model."""
COPY = "copy the folder with cp -rL"
"""Advice for folders of links (hub caches, git-annex, DVC)."""
SEAL = "sha256"
"""Key of the SHA-256 of the rest of the manifest."""


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Hash all files of a folder as read back from disk, and write the manifest.

    Args:
        folder: the folder to complete.
        facts: further entries of the manifest beside "files"; plain data.

    Raises:
        StorageError: the manifest could not be written.
    """
    listed = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": atomic.sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    _write_sealed(folder, {**facts, "files": listed})


def change_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Update entries of a manifest other than "files".

    Raises:
        CheckpointError: there is no manifest, or it is damaged.
        StorageError: it could not be written and is unchanged.
    """
    _write_sealed(folder, {**read_manifest(folder), **facts})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a folder's manifest without checking the listed files.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise CheckpointError(f"{folder} has no {MANIFEST}: it was never finished, or not written by groundling")
    manifest = read_json_object(path)
    listed = manifest.get("files")
    is_list = isinstance(listed, dict) and len(listed) <= MAX_FILES and all(starmap(_is_entry, listed.items()))
    if not is_list:
        raise CheckpointError(f"{path} is damaged: it does not list files with their sizes and SHA-256")
    if manifest.get(SEAL) != _seal(manifest):
        raise CheckpointError(f"{path} is damaged: its content differs from its own SHA-256")
    return manifest


def check_manifest(folder: Path, under: str = "") -> dict[str, Any]:
    """Verify a folder's files against its manifest, and return the manifest. Unlisted files are ignored.

    Args:
        folder: completed by `write_manifest`.
        under: check only the files whose names start with this, for example "bundle/".

    Raises:
        CheckpointError: the manifest is missing or damaged, or a file is missing, truncated, too long or different.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        if name.startswith(under):
            _check_file(folder, name, entry["size"], entry["sha256"])
    return manifest


def read_json_object(path: Path, *, links: bool = False) -> dict[str, Any]:
    """Read a JSON file that contains one object. For `links`, see `files.open_regular`.

    Raises:
        CheckpointError: the file cannot be read, or contains something else.
    """
    try:
        value = atomic.read_json(path, MAX_JSON, links=links)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {_reason(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: it is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: it holds a {type(value).__name__} and not a JSON object")
    return value


def _write_sealed(folder: Path, manifest: dict[str, Any]) -> None:
    atomic.write_json(folder / MANIFEST, {**manifest, SEAL: _seal(manifest)})


def _seal(manifest: dict[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("ascii")).hexdigest()


def _is_entry(name: str, entry: Any) -> bool:
    """Whether an entry is a path inside the folder with a size and a hash."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not isinstance(entry, dict):
        return False
    if str(path) != name:  # otherwise one file could be listed and hashed under many names
        return False
    return type(entry.get("size")) is int and type(entry.get("sha256")) is str


def _check_file(folder: Path, name: str, size: int, sha256: str) -> None:
    path, advice = folder / name, "restore it from a copy, or use another checkpoint"
    try:
        with files.open_regular(path, within=folder) as file:
            found = os.fstat(file.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path} is missing, and the {MANIFEST} lists it; {advice}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {_reason(error, advice)}") from error
    if found != size:
        what = "is truncated" if found < size else "has extra bytes"
        raise CheckpointError(f"{path} {what}: size {found}, expected {size}; {advice}")
    if atomic.sha256_of(path, within=folder) != sha256:
        raise CheckpointError(f"{path} is damaged: its content differs from the SHA-256 in the {MANIFEST}; {advice}")


def _reason(error: OSError, advice: str = "") -> str:
    """Reason and advice for a file that cannot be read."""
    advice = COPY if isinstance(error, files.LinkedFileError) else advice
    return "; ".join(filter(None, (error.strerror or str(error), advice)))
