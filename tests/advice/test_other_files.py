"""Advice about files that are no plain text, followed: what to do with each, and commands as a shell takes them."""

import bz2
import gzip
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from advicekit import follows

from groundling.data.token_file import write_token_file

AWKWARD = 'it\'s a "file" of $HOME & `so` on!'


@pytest.fixture
def learned(tmp_path):
    """`groundling tokenizer train`, on a text."""
    return lambda text: ("tokenizer", "train", "--out-dir", tmp_path / "t", "--data.path", text)


@pytest.fixture
def told(monkeypatch, tmp_path):
    """Runs a command as a shell reads it, in a folder of its own where `python` is this one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return lambda command: subprocess.run(command, shell=True, check=True, env={**os.environ, "PYTHONPATH": ""})


def written(path, data):
    path.write_bytes(data)
    return path


@follows("save what it holds as plain text (UTF-8), and give that")
def test_a_document(advised, learned, tmp_path, story):
    document = written(tmp_path / "a.txt", b"{\\rtf1 " + story.read_bytes() + b"}")
    advised.refused(*learned(document))
    advised.works(*learned(written(tmp_path / "b.txt", document.read_bytes()[7:-1])))


@follows("write its text column to a .txt file, and give that")
def test_a_database(advised, learned, tmp_path, story):
    database = sqlite3.connect(tmp_path / "a.db")
    database.execute("CREATE TABLE texts (id, text)")
    database.executemany("INSERT INTO texts VALUES (?, ?)", enumerate(story.read_text(encoding="utf-8").splitlines()))
    database.commit()
    advised.refused(*learned(tmp_path / "a.db"))
    lines = [text for (text,) in database.execute("SELECT text FROM texts")]
    database.close()
    advised.works(*learned(written(tmp_path / "b.txt", "\n".join(lines).encode())))


@follows("there are no words in it; give a text file", "give the text it was made of")
def test_what_holds_no_words(advised, learned, tmp_path, story):
    advised.refused(*learned(written(tmp_path / "a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")))
    write_token_file(tmp_path / "a.tok", [np.arange(5, dtype=np.uint32)], 5)
    advised.refused(*learned(tmp_path / "a.tok"))
    advised.works(*learned(story))


@follows("{}; if it is plain text, let its name end in .txt")
def test_a_text_by_another_name(advised, learned, tmp_path, story):
    shutil.copy(story, tmp_path / "a.pdf")
    advised.refused(*learned(tmp_path / "a.pdf"))
    advised.works(*learned((tmp_path / "a.pdf").rename(tmp_path / "a.txt")))


@follows("unpack it first", "unpack it first, and give the folder")
def test_what_is_packed_otherwise(advised, learned, tmp_path, story):
    twice = written(tmp_path / "a.txt.gz", gzip.compress(gzip.compress(story.read_bytes())))
    advised.refused(*learned(twice))
    advised.works(*learned(written(tmp_path / "b.txt.gz", gzip.decompress(twice.read_bytes()))))
    (tmp_path / "folder").mkdir()
    advised.refused(*learned(written(tmp_path / "a.7z", b"7z\xbc\xaf\x27\x1c\0\x04")))
    shutil.copy(story, tmp_path / "folder")  # as 7z, which is not everywhere, unpacks it
    advised.works(*learned(tmp_path / "folder"))


@follows("unpack it first, then its contents")
def test_an_archive_that_is_packed(advised, learned, tmp_path, story):
    packed = bz2.compress(story.read_bytes())
    assert "python" not in advised.refused(*learned(written(tmp_path / "a.txt.gz", gzip.compress(packed))))
    advised.works(*learned(written(tmp_path / "b.txt", bz2.decompress(packed))))


@follows("unpack it first: python -c {}")
def test_a_file_that_python_unpacks(advised, learned, tmp_path, story, told):
    packed = written(tmp_path / f"{AWKWARD}.bz2", bz2.compress(story.read_bytes()))
    said = advised.refused(*learned(packed))
    told(said.partition("first: ")[2])
    assert Path(f"{AWKWARD}.txt").read_bytes() == story.read_bytes()
    advised.works(*learned(f"{AWKWARD}.txt"))


@follows("unpack it first: python -m {} -e {} unpacked (and give --data.path unpacked)")
def test_an_archive(advised, learned, tmp_path, story, told):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.write(story, "story.txt")
    said = advised.refused(*learned(written(tmp_path / f"{AWKWARD}.zip", data.getvalue())))
    told(said.partition("first: ")[2].rpartition(" (and")[0])
    advised.works(*learned("unpacked"))


LINES = [{"id": n, "what it's about": f"the king did speak {n}"} for n in range(300)]
COLUMN = "what it's about"
ROWS = {
    ".jsonl": "".join(json.dumps(row) + "\n" for row in LINES),
    ".tsv": "id\twhat it's about\n" + "".join(f"{row['id']}\t{row[COLUMN]}\n" for row in LINES),
}


@pytest.mark.parametrize("ending", ROWS)
@follows(
    "write its text to a file and give that: python -X utf8 -c {} > {}{}",
    " (to train on the file unchanged, let its name end in .txt)",
)
def test_a_table(advised, learned, tmp_path, told, ending):
    """And a file of the user's that has the name already stays."""
    name = f"{AWKWARD}{ending}"
    table = written(tmp_path / name, ROWS[ending].encode())
    Path(f"{AWKWARD}.txt").write_text("mine", encoding="utf-8")
    said = advised.refused(*learned(table))
    told(said.partition("give that: ")[2].rpartition(" (to train")[0])
    assert Path(f"{AWKWARD}-new.txt").read_text(encoding="utf-8") == "".join(row[COLUMN] + "\n" for row in LINES)
    assert Path(f"{AWKWARD}.txt").read_text(encoding="utf-8") == "mine"
    advised.works(*learned(f"{AWKWARD}-new.txt"))
    advised.works(*learned(table.rename(tmp_path / "as it stands.txt")))


