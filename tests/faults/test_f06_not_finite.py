"""Row 6: a loss or a gradient that is not finite stops every rank before a weight is changed, and nothing is lost."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from groundling.align.pipeline.step import PipelineStep
from groundling.align.rl import grpo
from groundling.bundle import load_bundle, save_bundle
from groundling.data.batches import Batch
from groundling.errors import TrainingError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.text.char import CharTokenizer
from groundling.text.chat.role_tokens import RoleTokens
from groundling.train.optim.optimizers import OptimConfig, Optimizers
from groundling.train.step import train_step


class FailsAt(nn.Module):
    """A loss that is NaN at one step."""

    def __init__(self, bad_step: int | None) -> None:
        super().__init__()
        self.weight, self.bad_step, self.step = nn.Parameter(torch.ones(3)), bad_step, 0

    def forward(self, batch: Batch) -> Tensor:
        self.step += 1
        loss = (self.weight * batch.idx_BT.float().mean()).square().sum()
        return loss * math.nan if self.step == self.bad_step else loss


def one_rank(rank: int, folder: Path) -> None:
    td.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = FailsAt(3 if rank == 1 else None)
    objective = nn.parallel.DistributedDataParallel(model)
    optimizers, seen = Optimizers(model, OptimConfig(lr=0.1)), []
    batch = Batch(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.long), 3)
    for _ in range(3):
        try:
            train_step(objective, [batch], optimizers)
            seen.append(model.weight.detach().clone())
        except TrainingError:
            seen.append(torch.full((3,), -1.0))
    save_file({"now": model.weight.detach(), **{str(n): w for n, w in enumerate(seen)}}, folder / f"{rank}.safetensors")
    td.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_one_rank_fails_and_all_stop_with_the_weights_of_the_step_before(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(one_rank, (tmp_path,), nprocs=2)
    ranks = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for seen in ranks:
        assert seen["2"].tolist() == [-1, -1, -1], "both were told"
        assert torch.equal(seen["now"], seen["1"])
    assert torch.equal(ranks[0]["now"], ranks[1]["now"])


@pytest.fixture
def model(tmp_path) -> Path:
    torch.manual_seed(0)
    tokenizer, chat = CharTokenizer("ab"), RoleTokens.after(2)
    sizes = GPTConfig(n_layer=1, n_head=2, n_embd=16, block_size=24, vocab_size=6)
    save_bundle(tmp_path / "sft", GPT(sizes), tokenizer, chat=chat)
    (tmp_path / "asked.txt").write_text("a\nab\nb\n", encoding="utf-8")
    return tmp_path


REWARD = """
calls = 0
def score(prompt, reply):
    global calls
    calls += 1
    return (-1) ** calls * 1e39 if calls > 20 else float(reply.count("a"))
"""


def test_a_failed_stage_keeps_its_model_and_names_the_step(model, monkeypatch):
    """Rewards that float32 cannot hold, from the second round on: the first round's policy is there, and is finite."""
    (model / "wild_f06.py").write_text(REWARD, encoding="utf-8")
    monkeypatch.chdir(model)
    flags = ["--data.path", "asked.txt", "--steps", "4", "--replies", "16", "--max-new-tokens", "8", "--group", "4"]
    flags += ["--runtime.device", "cpu", "--runtime.dtype", "float32", "--minibatches", "1", "--no-end", "0"]
    with pytest.raises(TrainingError, match=re.escape("the model so far is in run")) as error:
        grpo.main(["sft", "--reward", "wild_f06:score", "--out-dir", "run", *flags])
    assert "\n" not in str(error.value)
    about = json.loads((model / "run/summary.json").read_text("utf-8"))
    assert about["failed"]
    assert about["reason"].startswith("grpo stopped at step")
    before, after = load_bundle(model / "sft").model, load_bundle(model / "run").model
    for name, tensor in after.state_dict().items():
        assert tensor.isfinite().all(), name
    assert not torch.equal(before.wte.weight, after.wte.weight)
    config = grpo.GrpoConfig(path="sft", out_dir=Path("run"))
    step = PipelineStep("grpo", grpo.grpo, config, config.out_dir, inputs=(Path("sft"),))
    assert not step.is_done(), "the pipeline runs this stage again"


@pytest.mark.slow
def test_pretraining_ends_with_one_line(model):
    """A learning rate that no training survives."""
    (model / "text.txt").write_text("abba baab " * 400, encoding="utf-8")
    command = [sys.executable, "-m", "groundling", "pretrain", "--data.path", "text.txt", "--out-dir", "run"]
    command += ["--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "16", "--model.block-size", "16"]
    command += ["--optim.lr", "1e38", "--optim.kind", "adamw", "--steps", "50", "--batch-size", "4"]
    command += ["--schedule.warmup-steps", "0", "--grad-clip", "None"]
    done = subprocess.run(command, cwd=model, capture_output=True, text=True, env=os.environ, check=False, timeout=120)
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("groundling: error: ")
    assert "no weight was changed" in last
