"""The verbs take a model of another family, as it comes back from a folder that `transformers` understands."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from stagekit import FAST, write_base, write_conversations, write_rankings

from groundling.bundle import load_bundle
from groundling.cli import main

LLAMA: dict[str, Any] = {
    "norm": "rmsnorm", "mlp": "swiglu", "position": "rotary", "bias": False, "n_kv_head": 1,
}  # fmt: skip
FAMILIES = {"GPT-2": {}, "Llama": LLAMA, "Qwen3": {**LLAMA, "qk_norm": True, "tie_weights": False}}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_an_imported_model_goes_through_all_stages(family: str, tmp_path: Path) -> None:
    write_base(tmp_path / "base", **FAMILIES[family])
    assert main(["export", "hf", str(tmp_path / "base"), str(tmp_path / "hf")]) == 0
    assert main(["import", "hf", str(tmp_path / "hf"), str(tmp_path / "theirs")]) == 0
    chats = ["--data.path", str(write_conversations(tmp_path / "chats.jsonl", n=60))]
    rankings = ["--rankings", str(write_rankings(tmp_path / "rankings.sqlite", n=60))]

    def run(verb: str, source: str, *argv: str) -> dict[str, Any]:
        assert main([verb, str(tmp_path / source), "--out-dir", str(tmp_path / verb), *argv, *FAST]) == 0
        summary: dict[str, Any] = json.loads((tmp_path / verb / "summary.json").read_text("utf-8"))
        assert summary["reason"] == "finished"
        return summary

    fine_tuned = run("sft", "theirs", *chats, "--epochs", "5")
    first = json.loads((tmp_path / "sft/metrics.jsonl").read_text("utf-8").splitlines()[0])
    assert fine_tuned["val_loss"] < first["val_loss"]
    assert run("reward", "sft", *rankings, "--epochs", "4")["accuracy"] > 0.6
    assert run("dpo", "sft", *rankings, "--batch-size", "8", "--epochs", "2")["margin"] > 0
    rounds = [*chats, "--reward", str(tmp_path / "reward"), "--steps", "2", "--replies", "16", "--max-new-tokens", "12"]
    for verb in ("grpo", "ppo"):
        assert math.isfinite(run(verb, "sft", *rounds)["kl"])
        shape = load_bundle(tmp_path / "theirs").config
        trained = load_bundle(tmp_path / verb).config
        assert (trained.norm, trained.position, trained.n_kv_head) == (shape.norm, shape.position, shape.n_kv_head)
