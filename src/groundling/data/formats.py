"""Detect files that are not plain text, by their first bytes or their name, and suggest what to do.

Content wins over the name; the name decides where content cannot (JSON, CSV). For compressed text (.gz, .zst) the
decompressed content and the name without the last extension count.
"""

import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

PACKED = (".gz", ".zst")
"""Extensions of files decompressed while reading."""
GZIP, ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
SQLITE = b"SQLite format 3\0"
PICKLED = frozenset(bytes([code]) for code in b"}](cXCUKJGNM)\x8a\x8c\x95")
"""Opcodes that can follow a pickle's protocol number."""
HEAD_BYTES = 1 << 12
"""Bytes at the start of a file used for detection."""
MIN_BINARY_BYTES, BINARY_PART = 512, 0.02
"""A file of an unknown kind is binary if it has at least this many bytes, and this fraction of control characters."""
MIN_ZEROS = 8
"""Minimum number of zero bytes to detect UTF-16 or UTF-32, in short files too."""
FLAWED_PART = 0.2
"""Maximum fraction of bytes that are not UTF-8; above it, the file has another encoding."""
CONTROLS = frozenset(range(0x1A)) - frozenset(b"\a\b\t\n\v\f\r")
"""Bytes rare in text: control characters other than whitespace. ESC sequences are not counted."""

NOT_TEXT = "save what it holds as plain text (UTF-8), and give that"
TABLE = "write its text column to a .txt file, and give that"
NO_WORDS = "there are no words in it; give a text file"

_BY_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PAR1", "a Parquet table", TABLE),
    (0, b"PARE", "an encrypted Parquet table", TABLE),
    (0, b"ARROW1", "an Arrow table", TABLE),
    (0, b"FEA1", "a Feather table", TABLE),
    (0, b"ORC", "an ORC table", TABLE),
    (0, b"Obj\x01", "an Avro table", TABLE),
    (0, SQLITE, "an SQLite database", TABLE),
    (0, b"BZh", "packed with bzip2", "bz2"),
    (0, b"\xfd7zXZ\0", "packed with xz", "lzma"),
    (0, b"\x5d\0\0", "packed with LZMA", "lzma"),
    (0, b"LZIP", "packed with lzip", "unpack it first"),
    (0, b"\x04\x22\x4d\x18", "packed with LZ4", "unpack it first"),
    (0, b"\xff\x06\0\0sNaPpY", "packed with Snappy", "unpack it first"),
    (0, b"\x1f\x9d", "packed with compress", "unpack it first"),
    (0, GZIP, "packed with gzip twice", "unpack it first"),
    (0, ZSTD, "packed with Zstandard twice", "unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first, and give the folder"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unpack it first, and give the folder"),
    (257, b"ustar", "a tar archive", "tarfile"),
    (0, b"PK\x03\x04", "a zip archive", "zipfile"),
    (0, b"PK\x05\x06", "an empty zip archive", NO_WORDS),
    (0, b"%PDF-", "a PDF document", NOT_TEXT),
    (0, b"%!PS", "a PostScript document", NOT_TEXT),
    (0, b"{\\rtf", "an RTF document", NOT_TEXT),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", NOT_TEXT),
    (60, b"BOOKMOBI", "a Kindle book", NOT_TEXT),
    (0, b"AT&TFORM", "a DjVu document", NOT_TEXT),
    (0, b"\x93NUMPY", "a NumPy array", NO_WORDS),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", NO_WORDS),
    (0, b"GGUF", "a GGUF model", NO_WORDS),
    (0, b"ggml", "a GGML model", NO_WORDS),
    (0, b"lmgg", "a GGML model", NO_WORDS),
    (0, b"GRNDTOK\n", "a token file of Groundling", "give the text it was made of"),
    (0, b"\x7fELF", "a program (ELF)", NO_WORDS),
    (0, b"\xca\xfe\xba\xbe", "a Java class or a program", NO_WORDS),
    (0, b"\xcf\xfa\xed\xfe", "a program (Mach-O)", NO_WORDS),
    (0, b"\xce\xfa\xed\xfe", "a program (Mach-O)", NO_WORDS),
    (0, b"\0asm", "a WebAssembly program", NO_WORDS),
    (0, b"!<arch>\n", "a library of object files", NO_WORDS),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image", NO_WORDS),
    (0, b"GIF87a", "a GIF image", NO_WORDS),
    (0, b"GIF89a", "a GIF image", NO_WORDS),
    (0, b"\xff\xd8\xff", "a JPEG image", NO_WORDS),
    (0, b"II*\0", "a TIFF image", NO_WORDS),
    (0, b"MM\0*", "a TIFF image", NO_WORDS),
    (0, b"8BPS", "a Photoshop image", NO_WORDS),
    (4, b"ftyp", "a video, a sound or an image (MPEG-4)", NO_WORDS),
    (0, b"ID3", "a sound (MP3)", NO_WORDS),
    (0, b"\xff\xfb", "a sound (MP3)", NO_WORDS),
    (0, b"\xff\xf3", "a sound (MP3)", NO_WORDS),
    (0, b"OggS", "a sound (Ogg)", NO_WORDS),
    (0, b"fLaC", "a sound (FLAC)", NO_WORDS),
    (0, b"MThd", "a sound (MIDI)", NO_WORDS),
    (0, b"\x1aE\xdf\xa3", "a video (Matroska)", NO_WORDS),
    (0, b"wOFF", "a font", NO_WORDS),
    (0, b"wOF2", "a font", NO_WORDS),
    (0, b"OTTO", "a font", NO_WORDS),
)