@pytest.mark.parametrize("value", [{"title": "a", "pages": [{"words": "b"}]}, [["a", "b"]]], ids=["object", "arrays"])
@follows("write the texts in it to a .txt file, and give that{}")
def test_json_that_is_no_table(advised, learned, tmp_path, story, value):
    file = written(tmp_path / "a.json", json.dumps(value, indent=1).encode())
    assert "python" not in advised.refused(*learned(file))
    advised.works(*learned(story))


@follows("unpack it first, then {}")
def test_a_table_that_is_packed(advised, learned, tmp_path):
    packed = written(tmp_path / "a.csv.gz", gzip.compress(ROWS[".tsv"].replace("\t", ",").encode()))
    advised.refused(*learned(packed))
    unpacked = gzip.decompress(packed.read_bytes()).decode().splitlines()[1:]
    advised.works(
        *learned(written(tmp_path / "a.txt", "\n".join(line.partition(",")[2] for line in unpacked).encode()))
    )


FAST = ("--runtime.device", "cpu", "--runtime.dtype", "float32", "--batch-size", "4", "--epochs", "1")


@follows(
    "it holds conversations: groundling sft BUNDLE --data.path FILE learns from them, after pretraining",
    "it holds preferences: groundling dpo BUNDLE --preferences FILE learns from them, after groundling sft",
    "; preferences are for groundling dpo and groundling reward: --preferences",
    "{}: {} tells good replies from bad ones; train a reward model on such rows (groundling reward --preferences), or "
    "keep the good ones and remove the key",
)
def test_rows_to_learn_from_after_pretraining(advised, learned, finished_run, tmp_path):
    def rows(name, *some):
        return written(tmp_path / name, "".join(json.dumps(row) + "\n" for row in some).encode())

    talk = [{"role": "user", "content": "the king"}, {"role": "assistant", "content": "did speak"}]
    chats = rows("chats.jsonl", *[{"messages": talk}] * 8)
    pairs = rows("pairs.jsonl", *[{"prompt": f"the king {'so ' * n}", "chosen": "did speak", "rejected": "of love"}
                                  for n in range(8)])  # fmt: skip
    labels = [{"prompt": "the king", "completion": "did speak", "label": True},
              {"prompt": "the fool", "completion": "of love", "label": False}] * 8  # fmt: skip
    labelled = rows("labelled.jsonl", *labels)
    sft = ("sft", finished_run, "--n-replies", "0", *FAST)
    advised.refused(*learned(chats))
    advised.works(*sft, "--data.path", chats, "--out-dir", tmp_path / "sft")
    advised.refused(*learned(pairs))
    advised.refused(*sft, "--data.path", pairs, "--out-dir", tmp_path / "wrong")
    advised.works("dpo", tmp_path / "sft", "--preferences", pairs, "--out-dir", tmp_path / "dpo", *FAST)
    advised.refused(*sft, "--data.path", labelled, "--out-dir", tmp_path / "wrong", "--overwrite")
    for number, file in enumerate((pairs, labelled)):
        out = tmp_path / f"reward-{number}"
        advised.works("reward", tmp_path / "sft", "--preferences", file, "--out-dir", out, "--held-out", "0.5", *FAST)
    good = [{key: row[key] for key in ("prompt", "completion")} for row in labels if row["label"]]
    advised.works(*sft, "--data.path", rows("good.jsonl", *good), "--out-dir", tmp_path / "good")
