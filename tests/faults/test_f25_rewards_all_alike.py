"""Row 25: PPO and GRPO with nothing to gain stay where they are, and what matters is written down."""

import json
from pathlib import Path

import pytest
import torch

from groundling.align.rl import grpo, ppo
from groundling.bundle import load_bundle, save_bundle
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text.char import CharTokenizer
from groundling.text.chat.role_tokens import RoleTokens

FLAGS = ("--data.path", "asked.txt", "--replies", "32", "--max-new-tokens", "8", "--no-end", "1")
CPU = ("--runtime.device", "cpu", "--runtime.dtype", "float32")


def always_one(prompt: str, reply: str) -> float:
    return 1.0


def how_often_a(prompt: str, reply: str) -> float:
    return reply.count("a") - reply.count("b")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=24, vocab_size=6))
    save_bundle(tmp_path / "sft", model, CharTokenizer("ab"), chat=RoleTokens.after(2))
    (tmp_path / "asked.txt").write_text("a\nab\nb\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def learn(method, *flags: str) -> list[dict[str, float]]:
    assert method.main(["sft", "--out-dir", "run", *FLAGS, *CPU, *flags]) == 0
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text("utf-8").splitlines()]


def test_rewards_that_are_all_alike_leave_grpo_where_it_is(folder):
    rows = learn(grpo, "--reward", "test_f25_rewards_all_alike:always_one", "--steps", "4", "--optim.lr", "1e-2")
    assert all(row["reward"] == 1 and row["kl"] == 0 for row in rows)
    before, after = (load_bundle(folder / name).model.state_dict() for name in ("sft", "run"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_rewards_that_are_all_alike_never_give_ppo_nan(folder):
    """Its value model learns to expect them; until then it is the noise of its guesses that moves the policy."""
    rows = learn(ppo, "--reward", "test_f25_rewards_all_alike:always_one", "--steps", "6", "--value-optim.lr", "1e-2")
    assert all(row["reward"] == 1 for row in rows)
    assert all(abs(row["kl"]) < 5 for row in rows)
    assert all(tensor.isfinite().all() for tensor in load_bundle(folder / "run").model.state_dict().values())


@pytest.mark.parametrize("method", [grpo, ppo], ids=["grpo", "ppo"])
def test_metrics_are_recorded_and_start_at_the_reference(folder, method):
    rows = learn(method, "--reward", "test_f25_rewards_all_alike:how_often_a", "--steps", "8", "--optim.lr", "1e-2",
                 "--kl-coef", "0")  # fmt: skip
    assert (rows[0]["kl"], rows[0]["first_ratio_off"]) == (0, 0)
    assert max(row["first_ratio_off"] for row in rows) < 1e-6
    assert {"kl", "entropy", "clip_fraction", "step_kl", "length", "replies_ended"} <= rows[-1].keys()
    assert rows[-1]["kl"] > 0.1
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.5
