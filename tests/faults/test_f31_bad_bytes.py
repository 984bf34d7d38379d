"""Row 31: a flaw in the bytes of a text stops with the file and the byte, or is replaced and counted."""

import gzip
import os
import subprocess
import sys

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from groundling.data import formats, text_files
from groundling.data.corpus import DataConfig, prepare
from groundling.errors import DataError, MissingExtraError


def read(path, data, errors="strict"):
    path.write_bytes(data)
    files = text_files.TextFiles([path], errors)
    return "".join(files.pieces()), files.replaced


@pytest.fixture
def path(tmp_path):
    return tmp_path / "text.txt"


LONG = b"x" * (text_files.PIECE_BYTES - 1)
"""So that what follows lies across the border of two pieces."""


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (bytes(range(256)), 0),
        (bytes(range(1, 256)), 127),
        (b"ab\xffcd", 2),
        (b"ab\xc3\x28", 2),
        (b"\xef\xbb\xbfab\x00", 5),
        (b"ab\xe2\x82", 2),
        (b"\xed\xa0\x80", 0),
        (b"\xc0\x80", 0),
        (b"\xf4\x90\x80\x80", 0),
        (b"\xff\x00", 0),
        (b"\x00\xff", 0),
        (LONG + b"\xe2\x82x", len(LONG)),
        (LONG + b"\xc3\xa9\xff", len(LONG) + 2),
        (LONG + b"\xc3\xa9\x00", len(LONG) + 2),
    ],
)
def test_strict_names_the_file_and_the_byte(path, data, offset):
    with pytest.raises(DataError, match=rf"text\.txt: at byte offset {offset} .*--data\.errors replace"):
        read(path, data)


@pytest.mark.parametrize(
    ("data", "text", "count"),
    [
        (b"ab\xffcd", "ab\ufffdcd", 1),
        (b"a\x00b", "a\ufffdb", 1),
        (b"ab\xe2\x82", "ab\ufffd", 1),
        ("\ufffd is meant".encode() + b"\xff", "\ufffd is meant\ufffd", 1),
        (LONG + b"\xe2\x82\xacx\xff", LONG.decode() + "€x\ufffd", 1),
        (
            b"x" * (text_files.PIECE_BYTES - 2) + "\ufffd\ufffd".encode(),
            "x" * (text_files.PIECE_BYTES - 2) + "\ufffd\ufffd",
            0,
        ),
    ],
)
def test_replace_puts_a_sign_and_counts(path, data, text, count):
    assert read(path, data, "replace") == (text, count)


@given(st.binary(max_size=50), st.integers(1, 5))
def test_replace_is_what_python_does_wherever_the_pieces_end(tmp_path_factory, data, piece_bytes):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    if (
        data.startswith(tuple(text_files.MARKS))
        or formats.binary_format(path, data)
        or formats.unknown_binary(path, data)
    ):
        return  # no text at all; see test_f31_other_files.py
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE_BYTES", piece_bytes)
        text, count = read(path, data, "replace")
    whole = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    assert text == whole.replace("\0", "\ufffd")
    assert count == whole.count("\ufffd") - data.count("\ufffd".encode()) + data.count(b"\0")


def test_a_mark_of_utf8_is_dropped(path):
    assert read(path, b"\xef\xbb\xbfab") == ("ab", 0)
    assert read(path, b"ab\xef\xbb\xbf") == ("ab\ufeff", 0)


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le-mark", "utf-16-be-mark"])
def test_utf16_says_how_to_convert_it(path, errors, encoding):
    marks = {"utf-16-le-mark": b"\xff\xfea\0", "utf-16-be-mark": b"\xfe\xff\0a", "utf-16": "ab".encode("utf-16")}
    with pytest.raises(DataError, match="UTF-16; convert it first: iconv"):
        read(path, marks[encoding], errors)


def test_utf16_without_a_mark_is_called_so(path):
    with pytest.raises(DataError, match=r"byte offset 1 .* NUL bytes.*UTF-16"):
        read(path, "ab".encode("utf-16-le"))


def test_line_ends_are_kept(path):
    assert read(path, b"a\r\nb\rc\n") == ("a\r\nb\rc\n", 0)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
def test_a_damaged_archive_is_named(tmp_path, ending, damage):
    text = os.urandom(3000).hex().encode()
    packed = gzip.compress(text) if ending == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(text)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 4
    data = {"cut": packed[:-9], "flip": bytes(flipped), "other": b"plain text"}[damage]
    path = tmp_path / f"text{ending}"
    with pytest.raises(DataError, match=r"text\.(gz|zst)"):
        read(path, data)


def test_the_offset_in_an_archive_is_that_of_the_text(tmp_path):
    with pytest.raises(DataError, match="byte offset 5 of the unpacked text"):
        read(tmp_path / "text.gz", gzip.compress(b"abcde\xff"))


def test_zst_without_its_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match="zstandard"):
        read(tmp_path / "text.zst", zstandard.compress(b"a"))


def test_prepare_counts_and_says_so(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    path.write_bytes(b"ab\xffcd\n" * 100)
    for _ in range(2):  # also when it is found in the cache
        corpus = prepare(DataConfig(path=str(path), errors="replace"), 8)
        assert corpus.replaced == 100
        assert "100 decoding errors in the text were replaced" in capsys.readouterr().err
    with pytest.raises(DataError, match="byte offset 2 "):
        prepare(DataConfig(path=str(path)), 8)


def test_the_locale_does_not_matter(path, tmp_path):
    """Every open says its encoding: in the C locale, without Python's UTF-8 mode, all is as elsewhere."""
    path.write_text("Ça été – “naïve” \N{GRINNING FACE}\n" * 50, encoding="utf-8")
    out = tmp_path / "out"
    command = [sys.executable, "-X", "utf8=0", "-W", "error::EncodingWarning", "-X", "warn_default_encoding"]
    command += ["-m", "groundling", "tokenizer", "train", "--data.path", str(path), "--out-dir", str(out)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    environment = clean | {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "GROUNDLING_CACHE": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "\N{GRINNING FACE}" in (out / "tokenizer.json").read_text("utf-8")
