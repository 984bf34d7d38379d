"""Advice about memory, the context of a model, and standard output, followed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from advicekit import follows

from groundling.bundle import limits, save_bundle
from groundling.data import corpus
from groundling.model.cache import KVCache
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample import slots
from groundling.system.memory import Memory
from groundling.text import trainers
from groundling.text.char import CharTokenizer
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.serialize import save_tokenizer

LETTERS = CharTokenizer("\n abcde")
POSITION = 2 * 8 * 4
"""Bytes of keys and values."""


def saved(folder, **sizes):
    torch.manual_seed(0)
    config = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 256, "position": "rotary", **sizes}
    model = GPT(GPTConfig(**config, vocab_size=LETTERS.vocab_size + 4))
    save_bundle(folder, model, LETTERS, chat=RoleTokens.after(LETTERS.vocab_size))
    return folder


@pytest.fixture
def room(monkeypatch):
    """Lets there be memory for the keys and values of so many positions."""
    monkeypatch.setattr(slots, "UNASKED_BYTES", 0)
    free = [1 << 20]
    monkeypatch.setattr(slots.CacheMemory, "_free", lambda self, _: free[0] * POSITION - self.held())
    return free


@follows(
    "keys and values of {} tokens need {} GB, and {} GB of memory are available for them; ask for fewer new tokens, "
    "shorten the prompt, or load the model with a smaller --context"
)
def test_a_text_that_needs_more_memory_than_there_is(advised, tmp_path, room):
    room[0] = 100
    words = ("sample", saved(tmp_path / "m"), "--max-new-tokens")
    advised.refused(*words, "150", "--prompt", "a")
    advised.works(*words, "60", "--prompt", "a")
    advised.works(*words, "150", "--prompt", "a", "--context", "64")
    advised.refused(*words, "10", "--prompt", "a" * 150)
    advised.works(*words, "10", "--prompt", "a" * 60)


@follows("other programs have just taken the memory that this text needs; try again")
def test_memory_that_went_meanwhile(advised, tmp_path, room, monkeypatch):
    real = slots.SlotPool.admit

    def admit_late(self, sample):
        left, room[0] = room[0], 0
        with monkeypatch.context() as patch:
            patch.setattr(slots.SlotPool, "require", lambda *_: room.__setitem__(0, left))  # it is there again by then
            monkeypatch.setattr(slots.SlotPool, "admit", real)
            return real(self, sample)

    monkeypatch.setattr(slots.SlotPool, "admit", admit_late)
    words = ("sample", saved(tmp_path / "m"), "--prompt", "a", "--max-new-tokens", "20")
    advised.refused(*words)
    advised.works(*words)


@follows(
    "there is not enough memory to continue: {}; decode fewer texts at a time, ask for fewer new tokens, or load the "
    "model with a smaller --context"
)
def test_memory_that_the_system_refuses(advised, tmp_path, monkeypatch):
    real = KVCache._move

    def move(self, slot, capacity):
        if capacity + sum(each.capacity for each in self._slots) > 100:
            raise MemoryError("cannot allocate")
        real(self, slot, capacity)

    monkeypatch.setattr(KVCache, "_move", move)
    words = ("sample", saved(tmp_path / "m"), "--prompt", "a", "--native", "off", "--max-new-tokens")
    advised.refused(*words, "60", "--num-samples", "3")
    advised.works(*words, "60", "--num-samples", "1")
    advised.works(*words, "15", "--num-samples", "3")
    advised.works(*words, "60", "--num-samples", "3", "--context", "16")


@follows("the weights of {} take {} GB, and {} GB of memory are free; close other programs, or use a smaller model")
def test_a_model_beyond_the_memory(advised, tmp_path, monkeypatch):
    large, small = saved(tmp_path / "large", n_layer=3), saved(tmp_path / "small")
    words = ("--prompt", "a", "--max-new-tokens", "2")
    with monkeypatch.context() as patch:
        patch.setattr(limits, "memory_of", lambda: Memory(10**9, 15_000))
        advised.refused("sample", large, *words)
        advised.works("sample", small, *words)
    advised.works("sample", large, *words)


@follows("context is {}; that of {} is {} tokens: give 1 to {}", "the model's context is {} tokens: give {} to {}")
def test_contexts(advised, tmp_path):
    model = saved(tmp_path / "m")
    said = advised.refused("sample", model, "--prompt", "a", "--max-new-tokens", "2", "--context", "257")
    for context in said.rpartition("give ")[2].split(" to "):
        advised.works("sample", model, "--prompt", "a", "--max-new-tokens", "2", "--context", context)
    row = {"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "cde"}]}
    (tmp_path / "c.jsonl").write_text((json.dumps(row) + "\n") * 4, encoding="utf-8")
    words = ["sft", model, "--data.path", tmp_path / "c.jsonl", "--out-dir", tmp_path / "sft", "--overwrite"]
    words += ["--epochs", "1", "--n-replies", "0", "--runtime.device", "cpu", "--max-length"]
    said = advised.refused(*words, "257")
    for length in said.rpartition("give ")[2].split(" to "):
        advised.works(*words, length)


@follows("if memory ran out, train on fewer characters: train_chars")
def test_a_trainer_that_the_system_ends(advised, story, tmp_path, monkeypatch):
    """As the kernel ends a process when memory is short: here one that is sent more than 20,000 bytes."""
    checked = trainers._START.replace("main()", (
        "import groundling.text.trainers as t, os; real = t._exactly; n = [0]\n"
        "def count(pipe, length):\n    n[0] += length; n[0] > 20000 and os.kill(os.getpid(), 9)\n"
        "    return real(pipe, length)\n"
        "t._exactly = count; main()"
    ))  # fmt: skip
    monkeypatch.setattr(trainers, "_START", checked)
    monkeypatch.setattr(corpus, "SAMPLE_CHARS", 1000)
    words = ("tokenizer", "train", "--kind", "bpe", "--vocab-size", "260", "--out-dir", tmp_path / "t")
    words += ("--data.path", story)
    said = advised.refused(*words)
    flag = "--" + said.rpartition(" ")[2].replace("_", "-")
    advised.works(*words, flag, "3000")


@follows("groundling: error: standard output cannot be written: {}; send it elsewhere")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_an_output_that_cannot_be_written(advised, tmp_path, monkeypatch):
    with Path("/dev/full").open("w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        advised.refused("ladder", "show", "s2")
    with (tmp_path / "elsewhere").open("w", encoding="utf-8") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        advised.works("ladder", "show", "s2")
    assert "class EmbeddingModel" in (tmp_path / "elsewhere").read_text(encoding="utf-8")


@follows(
    "groundling: standard output is {}, which lacks some of these characters; they were written as \\x, \\u or \\U and "
    "a number; set PYTHONIOENCODING=utf-8 to get the characters"
)
def test_an_output_that_lacks_characters(advised, tmp_path, monkeypatch, capfd):
    from groundling.cli import main

    (tmp_path / "t").mkdir()
    save_tokenizer(CharTokenizer("aé→"), tmp_path / "t")

    def shown(encoding):
        with (tmp_path / "out").open("w", encoding=encoding) as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", file)
            assert main(["tokenizer", "show", str(tmp_path / "t")]) == 0
        return advised.hears(capfd.readouterr().err)

    said = shown("ascii")
    setting = next(word for word in said.split() if "=" in word)
    command = ["env", setting, sys.executable, "-c", "import sys; print(sys.stdout.encoding)"]
    set_to = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    advised.done(shown(set_to) == "")
    assert any(ord(sign) > 127 for sign in (tmp_path / "out").read_text(encoding="utf-8"))
