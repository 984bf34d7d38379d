"""Any file of ours that is damaged or hostile loads, or ends in one line; it costs little and writes nothing.

Seeds follow one another, and a failure names its own. `make fuzz SECONDS=600 SEED=1` goes on for as long as wanted.
"""

import dataclasses
import os
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from filefuzz import attack

from groundling.align.reward.model import RewardModel, load_reward_model, save_reward_model
from groundling.bundle import Bundle, load_bundle, save_adapter, save_bundle
from groundling.bundle.adapter import Adapter, base_at
from groundling.config import to_toml
from groundling.data.corpus import DataConfig
from groundling.data.token_file import open_token_file, write_token_file
from groundling.errors import GroundlingError
from groundling.export.families import GPT2
from groundling.export.hf import export_hf
from groundling.export.hf_folder import read_model
from groundling.export.hf_speech import read_tokenizer_and_chat
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.system.runtime import RuntimeConfig
from groundling.text.build import TokenizerConfig, train_tokenizer
from groundling.text.chat.messages import Message
from groundling.text.chat.role_tokens import RoleTokens
from groundling.text.chat.wrapped_turns import WrappedTurns
from groundling.tools.verify import main as verify
from groundling.train.arguments import parse_arguments
from groundling.train.pretrain import pretrain
from groundling.train.settings import PretrainConfig

FIRST_SEED = int(os.environ.get("GROUNDLING_FUZZ_SEED", "1"))
SECONDS = float(os.environ.get("GROUNDLING_FUZZ_S", "0"))
N_SEEDS = 120
"""Of each kind of file, where no time is given; a sixth of it where a run is resumed."""
MAX_CPU_S = 2.0
MAX_BYTES = 200e6

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer\n" * 20
CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=16)


class Kind(NamedTuple):
    """Folders of one kind: how one is made, which of its files are attacked, and what reads them."""

    make: Callable[[Path], None]
    files: tuple[str, ...]
    sealed_in: str | None
    read: Callable[[Path], object]


def gpt(**changes: object) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**CONFIG.__dict__, **changes})).eval()  # type: ignore[arg-type]


def save(folder: Path, kind: str, chat: bool = False, **changes: object) -> None:
    """A model of a tokenizer's kind, whose chat has our own template or one that wraps words in text."""
    tokenizer = train_tokenizer(
        TokenizerConfig(kind=kind, vocab_size=300),
        "".join(sorted(set(TEXT))),
        [TEXT],
        len(TEXT),  # type: ignore[arg-type]
    )
    n = tokenizer.vocab_size
    model = gpt(vocab_size=n + 4 * chat, **changes)
    template = None
    if chat and kind == "bpe":
        template = WrappedTurns(
            openings={role: (n + 1, f"{role}\n") for role in ("system", "user", "assistant")},
            closings=dict.fromkeys(("system", "user", "assistant"), (n, "\n")),
            default_system="Be short.",
        )
    elif chat:
        template = RoleTokens.after(n)
    save_bundle(folder, model, tokenizer, {}, template)


def make_adapter(folder: Path) -> None:
    save(folder / "base", "char")
    base = load_bundle(folder / "base")
    a, b = torch.ones(1, CONFIG.n_embd), torch.ones(3 * CONFIG.n_embd, 1)
    adapter = Adapter({"h.0.attn.c_attn.weight": (a, b)}, {}, 0.5)
    save_adapter(folder / "adapter", adapter, base_at(folder / "base"), base)


def make_reward(folder: Path) -> None:
    save(folder, "char", chat=True)
    bundle = load_bundle(folder)
    save_reward_model(folder, RewardModel(bundle.model), bundle, {"stage": "reward"})


def run_config(folder: Path, **changes: object) -> PretrainConfig:
    return PretrainConfig(
        out_dir=folder,
        steps=2,
        batch_size=2,
        eval_every=1,
        save_every=1,
        model=CONFIG,
        data=DataConfig(path=str(folder / "text.txt")),
        runtime=RuntimeConfig(device="cpu", dtype="float32", compile="off", tune_allocator=False),
        **changes,  # type: ignore[arg-type]
    )


def make_run(folder: Path) -> None:
    folder.mkdir()
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    pretrain(run_config(folder))
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")


def use(bundle: Bundle) -> None:
    """A prompt, its next token's logits, and text from it."""
    tokenizer = bundle.tokenizer
    ids = tokenizer.encode("to be")
    if bundle.chat is not None:
        messages = [Message("system", "be"), Message("user", "to be"), Message("assistant", "not")]
        bundle.chat.render(messages, tokenizer)
        ids = bundle.chat.prompt(messages[:2], tokenizer)
    with torch.inference_mode():
        best = bundle.model(torch.tensor([ids[-min(8, bundle.config.block_size) :]]))[
            0, -1, : tokenizer.vocab_size
        ].argmax()
    tokenizer.decode([id for id in [*ids[:2], int(best)] if id < tokenizer.vocab_size])


