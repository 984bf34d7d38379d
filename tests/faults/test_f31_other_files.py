"""Row 31, of files that are no text at all: each is called what it is, and what is to be done then works."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import re
import sqlite3
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import save

from groundling.data import text_files
from groundling.data.corpus import DataConfig, prepare
from groundling.data.examples.conversations import read_conversations, read_preferences
from groundling.errors import DataError

WORDS = "To be, or not to be: that is the question.\n"
TEXT = WORDS * 60


def a_database(tmp_path):
    path = tmp_path / "made.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE texts (text TEXT)")
    db.close()
    return path.read_bytes()


def a_zip(name="a.txt"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, TEXT)
    return file.getvalue()


def a_tar(mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = len(TEXT)
        archive.addfile(info, io.BytesIO(TEXT.encode()))
    return file.getvalue()


def an_array(save_as):
    file = io.BytesIO()
    save_as(file, np.arange(100))
    return file.getvalue()


def a_model():
    file = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, file)
    return file.getvalue()


PARQUET = b"PAR1\x15\x04\x15\x1e\x15\x22L\x15\x02\x15\0\x12\0\0" + os.urandom(300) + b"PAR1"
RIFF = b"RIFF\x24\x08\0\0"
OTHERS = {
    "Parquet": PARQUET,
    "Arrow": b"ARROW1\0\0\xff\xff\xff\xff" + bytes(50),
    "ORC": b"ORC\x08\x03\x10\0" + os.urandom(200),
    "Avro": b"Obj\x01\x04\x16avro.schema",
    "bzip2": bz2.compress(TEXT.encode()),
    "xz": lzma.compress(TEXT.encode()),
    "LZMA": lzma.compress(TEXT.encode(), lzma.FORMAT_ALONE),
    "zip archive": a_zip(),
    "tar archive": a_tar(),
    "7z archive": b"7z\xbc\xaf\x27\x1c\0\x04" + os.urandom(100),
    "RAR": b"Rar!\x1a\x07\x01\0" + os.urandom(100),
    "LZ4": b"\x04\x22\x4d\x18\x60\x40\x82" + os.urandom(100),
    "gzip twice": gzip.compress(gzip.compress(TEXT.encode())),
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj <<>> endobj",
    "RTF": b"{\\rtf1\\ansi To be}",
    "old Office": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500),
    "NumPy": an_array(np.save),
    "pickle": pickle.dumps({"a": [1, 2]}),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "safetensors": save({"a": torch.zeros(3)}),
    "GGUF": b"GGUF\x03\0\0\0" + bytes(40),
    "token file": b"GRNDTOK\n\x01\0\0\0",
    "ELF": b"\x7fELF\x02\x01\x01" + bytes(100),
    "Windows": b"MZ\x90\0\x03\0\0\0",
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "GIF": b"GIF89a\x01\0\x01\0",
    "JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "TIFF": b"II*\0\x08\0\0\0",
    "BMP": b"BM\x46\0\0\0\0\0\0\0",
    "MP3": b"ID3\x03\0\0\0\0",
    "Ogg": b"OggS\0\x02" + bytes(20),
    "FLAC": b"fLaC\0\0\0\x22",
    "MPEG-4": b"\0\0\0\x20ftypisom" + bytes(20),
    "Matroska": b"\x1aE\xdf\xa3\x9fB\x86\x81\x01",
    "a sound": RIFF + b"WAVEfmt ",
    "an image": RIFF + b"WEBPVP8 ",
    "binary": np.random.default_rng(0).bytes(3000),
}


def complaint(path, errors="strict", expected="text"):
    with pytest.raises(DataError) as error:
        list(text_files.TextFiles([path], errors, expected).pieces())
    said = str(error.value)
    assert "\n" not in said
    assert str(path) in said
    return said


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize(("what", "data"), OTHERS.items(), ids=OTHERS.keys())
def test_whatever_its_name_a_file_that_is_no_text_is_called_what_it_is(tmp_path, what, data, packed, errors):
    path = tmp_path / ("text.gz" if packed else "text.txt")
    path.write_bytes(gzip.compress(data) if packed else data)
    said = complaint(path, errors)
    assert what in said
    assert "data.errors" not in said, "replacing would train on what is no text"


def test_a_database_is_called_one_and_to_whom_it_may_belong(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(a_database(tmp_path))
    assert "an SQLite database" in complaint(path)
    assert "rankings are for groundling dpo and groundling reward: --rankings" in complaint(path, expected="rows")


NAMES = "parquet arrow bz2 xz zip tar tgz docx xlsx pptx odt epub pdf rtf sqlite db npy npz pkl pt safetensors gguf"
NAMES += " h5 exe so png jpg mp3 wav mp4 ipynb jsonl ndjson json csv tsv"


@pytest.mark.parametrize("ending", [*NAMES.split(), *NAMES.upper().split()])
def test_a_name_that_says_it_is_no_text_is_believed(tmp_path, ending):
    for name in (f"a.{ending}", f"a.{ending}.gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(TEXT.encode()) if name.endswith(".gz") else TEXT.encode())
        said = complaint(path)
        assert ".txt" in said or "unpack" in said


@pytest.mark.parametrize("name", ["a.docx", "a.epub", "a.npz", "a.pt"])
def test_a_zip_archive_is_called_what_its_name_says(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(a_model() if name == "a.pt" else a_zip())
    assert "zip archive" not in complaint(path)


PLAYS = [
    "OTTO: Who is there?\n",
    "PARENTS and children.\n",
    "ORCHARDS in bloom.\n",
    "ID: a name.\n",
    "BMW and MZ are makers.\n",
    "Rar! he said.\n",
    "\x1b[1mbold\x1b[0m log line\n" * 100,
    "page\x0cpage\n" * 100,
    "PAR1 is what a Parquet table begins with. " * 100,
    "GIF89a came in 1989. " * 100,
    "ID3 is a kind of tag. " * 100,
    "{braces} begin it\n[and] [brackets]\n",
]


@pytest.mark.parametrize("text", PLAYS)
def test_a_text_that_begins_with_such_letters_is_a_text(tmp_path, text):
    path = tmp_path / "text.txt"
    path.write_text(text)
    files = text_files.TextFiles([path])
    assert "".join(files.pieces()) == text
    assert files.doubts == {}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_says_how_to_convert_it(tmp_path, encoding):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode(encoding))
    assert f"iconv -f {encoding.upper().replace('-LE', 'LE').replace('-BE', 'BE')} -t UTF-8" in complaint(path)


@pytest.mark.parametrize("text", [TEXT, "Быть или не быть.\n" * 60, "Быть.\n"])
@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-le", "utf-32-be"])
def test_utf32_is_not_taken_for_utf16(tmp_path, text, encoding):
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode(encoding))
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    assert f"convert it first: iconv -f {name} " in complaint(path)


def test_wide_characters_are_seen_in_a_short_file_too(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(WORDS.encode("utf-16-le"))
    assert "text in UTF-16LE" in complaint(path, errors="replace")


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "shift_jis", "gb18030", "cp500"])
@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_another_encoding_is_not_learned_as_replacements(tmp_path, encoding, errors):
    path = tmp_path / "text.txt"
    text = {"shift_jis": "いろはにほへと。", "gb18030": "天地玄黄。", "cp500": "To be, or not"}.get(
        encoding, "Быть иль не быть."
    )
    path.write_bytes((text * 200).encode(encoding))
    assert "text in another encoding" in complaint(path, errors=errors)


def test_a_few_letters_of_another_encoding_are_flaws_that_can_be_replaced(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(("Être ou ne pas être, là est la question.\n" * 200).encode("cp1252"))
    assert "data.errors replace" in complaint(path)
    assert "".join(text_files.TextFiles([path], "replace").pieces()).startswith("\ufffdtre ou")


@pytest.mark.parametrize(("pack", "name"), [(gzip.compress, "a.GZ"), (zstandard.compress, "a.ZST")])
def test_what_is_packed_is_unpacked_whatever_its_name(tmp_path, pack, name):
    for path in (tmp_path / name, tmp_path / "a.txt"):
        path.write_bytes(pack(TEXT.encode()))
        assert "".join(text_files.TextFiles([path]).pieces()) == TEXT


# What is to be done, done

ROWS = [{"id": "1", "text": "One é “text”.\nTwo lines."}, {"id": "2", "text": "Another one."}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
PRINTED = "".join(row["text"] + "\n" for row in ROWS)
CSV = 'id,text\n1,"One é “text”.\nTwo lines."\n2,Another one.\n'
FOLLOWED = {
    "a.jsonl": (LINES, PRINTED),
    "a.json": (json.dumps(ROWS), PRINTED),
    "b.json": (json.dumps([row["text"] for row in ROWS]), PRINTED),
    "a.jsonl.gz": (gzip.compress(LINES.encode()), PRINTED),
    "a.jsonl.zst": (zstandard.compress(LINES.encode()), PRINTED),
    "a.csv": (CSV, PRINTED),
    "a.tsv": (CSV.replace(",", "\t"), PRINTED),
    "semicolons.csv": (CSV.replace(",", ";"), PRINTED),
    "gaps.csv": (CSV.replace("2,", "3\n4,\n2,"), PRINTED),
    "gaps.jsonl": (LINES + '{"id": "3"}\n{"text": null}\n', PRINTED),
    "texts.jsonl": ("".join(json.dumps(row["text"]) + "\n" for row in ROWS), PRINTED),
    "a.bz2": (OTHERS["bzip2"], TEXT),
    "a.xz": (OTHERS["xz"], TEXT),
    "a.zip": (OTHERS["zip archive"], TEXT),
    "a.tar": (OTHERS["tar archive"], TEXT),
    "a.tar.gz": (a_tar("w:gz"), TEXT),
    "a.tar.bz2": (a_tar("w:bz2"), TEXT),
    "a.tar.xz": (a_tar("w:xz"), TEXT),
}


@pytest.mark.parametrize(("name", "data", "text"), [(name, *what) for name, what in FOLLOWED.items()], ids=FOLLOWED)
def test_the_advice_works(tmp_path, monkeypatch, name, data, text):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    said = complaint(path)
    command = re.search(r'python (?:-X utf8 )?(-c ".*"(?: > \S+)?|-m \w+ -e "[^"]*" \w+)', said)[0]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True, cwd=tmp_path)
    made = tmp_path / ("unpacked" if "unpacked" in command else f"{name.partition('.')[0]}.txt")
    assert "".join(DataConfig(path=str(made)).text_files().pieces()).removesuffix("\n") == text.removesuffix("\n")


NO_COMMAND = {
    "nested.json": json.dumps({"data": ROWS}),
    "pretty.json": json.dumps(ROWS[0], indent=1),
    "arrays.jsonl": '["a", "b"]\n["c", "d"]\n',
    "a number.json": "12",
    "a long row.jsonl": json.dumps({"text": "a" * 300_000}) + "\n",
    "other first.jsonl": '{"meta": 1}\n' + LINES,
    "deep.jsonl": '{"a":' * 50_000,
    "a long line.csv": "a" * 200_000 + "\n1\n",
    "a blank line first.csv": "\n" + CSV,
    "a.gz": gzip.compress(OTHERS["bzip2"]),
    "b.gz": gzip.compress(OTHERS["zip archive"]),
    "a.tar.zst": zstandard.compress(OTHERS["tar archive"]),
}


@pytest.mark.parametrize(("name", "data"), NO_COMMAND.items(), ids=NO_COMMAND)
def test_no_command_is_given_that_would_not_work(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    said = complaint(path)
    assert "python" not in said
    assert len(said) < 400


def test_conversations_are_sent_to_fine_tuning(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "who?"}]}) + "\n")
    assert "groundling sft BUNDLE --data.path FILE" in complaint(path)
    path.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    assert "groundling dpo BUNDLE --preferences FILE" in complaint(path)


def test_json_by_content_alone_is_read_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.txt"
    path.write_text(LINES * 30)
    for _ in range(2):  # also when it is found in the cache
        prepare(DataConfig(path=str(path)), 8)
        assert "a.txt looks like lines of JSON" in capsys.readouterr().err
    same = tmp_path / "a.jsonl"
    same.write_text(LINES * 30)
    with pytest.raises(DataError, match="JSON, not text"):
        prepare(DataConfig(path=str(same)), 8)


@pytest.mark.parametrize("read", [read_conversations, read_preferences])
def test_readers_of_rows_say_what_came_and_what_they_expect(tmp_path, read):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(PARQUET)
    with pytest.raises(DataError, match=r"a Parquet table; JSON is expected here, one object a line") as error:
        read(path)
    assert "data.errors" not in str(error.value)
