"""`--context`: a model that is read with a shorter window is the same model, and takes less memory."""

import dataclasses
import json

import pytest
import torch

from groundling import cli
from groundling.align.lora import LoraConfig, adapt, adapter_of
from groundling.bundle import limits, load_bundle, save_adapter, save_bundle
from groundling.bundle.adapter import base_at
from groundling.bundle.context import contexts
from groundling.errors import ConfigError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.system.memory import Memory
from groundling.text.char import CharTokenizer
from groundling.text.chat.role_tokens import RoleTokens

LETTERS = CharTokenizer("\n abcdefghij")
CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=32, vocab_size=16)
ROTARY = dataclasses.replace(CONFIG, position="rotary", norm="rmsnorm", mlp="swiglu", bias=False)


def saved(folder, config=CONFIG, chat=True):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = GPT(config)
    save_bundle(folder, model, LETTERS, chat=RoleTokens.after(LETTERS.vocab_size) if chat else None)
    return folder


@pytest.mark.parametrize("config", [CONFIG, ROTARY], ids=["learned", "rotary"])
def test_a_narrowed_model_gives_the_same_scores_and_refuses_more(tmp_path, config):
    folder = saved(tmp_path / "m", config)
    whole, narrow = load_bundle(folder), load_bundle(folder, context=20)
    ids = torch.randint(16, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(narrow.model(ids), whole.model(ids), rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match="block_size of 20"):
            narrow.model(torch.zeros(1, 21, dtype=torch.long))
    assert narrow.config.block_size == narrow.model.block_size == 20
    save_bundle(tmp_path / "again", narrow.model, LETTERS)
    assert load_bundle(tmp_path / "again").config == dataclasses.replace(config, block_size=20)


@pytest.mark.parametrize("context", [0, -5, 33])
def test_a_context_that_the_model_does_not_have_is_refused_in_one_line(tmp_path, capsys, context):
    folder = saved(tmp_path / "m")
    with pytest.raises(ConfigError, match=rf"context is {context}; that of .*m is 32 tokens: give 1 to 32"):
        load_bundle(folder, context=context)
    assert cli.main(["sample", str(folder), "--prompt", "a", "--context", str(context)]) == 2
    assert f"context is {context}; " in capsys.readouterr().err


def test_an_adapter_of_a_narrowed_model_is_found_again(tmp_path):
    """Its base has more learned positions than it was trained with."""
    base = saved(tmp_path / "base")
    bundle = load_bundle(base, context=20)
    lora = LoraConfig(rank=2, keep=True)
    adapt(bundle.model, lora, LETTERS.vocab_size, 1)
    save_adapter(tmp_path / "adapter", adapter_of(bundle.model, lora), base_at(base), bundle)
    found = load_bundle(tmp_path / "adapter")
    assert found.config.block_size == 20
    ids = torch.arange(16)[None]
    with torch.inference_mode():
        torch.testing.assert_close(found.model(ids), bundle.model.eval()(ids), rtol=0, atol=1e-5)


def test_of_several_models_a_shorter_one_keeps_what_it_has(tmp_path):
    short, long = saved(tmp_path / "short"), saved(tmp_path / "long", dataclasses.replace(CONFIG, block_size=100))
    assert contexts([short, long], None) == [None, None]
    assert contexts([short, long], 50) == [32, 50]
    with pytest.raises(ConfigError, match=r"context is 101; that of .*long is 100 tokens"):
        contexts([short, long], 101)


@pytest.mark.parametrize("config", [CONFIG, ROTARY], ids=["learned", "rotary"])
def test_exports_and_imports_have_the_context_that_was_asked_for(tmp_path, capsys, config):
    pytest.importorskip("tokenizers")
    pairs = saved(tmp_path / "m", config, chat=False)
    for kind in ("hf", "gguf", "bundle"):
        assert cli.main(["export", kind, str(pairs), str(tmp_path / kind), "--context", "24"]) == 0
    facts = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert facts.get("n_positions", facts.get("max_position_embeddings")) == 24
    assert load_bundle(tmp_path / "bundle").config.block_size == 24
    command = ["import", "hf", str(tmp_path / "hf"), str(tmp_path / "back"), "--tokenizer", str(pairs)]
    assert cli.main([*command, "--context", "16"]) == 0
    back, first = load_bundle(tmp_path / "back"), load_bundle(pairs)
    assert back.config.block_size == 16
    ids = torch.arange(16)[None]
    with torch.inference_mode():
        torch.testing.assert_close(back.model(ids), first.model(ids), rtol=0, atol=1e-5)
    assert cli.main([*command, "--context", "25", "--overwrite"]) == 2
    assert "context is 25" in capsys.readouterr().err


def test_weights_that_do_not_fit_into_memory_are_refused_in_one_line(tmp_path, monkeypatch):
    folder = saved(tmp_path / "m")
    monkeypatch.setattr(limits, "memory_of", lambda: Memory(10**9, 100))
    with pytest.raises(ConfigError, match=r"the weights of .*m take 0\.0 GB, and 0\.0 GB of memory are free"):
        load_bundle(folder)


def test_a_rotary_model_has_one_table_of_angles():
    """Of 40,960 places and 28 blocks there would be 0.6 GB of them."""
    model = GPT(ROTARY)
    assert len({id(table) for name, table in model.named_buffers() if name.endswith("cos_TP")}) == 1
    assert len({block.attn.rotate.cos_TP.data_ptr() for block in model.h}) == 1
