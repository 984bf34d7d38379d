"""Text files as one stream of characters: UTF-8, plain or packed, with every flaw named or counted."""

import codecs
import glob
import gzip
import shlex
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from groundling.errors import DataError
from groundling.optional import optional_import
from groundling.text.tokenizer import REPLACEMENT

Errors = Literal["strict", "replace"]
ENDINGS = (".txt", ".md", ".gz", ".zst")
"""What is taken from a folder."""
PIECE_BYTES = 1 << 18
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def find_files(path: str) -> list[Path]:
    """Return the text files that a path means: a file, all of a folder, or what a glob matches; in a fixed order.

    Raises:
        DataError: there are none.
    """
    chosen = Path(path).expanduser()
    if chosen.is_dir():
        found = [file for file in chosen.rglob("*") if file.suffix in ENDINGS and file.is_file()]
        visible = [file for file in found if not any(p.startswith(".") for p in file.relative_to(chosen).parts)]
        if not visible:
            raise DataError(f"the folder {path} holds no text; looked for files ending in {', '.join(ENDINGS)}")
        return sorted(visible, key=lambda file: file.relative_to(chosen).as_posix())
    if chosen.is_file():
        return [chosen]
    if chosen.exists():
        raise DataError(f"{path} is not a file that can be read twice; save the text to a file first")
    matches = sorted(glob.glob(str(chosen), recursive=True))  # noqa: PTH207 - `**` and absolute patterns alike
    files = [Path(match) for match in matches if Path(match).is_file()]
    if not files:
        raise DataError(f"there is no text at {path!r}; give a file, a folder or a glob")
    return files


class TextFiles:
    """The characters of some files, one after the other; they can be read any number of times.

    A byte-order mark is dropped, line ends are kept as they are, and a newline is put between two files where
    the first does not end in one.

    Attributes:
        replaced: how many flaws the last reading has replaced by U+FFFD; 0 with errors="strict".
    """

    def __init__(self, paths: Iterable[Path], errors: Errors = "strict") -> None:
        self.paths, self.errors = list(paths), errors
        self.replaced = 0
        self._stamps = self._look()

    def _look(self) -> list[tuple[int, int]]:
        try:
            return [(found.st_size, found.st_mtime_ns) for found in (path.stat() for path in self.paths)]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    def require_unchanged(self) -> None:
        """Check that all readings were of the same text.

        Raises:
            DataError: a file was written to since this object was made.
        """
        if self._look() != self._stamps:
            raise DataError(f"the text at {self.paths[0]} changed while it was read; run again when it is at rest")

    def pieces(self) -> Iterator[str]:
        """Read all characters, a few hundred thousand at a time.

        Raises:
            DataError: a file cannot be read or unpacked, or is not UTF-8; the message names the place.
        """
        self.replaced = 0
        ends_line = True
        for path in self.paths:
            if not ends_line:
                yield "\n"
            ends_line = True
            for piece in self._file(path):
                yield piece
                ends_line = piece.endswith("\n")

    def _file(self, path: Path) -> Iterator[str]:
        offset, pending = 0, b""
        for data in _unpacked(path):
            head = pending + data
            if offset == 0 and len(head) >= 3:
                if head.startswith(UTF16_MARKS):
                    name = shlex.quote(str(path))
                    raise DataError(f"{path} is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8 {name} > utf8.txt")
                if head.startswith(codecs.BOM_UTF8):
                    head, offset = head[3:], 3
            text, used = self._decode(path, head, offset, final=False)
            offset, pending = offset + used, head[used:]
            if text:
                yield text
        text, _ = self._decode(path, pending, offset, final=True)
        if text:
            yield text

    def _decode(self, path: Path, data: bytes, offset: int, final: bool) -> tuple[str, int]:
        """Decode as much of `data` as is whole; return it and the number of bytes used."""
        if self.errors == "replace":
            text, used = codecs.utf_8_decode(data, "replace", final)
            meant = data.count(REPLACEMENT.encode())  # U+FFFD that the file itself holds
            self.replaced += text.count(REPLACEMENT) - meant + text.count("\0")
            return text.replace("\0", REPLACEMENT), used
        flaw, reason = data.find(b"\0"), "NUL bytes, which no text has (is it binary, or UTF-16?)"
        try:
            text, used = codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            if flaw < 0 or error.start < flaw:
                flaw, reason = error.start, f"bytes that are not UTF-8 ({data[error.start : error.end].hex(' ')})"
        if flaw >= 0:
            where = "of the unpacked text " if path.suffix in (".gz", ".zst") else ""
            raise DataError(
                f"{path}: at byte offset {offset + flaw} {where}stand {reason}; "
                "mend the file, or use --data.errors replace to put U+FFFD there"
            )
        return text, used


def _unpacked(path: Path) -> Iterator[bytes]:
    try:
        if path.suffix == ".zst":
            yield from _zst_pieces(path)
            return
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _zst_pieces(path: Path) -> Iterator[bytes]:
    zstandard = optional_import("zstandard", "text")
    frame = None
    try:
        with path.open("rb") as file:
            while packed := file.read(PIECE_BYTES):
                while packed:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    yield frame.decompress(packed)
                    packed = frame.unused_data if frame.eof else b""
                    frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from error
    if frame is not None:
        raise DataError(f"{path} cannot be unpacked: its end is missing")


def span(pieces: Iterable[str], start: int, stop: int) -> Iterator[str]:
    """Take the characters number `start` to `stop` (exclusive) of a stream, and read no further."""
    place = 0
    for piece in pieces:
        part = piece[max(0, start - place) : stop - place]
        place += len(piece)
        if part:
            yield part
        if place >= stop:
            return
