"""Read text files as one stream of characters: UTF-8, plain or compressed. Decoding errors raise or are counted.

Files that are not text are refused for every setting of `errors`.
"""

import codecs
import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from groundling.data import formats, row_formats
from groundling.errors import DataError
from groundling.storage import files
from groundling.system.optional import optional_import
from groundling.text.tokenizer import REPLACEMENT

Errors = Literal["strict", "replace"]
Expected = Literal["text", "rows"]
"""Plain text, or rows of JSON for another reader."""
PIECE_BYTES = 1 << 18
EXPECTED_ROWS = "JSON is expected here, one object a line or an array of them"
RANKINGS = "; rankings are for groundling dpo and groundling reward: --rankings"
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # looks like UTF-16's
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class TextFiles:
    """The characters of a list of files, one after the other; can be read any number of times.

    A byte-order mark is dropped, line endings are kept, and a newline is inserted between two files if the first does
    not end in one.

    Args:
        paths: the files.
        errors: what to do with bytes that are not UTF-8.
        expected: what the files should hold.
        skipped: description of what was skipped when the files were found.

    Attributes:
        replaced: number of decoding errors replaced by U+FFFD in the last reading; 0 with errors="strict".
        doubts: files read as text in the last reading that look like markup or data (JSON, HTML, XML).
        n_bytes: total size of the files on disk.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        errors: Errors = "strict",
        expected: Expected = "text",
        skipped: str | None = None,
    ) -> None:
        self.paths, self.errors, self.expected = list(paths), errors, expected
        self.skipped = skipped
        self.replaced = 0
        self.doubts: dict[Path, str] = {}
        self._stamps = self._sizes_and_times()

    def _sizes_and_times(self) -> list[tuple[int, int]]:
        try:
            return [(found.st_size, found.st_mtime_ns) for found in (path.stat() for path in self.paths)]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error

    @property
    def n_bytes(self) -> int:
        """Total size of the files on disk."""
        return sum(size for size, _ in self._stamps)

    def require_unchanged(self) -> None:
        """Check that no file changed since this object was created.

        Raises:
            DataError: a file was written to.
        """
        if self._sizes_and_times() != self._stamps:
            raise DataError(
                f"the text at {self.paths[0]} changed while it was read; run again when nothing writes to it"
            )

    def require_text(self) -> None:
        """Check the head of each file.

        Raises:
            DataError: a file is not text; the message says what it is and what to do.
        """
        for path in self.paths:
            for _ in self._file(path):
                break

    def pieces(self) -> Iterator[str]:
        """Yield all characters, a few hundred thousand at a time.

        Raises:
            DataError: a file cannot be read, decompressed or decoded; the message names the position.
        """
        self.replaced, self.doubts = 0, {}
        ends_line = True
        for path in self.paths:
            if not ends_line:
                yield "\n"
            ends_line = True
            for piece in self._file(path):
                yield piece
                ends_line = piece.endswith("\n")

    def _file(self, path: Path) -> Iterator[str]:
        offset, pending, is_first = 0, b"", True
        for data in _whole_head(_unpacked(path)):
            head = pending + data
            if is_first:
                self._require_text(path, head)
                if head.startswith(codecs.BOM_UTF8):
                    head, offset = head[3:], 3
            text, used = self._decode(path, head, offset, final=False)
            offset, pending = offset + used, head[used:]
            if is_first:
                self._require_words(path, text)
            is_first = False
            if text:
                yield text
        if is_first:
            self._require_text(path, b"")
        text, _ = self._decode(path, pending, offset, final=True)
        if text:
            yield text

    def _require_text(self, path: Path, head: bytes) -> None:
        """Refuse binary files and other encodings than UTF-8."""
        head = head[: formats.HEAD_BYTES]
        for mark, encoding in MARKS.items():
            if head.startswith(mark):
                raise DataError(f"{path} is {encoding}; {formats.conversion(encoding, path)}")
        found = formats.binary_format(path, head) or formats.named_format(path) or formats.unknown_binary(path, head)
        if found is not None:
            is_other = self.expected == "rows" and not found.advice.startswith(("unpack", "convert"))
            hint = RANKINGS if is_other and head.startswith(formats.SQLITE) else ""
            raise DataError(f"{path} is {found.name}; {EXPECTED_ROWS + hint if is_other else found.advice}")

    def _require_words(self, path: Path, text: str) -> None:
        """Refuse rows if text is expected; if only the content looks like rows, record a doubt."""
        if self.expected == "rows":
            return
        found = row_formats.rows_format(path, text)
        if found is not None:
            raise DataError(f"{path} is {found.name}; {found.advice}")
        doubt = row_formats.looks_like_rows(text)
        if doubt is not None:
            self.doubts[path] = doubt

    def _decode(self, path: Path, data: bytes, offset: int, final: bool) -> tuple[str, int]:
        """Decode the complete part of `data`; return it and the number of bytes used."""
        if self.errors == "replace":
            text, used = codecs.utf_8_decode(data, "replace", final)
            meant = data.count(REPLACEMENT.encode())  # U+FFFD in the file itself
            self.replaced += text.count(REPLACEMENT) - meant + text.count("\0")
            return text.replace("\0", REPLACEMENT), used
        flaw, reason = data.find(b"\0"), "NUL bytes, which no text has (is it binary, or UTF-16?)"
        try:
            text, used = codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            if flaw < 0 or error.start < flaw:
                flaw, reason = error.start, f"bytes that are not UTF-8 ({data[error.start : error.end].hex(' ')})"
        if flaw >= 0:
            where = "of the unpacked text " if path.suffix.lower() in formats.PACKED else ""
            raise DataError(
                f"{path}: at byte offset {offset + flaw} {where}there are {reason}; "
                "fix the file, or use --data.errors replace to put U+FFFD there"
            )
        return text, used


def _whole_head(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes, with a first piece large enough for format detection."""
    head: list[bytes] = []
    for piece in pieces:
        head.append(piece)
        if sum(map(len, head)) >= formats.HEAD_BYTES:
            break
    if head:
        yield b"".join(head)
    yield from pieces


def _unpacked(path: Path) -> Iterator[bytes]:
    try:
        with files.open_regular(path, links=True) as file:
            begin = file.read(4)
        suffix = path.suffix.lower()
        if begin.startswith(formats.ZSTD) or (suffix == ".zst" and begin):
            yield from _zst_pieces(path)
            return
        is_gzip = begin.startswith(formats.GZIP) or suffix == ".gz"
        with files.open_regular(path, links=True) as packed, gzip.open(packed) if is_gzip else packed as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; give a file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _zst_pieces(path: Path) -> Iterator[bytes]:
    zstandard = optional_import("zstandard", "text")
    frame = None
    try:
        with files.open_regular(path, links=True) as file:
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
    """Yield characters `start` to `stop` (exclusive) of a stream; read no further."""
    place = 0
    for piece in pieces:
        part = piece[max(0, start - place) : stop - place]
        place += len(piece)
        if part:
            yield part
        if place >= stop:
            return
