"""Advice about files of rankings, followed."""

import json
import os
import shlex
import sqlite3

import pytest
import torch
from advicekit import follows

from groundling.align.preferences.database import Database
from groundling.align.preferences.judgement import MAX_CANDIDATES, Candidate, Judgement
from groundling.align.preferences.store import Rankings
from groundling.bundle import save_bundle
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text.char import CharTokenizer
from groundling.text.chat.messages import Message
from groundling.text.chat.role_tokens import RoleTokens


def judged(key="k", text="a") -> Judgement:
    return Judgement(
        key=key,
        messages=(Message("user", "Speak."),),
        candidates=(Candidate(text, "one"), Candidate("b", "two")),
        shown=(0, 1),
        choice=((0,), (1,)),
        rater="ann",
        time="2026-01-02T03:04:05+00:00",
    )


@follows("{}: half a character (a lone surrogate) cannot be stored; repair the text")
def test_half_a_character(advised):
    advised.raises(lambda: judged(text="\ud800"))
    advised.done(judged(text="\ud800".encode("utf-8", "replace").decode()))


@follows(
    "there are no rankings at {}; `groundling rank` collects some",
    "{} is damaged ({}); restore it from a copy, or import an export into a new file",
    "{} is an SQLite file of another program; choose another path",
    "cannot write {}: it is a device or a pipe; give the name of a file and run again",
    "{} is the input; choose another name for the output",
)
def test_files_of_rankings(advised, tmp_path, monkeypatch, capfd):
    import io

    file, questions, exported = tmp_path / "r.sqlite", tmp_path / "q.jsonl", tmp_path / "e.jsonl"
    advised.refused("rankings", "stats", file)
    texts = [{"text": "a", "model": "one"}, {"text": "b", "model": "two"}]
    questions.write_text(json.dumps({"prompt": "Speak.", "candidates": texts}), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n"))
    advised.works("rank", file, "--candidates", questions, "--rater", "ann")
    advised.works("rankings", "stats", file)
    os.mkfifo(tmp_path / "pipe")
    advised.refused("rankings", "export", file, tmp_path / "pipe")
    (tmp_path / "link").hardlink_to(file)
    for same in (file, tmp_path / "link"):
        advised.refused("rankings", "export", file, same)
    advised.works("rankings", "export", file, exported)
    for left in tmp_path.glob("r.sqlite-*"):
        left.unlink()
    copy = file.read_bytes()
    file.write_bytes(copy[:100] + b"\0" * (len(copy) - 100))
    advised.refused("rankings", "stats", file)
    advised.works("rankings", "import", tmp_path / "new.sqlite", exported)
    advised.works("rankings", "stats", tmp_path / "new.sqlite")
    file.write_bytes(copy)
    advised.works("rankings", "stats", file)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE theirs (a)")
    other.commit()
    other.close()
    advised.refused("rank", tmp_path / "other.sqlite", "--candidates", questions, "--rater", "ann")
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n"))
    advised.works("rank", tmp_path / "fresh.sqlite", "--candidates", questions, "--rater", "ann")


@follows(
    "another program has been writing to it for {} s; end it, or try again",
    "{}; choose an existing folder that you can write to",
    "the disk is full; free some room and run again",
)
def test_rankings_that_cannot_be_written(advised, tmp_path, monkeypatch):
    from groundling.align.preferences import database

    monkeypatch.setattr(database, "BUSY_S", 0.05)
    with Rankings(tmp_path / "r.sqlite") as rankings:
        rankings.add(judged())
        other = sqlite3.connect(tmp_path / "r.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with Rankings(tmp_path / "r.sqlite") as waiting:
            advised.raises(lambda: waiting.add(judged("k2")))
            other.execute("ROLLBACK")
            other.close()
            waiting.add(judged("k2"))
        advised.done(rankings.get("k2") is not None)
    advised.raises(lambda: Rankings(tmp_path / "nowhere" / "r.sqlite").__enter__().add(judged()))
    (tmp_path / "nowhere").mkdir(exist_ok=True)
    with Rankings(tmp_path / "nowhere" / "r.sqlite") as rankings:
        rankings.add(judged())

    class Full(sqlite3.OperationalError):
        sqlite_errorcode = sqlite3.SQLITE_FULL

    with Rankings(tmp_path / "r.sqlite") as rankings:
        with monkeypatch.context() as patch:

            def full(self, begin):
                raise Full("database or disk is full")

            patch.setattr(Database, "_within", full)
            advised.raises(lambda: rankings.add(judged("k3")))
        rankings.add(judged("k3"))
        advised.done(rankings.get("k3") is not None)


@follows("{} cannot have a write-ahead log there; put it on a local disk")
def test_a_disk_without_a_write_ahead_log(advised, tmp_path, monkeypatch):
    real = Database._value

    def on_a_share(self, query):
        return "delete" if "journal_mode" in query else real(self, query)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "_value", on_a_share)
        advised.raises(lambda: Rankings(tmp_path / "r.sqlite").__enter__().add(judged()))
    (tmp_path / "local").mkdir()
    with Rankings(tmp_path / "local" / "r.sqlite") as rankings:
        rankings.add(judged())
        advised.done(rankings.get("k") is not None)


@follows("{}: there are {} candidates; give {} at most, or split them")
def test_more_candidates_than_can_be_compared(advised, tmp_path):
    """In a row that is imported: a ranking of 10,000 would be 50 million comparisons."""
    rows, kept = tmp_path / "rows.jsonl", tmp_path / "r.sqlite"

    def write(n: int) -> None:
        texts = [{"text": f"{number}", "model": "one", "seed": None} for number in range(n)]
        order = list(range(n))
        row = {**judged().to_json(), "candidates": texts, "shown": order, "choice": [[number] for number in order]}
        rows.write_text(json.dumps(judged("first").to_json()) + "\n" + json.dumps(row), encoding="utf-8")

    write(10_000)
    said = advised.refused("rankings", "import", kept, rows)
    assert f"{rows}:2: judgement 'k': there are 10,000 candidates" in said
    with Rankings(kept) as rankings:
        assert list(rankings) == [], "all or none"
    write(MAX_CANDIDATES)
    advised.works("rankings", "import", kept, rows)
    with Rankings(kept) as rankings:
        assert len(list(rankings.pairs())) == 1 + 4950


@pytest.fixture
def talker(tmp_path):
    """A model that answers."""
    torch.manual_seed(0)
    letters = CharTokenizer(" .Sabcekp")
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=32, vocab_size=letters.vocab_size + 4)
    save_bundle(tmp_path / "talker", GPT(config), letters, chat=RoleTokens.after(letters.vocab_size))
    return tmp_path / "talker"


