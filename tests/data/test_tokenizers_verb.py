"""`groundling tokenizer`: what a user sees of it."""

import json

import pytest

from groundling.cli import main
from groundling.data.corpus import DataConfig, prepare
from groundling.text.build import TokenizerConfig
from groundling.text.char import CharTokenizer
from groundling.text.serialize import load_tokenizer, save_tokenizer

LINES = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n\n"


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "my.txt"
    path.write_text(LINES * 100)
    return path


@pytest.mark.parametrize("kind", ["char", "bpe", "unigram", "sp_bpe"])
def test_train_saves_a_tokenizer_that_pretraining_can_take(kind, text, tmp_path, capsys):
    out = tmp_path / "made"
    command = ["tokenizer", "train", "--kind", kind, "--vocab-size", "300", "--data.path", str(text)]
    assert main([*command, "--out-dir", str(out)]) == 0
    assert f"{kind}, " in capsys.readouterr().out
    made = load_tokenizer(out)
    assert made.kind == json.loads((out / "tokenizer.json").read_text())["kind"] == kind
    corpus = prepare(DataConfig(path=str(text), tokenizer=TokenizerConfig(path=str(out))), 8)
    direct = prepare(DataConfig(path=str(text), tokenizer=TokenizerConfig(kind=kind, vocab_size=300)), 8)
    assert corpus.fingerprint == direct.fingerprint


def test_training_looks_at_the_training_part_only(text, tmp_path):
    text.write_text(LINES * 90 + "zyx" * 250)
    main(["tokenizer", "train", "--kind", "bpe", "--data.path", str(text), "--out-dir", str(tmp_path)])
    made = load_tokenizer(tmp_path)
    pieces = [made.piece(token) for token in range(made.vocab_size)]
    assert " question" in pieces
    assert not [piece for piece in pieces if "zy" in piece]


@pytest.mark.parametrize("where", ["", "tokenizer.json", "run", "run/best/bundle"])
def test_show_finds_it_and_cuts_a_line(where, tmp_path, capsys):
    home = tmp_path / where if where != "tokenizer.json" else tmp_path
    home.mkdir(parents=True, exist_ok=True)
    save_tokenizer(CharTokenizer("\n\x1b []abder"), home)
    given = tmp_path / where if where != "run/best/bundle" else tmp_path / "run"
    assert main(["tokenizer", "show", str(given), "--text", "[red]\x1b a\n"]) == 0
    out = capsys.readouterr().out
    assert "char, 10 ids" in out
    assert "[|r|e|d|]|<U+001B>| |a|↵" in out
    assert "\x1b" not in out


def test_show_says_what_a_line_has_that_it_cannot_say(tmp_path, capsys):
    save_tokenizer(CharTokenizer("ab"), tmp_path)
    assert main(["tokenizer", "show", str(tmp_path), "--text", "abc"]) == 0
    assert "U+0063" in capsys.readouterr().out


def test_show_without_a_tokenizer_is_one_line(tmp_path, capsys):
    assert main(["tokenizer", "show", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_compare_counts_the_validation_part(text, capsys):
    kinds = ["char", "bpe", "unigram", "sp_bpe"]
    command = ["tokenizer", "compare", "--data.path", str(text), "--vocab-size", "300", "--kinds", *kinds]
    assert main([*command, "--text", "to be [b]or[/b]"]) == 0
    rows = {}
    for line in capsys.readouterr().out.splitlines():
        cells = [cell.strip() for cell in line.strip("│┃").split("│")]
        if cells[0] in kinds:
            rows[cells[0]] = cells
    assert list(rows) == kinds
    n_val = len(LINES * 100) - int(0.9 * len(LINES * 100))
    assert rows["char"][1:4] == [str(len(set(LINES))), str(n_val), "1.00"]
    for kind in kinds[1:]:
        corpus = prepare(DataConfig(path=str(text), tokenizer=TokenizerConfig(kind=kind, vocab_size=300)), 8)
        assert rows[kind][2] == f"{len(corpus.val):,}"
        assert float(rows[kind][3]) == pytest.approx(n_val / len(corpus.val), abs=0.006)
        assert rows[kind][4].replace("|", "") == "to be [b]or[/b]"


def test_compare_shows_gpt2_on_the_lecture_text(capsys):
    assert main(["tokenizer", "compare", "--kinds", "gpt2"]) == 0
    assert "36,059" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--kind", "bpe", "--vocab-size", "9"], ["--data.path", "nothing.txt"]])
def test_what_cannot_work_is_one_line(words, text, tmp_path, capsys):
    assert main(["tokenizer", "train", "--out-dir", str(tmp_path), *words]) != 0
    assert capsys.readouterr().err.count("\n") == 1
