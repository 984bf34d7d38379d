"""Save and load tokenizers as JSON, and compute their fingerprint."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from groundling.errors import DataError
from groundling.storage import atomic
from groundling.text.char import CharTokenizer
from groundling.text.tokenizer import Tokenizer

FILE_NAME = "tokenizer.json"
AGAIN = "restore it from a copy, or make it again with `groundling tokenizer train`"


def tokenizer_to_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a tokenizer as plain data, including its kind."""
    return tokenizer.to_json()


def tokenizer_from_json(values: Mapping[str, Any]) -> Tokenizer:
    """Build a tokenizer from the output of `tokenizer_to_json`.

    Raises:
        DataError: this does not describe a tokenizer.
        MissingExtraError: its library is not installed.
    """
    kind = values.get("kind")
    try:
        if kind == CharTokenizer.kind:
            return CharTokenizer(values["symbols"], values["unknown"], values["replacement"])
        from groundling.text import libraries

        if kind in libraries.KINDS:
            return libraries.from_json(values)
    except (KeyError, TypeError) as error:
        raise DataError(f"this {kind!r} tokenizer is incomplete: {type(error).__name__}: {error}") from error
    raise DataError(f"there is no kind of tokenizer {kind!r}; the file is damaged, or not one of ours")


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return a SHA-256 of a tokenizer; equal tokenizers have equal ones."""
    canonical = json.dumps(tokenizer_to_json(tokenizer), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer to `folder` as `tokenizer.json`.

    Raises:
        StorageError: it cannot be written.
    """
    atomic.write_json(folder / FILE_NAME, tokenizer_to_json(tokenizer))


def load_tokenizer(folder: Path, *, links: bool = False) -> Tokenizer:
    """Read the tokenizer written by `save_tokenizer`. For `links`, see `files.open_regular`.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / FILE_NAME
    try:
        values = atomic.read_json(path, links=links)
    except FileNotFoundError:
        raise DataError(f"there is no {FILE_NAME} in {folder}; `groundling tokenizer train` makes one") from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file; give the folder that holds {FILE_NAME}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}; {AGAIN}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds {type(values).__name__}, not a tokenizer; {AGAIN}")
    return tokenizer_from_json(values)
