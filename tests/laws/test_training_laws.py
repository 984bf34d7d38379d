"""Laws of training: how a batch is cut, over how many ranks it is spread and how often we look changes no weight.

Shapes: B sequences, T positions.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as td
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from groundling.bundle import load_bundle
from groundling.bundle.weights import plain_state_dict
from groundling.config import to_toml
from groundling.data.batches import Batch
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.loss import IGNORE, loss_sum
from groundling.system import distributed
from groundling.system.metrics import read_records
from groundling.train.distill.objective import DistillationObjective
from groundling.train.optim.optimizers import OptimConfig, Optimizers
from groundling.train.pretrain import pretrain
from groundling.train.step import Objective, train_step

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=8, block_size=12, vocab_size=11, dropout=0.0)
N_UPDATES = 3


def uneven_batch(seed: int, taught: bool) -> Batch:
    """Eight rows with 12, 0, 5, 1, 12, 7, 3 and 10 targets: a mean of means over any cut would be wrong.

    A teacher, if there is one, says something about each position, also about those whose targets do not count.
    """
    generator = torch.Generator().manual_seed(seed)
    idx_BT, targets_BT = torch.randint(CONFIG.vocab_size, (2, 8, 12), generator=generator).unbind()
    for row, n in enumerate((12, 0, 5, 1, 12, 7, 3, 10)):
        targets_BT[row, n:] = IGNORE
    teacher_probs_BTV = torch.rand(8, 12, CONFIG.vocab_size, generator=generator, dtype=torch.float64)
    return as_batch(idx_BT, targets_BT, teacher_probs_BTV / teacher_probs_BTV.sum(-1, keepdim=True) if taught else None)


def as_batch(idx_BT: torch.Tensor, targets_BT: torch.Tensor, teacher_probs_BTV: torch.Tensor | None = None) -> Batch:
    return Batch(idx_BT, targets_BT, int((targets_BT != IGNORE).sum()), teacher_probs_BTV)


def rows_of(batch: Batch, rows: slice) -> Batch:
    probs_BTV = batch.teacher_probs_BTV
    return as_batch(batch.idx_BT[rows], batch.targets_BT[rows], None if probs_BTV is None else probs_BTV[rows])


def cut_up(batch: Batch, sizes: tuple[int, ...]) -> list[Batch]:
    ends = itertools.accumulate(sizes)
    return [rows_of(batch, slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def updates(kind: str, taught: bool, pieces_of) -> dict[str, torch.Tensor]:
    """Weights, losses and lengths of the gradient after three updates in float64; `pieces_of(batch)` are ours."""
    torch.manual_seed(5)
    model = GPT(CONFIG).double()
    inner = DistillationObjective(model, 0.7)
    objective = distributed.wrap(inner)
    optimizers = Optimizers(model, OptimConfig(kind=kind), torch.float64)
    stats = []
    for seed in range(N_UPDATES):
        factor = 1 - seed / 4
        inner.weight = 0.7 * factor
        pieces = pieces_of(uneven_batch(seed, taught))
        stats.append(train_step(objective, pieces, optimizers, lr_factor=factor, max_norm=0.5))
    assert [s.n_targets for s in stats] == [50] * N_UPDATES
    numbers = torch.tensor([[s.loss, s.grad_norm] for s in stats], dtype=torch.float64)
    return {**plain_state_dict(model), "numbers": numbers}


def require_same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        # 1e-12: the gradient of a key's bias is 0 but for rounding, and AdamW divides it by its eps of 1e-8.
        torch.testing.assert_close(ours[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


KINDS = [("adamw", False), ("adamw", True), ("muon", False), ("muon", True)]
"""Optimizer, and whether a teacher gives distributions."""


@pytest.mark.parametrize(("kind", "taught"), KINDS)
@pytest.mark.parametrize("sizes", [(1,) * 8, (2,) * 4, (5, 1, 2), (1, 7)], ids=str)
def test_any_cut_into_micro_batches_is_the_whole_batch(kind, taught, sizes):
    cut, whole = updates(kind, taught, lambda batch: cut_up(batch, sizes)), updates(kind, taught, lambda batch: [batch])
    require_same(cut, whole)


SHARES = {0: (2, 1), 1: (5,)}
"""What the two ranks take of the eight rows, and how they cut it: unequal rows, targets and numbers of pieces."""


def one_of_two_ranks(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    first = 0 if rank == 0 else sum(SHARES[0])
    rows = slice(first, first + sum(SHARES[rank]))
    for i, (kind, taught) in enumerate(KINDS):
        ours = updates(kind, taught, lambda batch: cut_up(rows_of(batch, rows), SHARES[rank]))
        save_file(ours, folder / f"{i}-{rank}.safetensors")
    td.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_ranks_with_unequal_numbers_of_targets_are_one(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(one_of_two_ranks, (tmp_path,), nprocs=2)
    for i, (kind, taught) in enumerate(KINDS):
        alone = updates(kind, taught, lambda batch: [batch])
        for rank in (0, 1):
            require_same(load_file(tmp_path / f"{i}-{rank}.safetensors"), alone)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_pretrain_under_torchrun_with_two_ranks_is_pretrain_alone(tiny_config, tmp_path):
    config = tiny_config("one", steps=8, batch_size=8, model={"dropout": 0.0}, runtime={"dtype": "float64"})
    (tmp_path / "preset.toml").write_text(to_toml(config), encoding="utf-8")
    pretrain(config)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # The rank's four sequences are cut again, so that gradients are held back until the last piece.
    command += ["-m", "groundling", "pretrain", "preset.toml", "--out-dir", "two", "--micro-batch-size", "2"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in ("loss", "val_loss", "grad_norm", "n_tokens"):
        one, two = ({r["step"]: r[name] for r in records(tmp_path / run) if name in r} for run in ("one", "two"))
        assert one
        assert two == pytest.approx(one, rel=1e-10, abs=0), name
    steps = [json.loads((tmp_path / run / "summary.json").read_text("utf-8"))["steps"] for run in ("one", "two")]
    assert steps == [8, 8]
    require_same(last_weights(tmp_path / "two"), last_weights(tmp_path / "one"))


def records(run: Path) -> list[dict]:
    return read_records(run / "metrics.jsonl")


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights at the end: of the last checkpoint, or of the bundle where there is none."""
    which = "last" if (run / "checkpoints").is_dir() else "best"
    return plain_state_dict(load_bundle(run, dtype=torch.float64, checkpoint=which).model)