_BY_NAME: dict[str, tuple[str, str]] = {
    ending: (name, advice)
    for endings, name, advice in (
        (".parquet", "a Parquet table", TABLE),
        (".arrow .feather .ipc", "an Arrow table", TABLE),
        (".orc", "an ORC table", TABLE),
        (".avro", "an Avro table", TABLE),
        (".sqlite .sqlite3 .db", "a database", TABLE),
        (".xls .xlsx .ods", "a spreadsheet", TABLE),
        (".bz2 .tbz .tbz2", "packed with bzip2", "bz2"),
        (".xz .txz", "packed with xz", "lzma"),
        (".lzma", "packed with LZMA", "lzma"),
        (".lz4 .lz .br .z .sz", "packed", "unpack it first"),
        (".tar .tgz", "a tar archive", "tarfile"),
        (".zip", "a zip archive", "zipfile"),
        (".7z .rar", "an archive", "unpack it first, and give the folder"),
        (".pdf", "a PDF document", NOT_TEXT),
        (".doc .docx .odt .rtf .pages", "a document of a word processor", NOT_TEXT),
        (".ppt .pptx .odp", "a presentation", NOT_TEXT),
        (".epub .mobi .azw .azw3 .djvu", "a book", NOT_TEXT),
        (".ipynb", "a notebook", NOT_TEXT),
        (".npy .npz", "a NumPy array", NO_WORDS),
        (".pkl .pickle .joblib", "a pickle", NO_WORDS),
        (".safetensors .gguf .ggml .pt .pth .ckpt .onnx", "a model", NO_WORDS),
        (".h5 .hdf5", "an HDF5 file", NO_WORDS),
        (".tok", "a token file of Groundling", "give the text it was made of"),
        (".exe .dll .so .dylib .o .a .class .jar .pyc .wasm", "a program", NO_WORDS),
        (".png .gif .jpg .jpeg .webp .bmp .tif .tiff .ico .heic .avif .psd", "an image", NO_WORDS),
        (".mp3 .wav .ogg .oga .opus .flac .m4a .aac .mid .midi .wma", "a sound", NO_WORDS),
        (".mp4 .mkv .webm .mov .avi .m4v .wmv", "a video", NO_WORDS),
        (".ttf .otf .woff .woff2", "a font", NO_WORDS),
    )
    for ending in endings.split()
}
_BY_ZIP_NAME = {
    **{ending: _BY_NAME[ending] for ending in (".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp", ".epub", ".jar")},
    **{ending: _BY_NAME[ending] for ending in (".npz", ".pt", ".pth", ".ckpt")},
}
JSON, TABLES = (".jsonl", ".ndjson", ".json"), {".csv": ",", ".tsv": "\t"}


class Format(NamedTuple):
    """Name of a file's format, and advice on converting it."""

    name: str
    advice: str