def make_foreign(folder: Path) -> None:
    """A folder of transformers: a model without a chat template, whose rendering takes a process of its own."""
    save(folder / "ours", "bpe", position="rotary", norm="rmsnorm", mlp="swiglu", bias=False, n_kv_head=1)
    export_hf(load_bundle(folder / "ours"), folder / "theirs")


def read_foreign(folder: Path) -> None:
    family, config, weights = read_model(folder / "theirs")
    tokenizer, _, _ = read_tokenizer_and_chat(folder / "theirs", family is GPT2)
    assert sum(tensor.numel() for tensor in weights.values()) > 0
    assert config.vocab_size > 0
    tokenizer.decode(tokenizer.encode("to be"))


def make_tokens(folder: Path) -> None:
    folder.mkdir()
    write_token_file(folder / "train.tok", [np.arange(300)], 300)


def make_preset(folder: Path) -> None:
    folder.mkdir()
    (folder / "preset.toml").write_text(to_toml(run_config(folder)), encoding="utf-8")


def resume(folder: Path) -> None:
    pretrain(dataclasses.replace(run_config(folder), steps=3, resume=True))


BUNDLE = ("config.json", "tokenizer.json", "manifest.json", "model.safetensors")
SPEECH = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
STEP = "checkpoints/step-00000002"
KINDS = {
    "bundle": Kind(lambda f: save(f, "char"), BUNDLE, "", lambda f: use(load_bundle(f))),
    "llama-like bundle": Kind(
        lambda f: save(f, "bpe", chat=True, position="rotary", norm="rmsnorm", mlp="swiglu", bias=False, n_kv_head=1),
        (*BUNDLE, "chat.json"),
        "",
        lambda f: use(load_bundle(f)),
    ),
    "chat": Kind(
        lambda f: save(f, "sp_bpe", chat=True), ("chat.json", "tokenizer.json"), "", lambda f: use(load_bundle(f))
    ),
    "unigram": Kind(lambda f: save(f, "unigram"), ("tokenizer.json",), "", lambda f: use(load_bundle(f))),
    "adapter": Kind(
        make_adapter,
        ("adapter/manifest.json", "adapter/config.json", "adapter/adapter.safetensors"),
        "adapter",
        lambda f: use(load_bundle(f / "adapter")),
    ),
    "reward model": Kind(make_reward, ("manifest.json", "head.safetensors"), "", load_reward_model),
    "run": Kind(make_run, ("run.toml", "metrics.jsonl", "summary.json", "env.json"), None, resume),
    "checkpoint": Kind(
        make_run, tuple(f"{STEP}/{name}" for name in ("state.json", "training.safetensors")), STEP, resume
    ),
    "folder of transformers": Kind(
        make_foreign,
        tuple(f"theirs/{name}" for name in ("config.json", "model.safetensors", *SPEECH)),
        None,
        read_foreign,
    ),
    "token file": Kind(make_tokens, ("train.tok",), None, lambda f: open_token_file(f / "train.tok", verify=True)),
    "preset": Kind(make_preset, ("preset.toml",), None, lambda f: parse_arguments([str(f / "preset.toml")])),
    "verified": Kind(make_run, (f"{STEP}/manifest.json", "bundle/manifest.json"), None, lambda f: verify([str(f)])),
}


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_file_loads_or_is_refused_in_one_line(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    kind = KINDS[name]
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    kind.make(tmp_path / "sound")
    kind.read(shutil.copytree(tmp_path / "sound", tmp_path / "first"))
    until = time.monotonic() + SECONDS / len(KINDS)
    seed, outcomes = FIRST_SEED, set()
    n_seeds = N_SEEDS // (6 if kind.read is resume else 1)
    while time.monotonic() < until if SECONDS else seed < FIRST_SEED + n_seeds:
        chance = random.Random(f"{name} {seed}")
        folder = tmp_path / f"attacked-{seed}"
        shutil.copytree(tmp_path / "sound", folder)
        sealed_in = None if kind.sealed_in is None else folder / kind.sealed_in
        how = f"seed {seed}, {attack(folder / chance.choice(kind.files), chance, sealed_in)}"
        before, began = tree(folder), time.process_time()
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        said = None
        try:
            kind.read(folder)
        except GroundlingError as error:
            said = str(error)
        except BaseException as error:
            error.add_note(how)
            raise
        outcomes.add("loaded" if said is None else "refused")
        if said is not None:
            assert said.isprintable(), f"{how}: {said!r}"
            assert 0 < len(said) < 1600, f"{how}: {said!r}"
        assert time.process_time() - began < MAX_CPU_S, how
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss) * (1 if sys.platform == "darwin" else 1024)
        assert grown < MAX_BYTES, how
        if kind.read is not resume:
            assert tree(folder) == before, how
        shutil.rmtree(folder)
        capsys.readouterr()
        seed += 1
    assert outcomes == {"loaded", "refused"} or kind.sealed_in is None
