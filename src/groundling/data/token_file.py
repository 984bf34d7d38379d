"""Token files: a checksummed header, then ids, memory-mapped for reading.

A file is written under a temporary name and replaced as a whole, never modified in place, so existing memory maps stay
valid.
"""

import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from groundling.errors import DataError
from groundling.storage import atomic, files

Tokens = npt.NDArray[np.unsignedinteger[Any]]
MAGIC = b"GRNDTOK\n"
VERSION = 1
DTYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
"""Bytes per id -> dtype: little-endian on every machine."""


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest dtype for the ids of a vocabulary; up to 65,536 ids fit 16 bits.

    Raises:
        DataError: the vocabulary is too large.
    """
    for size, dtype in DTYPES.items():
        if 0 < vocab_size <= 1 << (8 * size):
            return dtype
    raise DataError(f"a vocabulary of {vocab_size:,} cannot be written; 1 to {1 << 32:,} ids can")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first 128 bytes of a token file. Numbers that grow with the file have 64 bits."""

    itemsize: int
    count: int
    max_id: int
    vocab_size: int
    sha256: bytes
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<8sIIqqq32s56x")

    def pack(self) -> bytes:
        """Encode the header."""
        numbers = (self.itemsize, self.count, self.max_id, self.vocab_size)
        return self.LAYOUT.pack(MAGIC, VERSION, *numbers, self.sha256)

    @classmethod
    def read(cls, path: Path) -> "Header":
        """Read the header, and check it against the file size.

        Raises:
            DataError: this is not a token file, or it is truncated or too long.
        """
        try:
            with files.open_regular(path) as file:
                data = file.read(cls.LAYOUT.size)
                n_bytes = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise DataError(f"the token file {path} cannot be read: {error.strerror}") from error
        if len(data) < cls.LAYOUT.size or not data.startswith(MAGIC):
            raise _damaged(path, "it does not begin as a token file does")
        _, version, itemsize, count, max_id, vocab_size, sha256 = cls.LAYOUT.unpack(data)
        if version != VERSION:
            raise _damaged(path, f"it is of version {version}, and this program reads version {VERSION}")
        header = cls(itemsize=itemsize, count=count, max_id=max_id, vocab_size=vocab_size, sha256=sha256)
        if itemsize not in DTYPES or count < 0 or dtype_for(vocab_size) != DTYPES[itemsize] or max_id >= vocab_size:
            raise _damaged(path, f"its header contradicts itself: {header}")
        expected = cls.LAYOUT.size + count * itemsize
        if n_bytes != expected:
            raise _damaged(path, f"it has {n_bytes:,} bytes, and its header promises {expected:,}")
        return header


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"the token file {path} is damaged: {reason}; remove it and prepare the text again")


class TokenFile:
    """The ids of a text, memory-mapped and read-only.

    Attributes:
        ids: unsigned integers of 16 or 32 bits.
        vocab_size: size of the tokenizer's vocabulary; every id is below it.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self.vocab_size, self.max_id = path, header.vocab_size, header.max_id
        self.sha256 = header.sha256.hex()
        dtype = DTYPES[header.itemsize]
        self.ids: Tokens = np.empty(0, dtype)
        if header.count:  # an empty file cannot be mapped
            with files.open_regular(path) as file:
                self.ids = np.memmap(file, dtype, "r", offset=Header.LAYOUT.size, shape=(header.count,))

    def __len__(self) -> int:
        return len(self.ids)


def write_token_file(path: Path, chunks: Iterable[npt.NDArray[Any]], vocab_size: int) -> TokenFile:
    """Write ids to `path` atomically, and open it.

    Raises:
        DataError: an id is not below `vocab_size`.
        StorageError: the file cannot be written.
    """
    dtype = dtype_for(vocab_size)
    digest, count, max_id = hashlib.sha256(), 0, -1
    with atomic.open_atomic(path) as file:
        file.write(bytes(Header.LAYOUT.size))
        for chunk in chunks:
            if not chunk.size:
                continue
            low, high = int(chunk.min()), int(chunk.max())
            if low < 0 or high >= vocab_size:
                raise DataError(f"token id {low if low < 0 else high} does not fit a vocabulary of {vocab_size:,}")
            data = chunk.astype(dtype).tobytes()
            digest.update(data)
            file.write(data)
            count, max_id = count + len(chunk), max(max_id, high)
        file.seek(0)
        header = Header(
            itemsize=dtype.itemsize, count=count, max_id=max_id, vocab_size=vocab_size, sha256=digest.digest()
        )
        file.write(header.pack())
    return TokenFile(path, header)


def open_token_file(path: Path, verify: bool = False) -> TokenFile:
    """Open a token file for reading.

    Args:
        path: the file.
        verify: read the file and compare its SHA-256; otherwise check only header and size.

    Raises:
        DataError: it is missing, damaged, or of another version.
    """
    header = Header.read(path)
    if verify:
        with files.open_regular(path) as file:
            file.seek(Header.LAYOUT.size)
            if hashlib.file_digest(file, "sha256").digest() != header.sha256:
                raise _damaged(path, "its ids are not those that were written")
    return TokenFile(path, header)