def inner_suffix(path: Path) -> str:
    """Return a file's extension in lower case, without that of a compression: .jsonl for `A.JSONL.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_other_by_name(path: Path) -> bool:
    """Whether a file name alone shows that the file is not plain text."""
    suffix = inner_suffix(path)
    return suffix in _BY_NAME or suffix in (*JSON, *TABLES)


def binary_format(path: Path, head: bytes) -> Format | None:
    """Recognise a binary format; None if there is none.

    Args:
        path: file name.
        head: first bytes, decompressed.
    """
    for offset, magic, name, advice in _BY_MAGIC:
        if head.startswith(magic, offset) and _is_likely(magic, head):
            if magic.startswith(b"PK"):
                name, advice = _BY_ZIP_NAME.get(inner_suffix(path), (name, advice))
            return Format(name, _advice(advice, path))
    if head[:4] in (b"RIFF", b"RIFX") and head[8:12] in (b"WAVE", b"AVI ", b"WEBP"):
        return Format({b"WAVE": "a sound", b"AVI ": "a video", b"WEBP": "an image"}[head[8:12]], NO_WORDS)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and head[2:3] in PICKLED:
        return Format("a pickle", NO_WORDS)
    if head[:4] == b"\xff\xff\xff\xff" and 0 < int.from_bytes(head[4:8], "little") < 1 << 20 and len(head) > 16:
        return Format("an Arrow stream", TABLE)
    if head[:4] == b"\0\0\x01\0" and head[4:5] > b"\0" and len(head) > 22:
        return Format("an icon", NO_WORDS)
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 1 << 30 and b"\0" in head[:8]:
        return Format("a model (safetensors)", NO_WORDS)
    if head[:2] in (b"MZ", b"BM") and b"\0" in head[:64]:
        return Format("a program (Windows)" if head[:2] == b"MZ" else "an image (BMP)", NO_WORDS)
    return None


def _is_likely(magic: bytes, head: bytes) -> bool:
    """Whether a magic number that is also valid text (ORC, OTTO) is followed by binary data."""
    return not magic.isalnum() or any(byte in CONTROLS for byte in head)


def named_format(path: Path) -> Format | None:
    """Recognise a format other than plain text by the file name; None if there is none."""
    suffix = inner_suffix(path)
    if suffix not in _BY_NAME:
        return None
    name, advice = _BY_NAME[suffix]
    return Format(f"by its name {name}", f"{_advice(advice, path)}; if it is plain text, let its name end in .txt")


def unknown_binary(path: Path, head: bytes) -> Format | None:
    """Describe bytes of no known format that are not UTF-8; None if they may be."""
    encoding = _wide_encoding(head) if head.count(0) >= MIN_ZEROS else None
    if encoding is not None:
        return Format(f"text in {encoding}, it seems", conversion(encoding, path))
    if len(head) < MIN_BINARY_BYTES:
        return None
    if sum(byte in CONTROLS for byte in head) > BINARY_PART * len(head):
        return Format("binary", NOT_TEXT)
    if _flawed_part(head) > FLAWED_PART:
        note = " with its encoding in the place of WINDOWS-1252"
        return Format("text in another encoding than UTF-8, it seems", conversion("WINDOWS-1252", path, note))
    return None


def _wide_encoding(head: bytes) -> str | None:
    """Detect UTF-16 or UTF-32 without a byte-order mark by the position of zeros; None if it is neither."""
    zeros = [head[place::4].count(0) for place in range(4)]
    most = 0.95 * len(head) / 4
    if min(zeros[0], zeros[1]) > most > zeros[3]:
        return "UTF-32BE"
    if min(zeros[2], zeros[3]) > most > zeros[0]:
        return "UTF-32LE"
    n_zeros, encoding = max((zeros[0] + zeros[2], "UTF-16BE"), (zeros[1] + zeros[3], "UTF-16LE"))
    return encoding if n_zeros > len(head) / 8 and sum(zeros) < 0.6 * len(head) else None


def _flawed_part(head: bytes) -> float:
    """Return the fraction of bytes that are not UTF-8. A character cut at the end counts too."""
    return 1 - len(head.decode("utf-8", "ignore").encode()) / len(head)


def _advice(advice: str, path: Path) -> str:
    """Return advice as a command, with Python alone if possible."""
    name = argument(path)
    is_inside = path.suffix.lower() in PACKED
    if is_inside and (advice in ("bz2", "lzma", "zipfile") or (advice == "tarfile" and path.suffix.lower() == ".zst")):
        return "unpack it first, then its contents"
    if advice in ("bz2", "lzma"):
        out = new_file(f"{path.name.partition('.')[0] or 'text'}.txt")
        if ".tar" in path.suffixes or path.suffix.lower() in (".tbz", ".tbz2", ".txz"):
            return _advice("tarfile", path)
        script = f"import {advice}, shutil; shutil.copyfileobj({advice}.open({name!r}), open({out!r}, 'wb'))"
        return f"unpack it first: python -c {shell_word(script)}"
    if advice in ("tarfile", "zipfile"):
        return f"unpack it first: python -m {advice} -e {shell_word(name)} unpacked (and give --data.path unpacked)"
    return advice


def conversion(encoding: str, path: Path, note: str = "") -> str:
    """Return the command that converts a file to UTF-8, decompressing it if necessary."""
    name, out = shlex.quote(argument(path)), f"utf8{inner_suffix(path) or '.txt'}"
    unpack = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    source = f"iconv -f {encoding} -t UTF-8"
    command = f"{unpack} -dc {name} | {source}" if unpack else f"{source} {name}"
    return f"convert it first{note}: {command} > {new_file(out)}"


def argument(path: Path) -> str:
    """Return a file name that commands do not take for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def shell_word(text: str) -> str:
    """Quote an argument for a shell: double quotes if they change nothing, which every shell understands."""
    is_plain = os.name == "nt" or not re.search(r'["$`!]|\\[\\\n]', text)
    return f'"{text}"' if is_plain else shlex.quote(text)


def new_file(name: str) -> str:
    """Return the name, or a similar one that does not exist yet."""
    path = Path(name)
    while path.exists():
        path = path.with_stem(f"{path.stem}-new")
    return str(path)