OFTEN = {
    "never": {"eval_every": None, "save_every": None, "log_every": 9},
    "every step": {"eval_every": 1, "save_every": 1, "sample_every": 1, "keep_checkpoints": 1},
    "without the training loss": {"eval_every": 1, "save_every": 3, "estimate_train_loss": False, "log_every": 1},
    "now and then": {"eval_every": 4, "save_every": 3, "sample_every": 2, "patience": 50, "log_every": 5},
}


@pytest.mark.slow
def test_the_intervals_of_evaluation_samples_and_checkpoints_change_no_bit(tiny_config, tmp_path):
    """Dropout is on: one number drawn from its generator by an evaluation or a sample would be seen."""
    for name, plan in OFTEN.items():
        pretrain(tiny_config(name, steps=9, **plan))
    plain = last_weights(tmp_path / "never")
    losses = {r["step"]: r["loss"] for r in records(tmp_path / "every step") if "loss" in r}
    assert list(losses) == list(range(1, 10))
    for name in OFTEN:
        weights = last_weights(tmp_path / name)
        assert all(torch.equal(weights[key], plain[key]) for key in plain), name
        seen = {r["step"]: r["loss"] for r in records(tmp_path / name) if "loss" in r}
        assert seen == {step: losses[step] for step in seen}, name


@pytest.mark.slow
def test_swapping_in_averaged_weights_leaves_no_trace(tiny_config, tmp_path):
    for name, every in (("often", 1), ("once", 9)):
        pretrain(tiny_config(name, steps=9, eval_every=every, save_every=every, average_decay=0.9))
    often, once = (
        load_file(tmp_path / name / "checkpoints" / "step-00000009" / "training.safetensors")
        for name in ("often", "once")
    )
    assert any(key.startswith("weights|") for key in once)
    assert often.keys() == once.keys()
    assert all(torch.equal(often[key], once[key]) for key in once)
    averaged = [last_weights(tmp_path / name) for name in ("often", "once")]
    assert all(torch.equal(averaged[0][key], averaged[1][key]) for key in averaged[1])
    assert any(not torch.equal(once[f"weights|{key}"].double(), averaged[1][key]) for key in averaged[1])


def test_a_batch_without_targets_has_loss_0_and_changes_nothing():
    torch.manual_seed(0)
    model = GPT(CONFIG)
    idx_BT = torch.randint(CONFIG.vocab_size, (3, 12))
    nothing = as_batch(idx_BT, torch.full_like(idx_BT, IGNORE))
    assert loss_sum(model(idx_BT), nothing.targets_BT).item() == 0.0
    before = {name: value.clone() for name, value in plain_state_dict(model).items()}
    optimizers = Optimizers(model, OptimConfig(weight_decay=0.0))
    stats = train_step(Objective(model), [nothing, nothing], optimizers, max_norm=1.0)
    assert (stats.loss, stats.grad_norm, stats.n_targets) == (0.0, 0.0, 0)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in plain_state_dict(model).items())
