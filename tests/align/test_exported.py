"""What each stage made leaves for other programs and comes back the same, weights, tokenizer and chat."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stagekit import FAST, write_base, write_conversations, write_rankings

from groundling.bundle import Bundle, load_bundle
from groundling.bundle.weights import plain_state_dict
from groundling.cli import main
from groundling.text.serialize import fingerprint

LLAMA: dict[str, Any] = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rotary", "bias": False, "n_kv_head": 1}
FAMILIES = {"GPT-2": {}, "Qwen3, padded": {**LLAMA, "qk_norm": True, "tie_weights": False, "vocab_size": 13}}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_stages_model_survives_export_and_import(family: str, tmp_path: Path) -> None:
    write_base(tmp_path / "base", **FAMILIES[family])
    chats = ["--data.path", str(write_conversations(tmp_path / "chats.jsonl", n=40))]
    rankings = ["--rankings", str(write_rankings(tmp_path / "rankings.sqlite", n=40))]

    def run(verb: str, source: str, out: str, *argv: str) -> None:
        assert main([verb, str(tmp_path / source), "--out-dir", str(tmp_path / out), *argv, *FAST]) == 0

    run("sft", "base", "sft", *chats, "--epochs", "1")
    run("sft", "base", "adapter", *chats, "--epochs", "1", "--lora.rank", "2", "--lora.keep")
    run("dpo", "sft", "dpo", *rankings, "--batch-size", "8", "--epochs", "1")
    run("reward", "sft", "reward", *rankings, "--epochs", "1")
    rounds = [*chats, "--reward", str(tmp_path / "reward"), "--steps", "1", "--replies", "8", "--max-new-tokens", "8"]
    run("ppo", "sft", "ppo", *rounds)

    assert (tmp_path / "adapter" / "bundle" / "adapter.safetensors").is_file()
    for stage in ("base", "sft", "adapter", "dpo", "ppo"):
        came_back(load_bundle(tmp_path / stage), tmp_path / stage, tmp_path)


def came_back(bundle: Bundle, source: Path, folder: Path) -> None:
    out, back = folder / f"{source.name}-hf", folder / f"{source.name}-back"
    assert main(["export", "hf", str(source), str(out)]) == 0
    assert main(["import", "hf", str(out), str(back)]) == 0
    again = load_bundle(back)
    assert (again.config, again.chat) == (bundle.config, bundle.chat), source.name
    assert fingerprint(again.tokenizer) == fingerprint(bundle.tokenizer)
    weights, expected = load_file(back / "model.safetensors"), plain_state_dict(bundle.model)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected), source.name
    assert (source.name == "base") == (bundle.chat is None)
    generation = json.loads((out / "generation_config.json").read_text("utf-8"))
    if bundle.chat is not None:
        assert generation["eos_token_id"] == bundle.chat.end
        assert bundle.chat.end not in generation["suppress_tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_a_reward_model_is_not_exported_as_a_language_model(form: str, tmp_path: Path, capfd: Any) -> None:
    write_base(tmp_path / "base")
    rankings = str(write_rankings(tmp_path / "rankings.sqlite", n=20))
    chats = ["--data.path", str(write_conversations(tmp_path / "chats.jsonl", n=20)), "--epochs", "1"]
    assert main(["sft", str(tmp_path / "base"), "--out-dir", str(tmp_path / "sft"), *chats, *FAST]) == 0
    words = ["--out-dir", str(tmp_path / "reward"), "--rankings", rankings, "--epochs", "1"]
    assert main(["reward", str(tmp_path / "sft"), *words, *FAST]) == 0
    assert main(["export", form, str(tmp_path / "reward"), str(tmp_path / "out")]) == 2
    assert "is a reward model: it scores replies and does not generate any" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
