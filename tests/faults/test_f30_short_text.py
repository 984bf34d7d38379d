"""Row 30: a text that is empty, or shorter than a window, is one clear line with the length that is needed."""

import pytest

from groundling.cli import main
from groundling.data.corpus import DataConfig, prepare
from groundling.errors import DataError
from groundling.text.build import TokenizerConfig

BLOCK = 8


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))


def prepare_text(tmp_path, text, **fields):
    path = tmp_path / "text.txt"
    path.write_text(text)
    return prepare(DataConfig(path=str(path), **fields), BLOCK)


@pytest.mark.parametrize("n_chars", range(BLOCK + 3))
@pytest.mark.parametrize("kind", ["char", "gpt2", "bpe", "unigram", "sp_bpe"])
def test_too_short_says_how_long_it_has_to_be(tmp_path, n_chars, kind, monkeypatch):
    if kind == "gpt2":
        monkeypatch.delenv("GROUNDLING_CACHE")  # its vocabulary is there
    with pytest.raises(DataError, match=r"too short: .* block_size 8 needs 9 in each, so about 90 in all"):
        prepare_text(tmp_path, "ab\nc de fghijk"[:n_chars], tokenizer=TokenizerConfig(kind=kind))


@pytest.mark.parametrize("letter", [" ", "\n", "a"])
def test_long_enough_is_enough_whatever_it_says(tmp_path, letter):
    corpus = prepare_text(tmp_path, letter * 2 * (BLOCK + 1), val_fraction=0.5)
    assert len(corpus.train) == len(corpus.val) == BLOCK + 1
    with pytest.raises(DataError, match="needs 9 in each, so about 18 in all"):
        prepare_text(tmp_path, letter * (2 * BLOCK + 1), val_fraction=0.5)


def test_the_needed_length_suffices(tmp_path):
    prepare_text(tmp_path, "x" * 90)
    with pytest.raises(DataError, match="about 90 in all"):
        prepare_text(tmp_path, "x" * 80)


def test_a_text_prepared_once_is_still_too_short_for_a_larger_window(tmp_path):
    prepare_text(tmp_path, "x" * 90)
    with pytest.raises(DataError, match="9 for validation, but block_size 9 needs 10"):
        prepare(DataConfig(path=str(tmp_path / "text.txt")), BLOCK + 1)


def test_the_user_sees_one_line(tmp_path, capsys):
    (tmp_path / "empty.txt").touch()
    code = main(["tokenizer", "train", "--data.path", str(tmp_path / "empty.txt"), "--out-dir", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 1
    assert error.startswith("groundling: error: the text is too short")
    assert error.count("\n") == 1