@follows(
    "an SQLite file of rankings is expected, as groundling rank and groundling rankings make them",
    "is lines of JSON; {}: {} makes one of exported ones",
    "groundling rankings import FILE.sqlite {}",
    "is lines of JSON; {}; preferences are given with --preferences",
    "; rankings are for groundling dpo and groundling reward: --rankings",
)
def test_one_file_in_the_place_of_another(advised, talker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, exported, pairs = tmp_path / "r.sqlite", tmp_path / "the user's.jsonl", tmp_path / "p.jsonl"
    with Rankings(file) as rankings:
        rankings.add(judged())
    advised.works("rankings", "export", file, exported)
    pairs.write_text(json.dumps({"prompt": "Speak.", "chosen": "a", "rejected": "b"}), encoding="utf-8")
    dpo = ("dpo", talker, "--out-dir", tmp_path / "dpo", "--overwrite", "--runtime.device", "cpu", "--epochs", "1")
    said = advised.refused(*dpo, "--rankings", exported)
    command = said[said.index("groundling rankings import") :].rpartition(" makes one")[0]
    advised.works(*shlex.split(command)[1:])
    advised.works(*dpo, "--rankings", "FILE.sqlite")
    advised.refused(*dpo, "--rankings", pairs)
    advised.works(*dpo, "--preferences", pairs)
    advised.refused(*dpo, "--preferences", file)
    advised.works(*dpo, "--rankings", file)
