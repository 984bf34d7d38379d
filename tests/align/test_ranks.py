"""Two processes that share each batch learn what one does: loss, gradients and weights are of the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stagekit import FAST, write_base, write_conversations, write_rankings

from groundling.align.example_loader import ShuffledIndices
from groundling.bundle import load_bundle

EXACT = ("--runtime.dtype", "float64", "--optim.eps", "1e-3")
"""Adam's steps for gradients near zero are signs of rounding errors, which would set the two apart; not with this."""


def run(folder: Path, n_ranks: int, verb: str, *argv: str) -> None:
    command = [sys.executable, *(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
                                 if n_ranks == 2 else [])]  # fmt: skip
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command += ["-m", "groundling", verb, *argv, *FAST, *EXACT]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [
        record[name] for record in records for name in ("loss", "grad_norm", "val_loss", "margin") if name in record
    ]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    """Examples differ in length, so a mean of the ranks' means would be another loss; so would shuffling apart."""
    write_base(tmp_path / "base")
    chats = write_conversations(tmp_path / "chats.jsonl", n=40, reply=(1, 9))
    said = [len(json.loads(line)["messages"][1]["content"]) for line in chats.read_text("utf-8").splitlines()]
    order = ShuffledIndices(36, 1337, purpose=2)  # the last tenth is measured by
    first, second = (sum(said[order(place)] + 1 for place in part) for part in (range(16), range(16, 32)))
    assert abs(first - second) > 3, "of the first step, one rank has more to say than the other"
    write_rankings(tmp_path / "rankings.sqlite", n=40)
    stages = {
        "sft": ["base", "--data.path", "chats.jsonl", "--epochs", "3", "--n-replies", "4"],
        "reward": ["sft-1", "--rankings", "rankings.sqlite", "--epochs", "3", "--batch-size", "8"],
        "dpo": ["sft-1", "--rankings", "rankings.sqlite", "--epochs", "3", "--batch-size", "8"],
    }
    for verb, argv in stages.items():
        for n_ranks in (1, 2):
            run(tmp_path, n_ranks, verb, *argv, "--out-dir", f"{verb}-{n_ranks}")
        one, two = losses(tmp_path / f"{verb}-1"), losses(tmp_path / f"{verb}-2")
        assert one
        assert two == pytest.approx(one, rel=1e-6, abs=1e-9), verb
        weights = [load_bundle(tmp_path / f"{verb}-{n}").model.state_dict() for n in (1, 2)]
        for name, tensor in weights[0].items():
            torch.testing.assert_close(weights[1][name], tensor, rtol=1e-6, atol=1e-7, msg=f"{verb}: {name}")
