"""Which parameter is updated by what, and that all of it is remembered by name."""

import pytest
import torch
from torch import nn

from groundling.errors import CheckpointError, ConfigError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.train.optim.optimizers import OptimConfig, Optimizers, split_parameters

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=8, block_size=6, vocab_size=7)


def make_gpt(**changes) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**CONFIG.__dict__, **changes}))


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def named(model: nn.Module, muon: bool) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(parameter)] for parameter in group} for group in split_parameters(model, muon=muon)]


@pytest.mark.parametrize("tie_weights", [True, False])
def test_adamw_decays_matrices_and_embeddings_only(tie_weights):
    model = make_gpt(tie_weights=tie_weights)
    matrices, decayed, others = named(model, muon=False)
    assert not matrices
    assert decayed == {name for name, p in model.named_parameters() if p.dim() == 2}
    assert {"wte.weight", "positions.wpe.weight", "h.0.attn.c_attn.weight"} <= decayed
    assert ("lm_head.weight" in decayed) == (not tie_weights)
    assert others == {name for name, _ in model.named_parameters() if name.endswith(".bias") or ".ln" in f".{name}"}


@pytest.mark.parametrize("tie_weights", [True, False])
def test_muon_takes_the_matrices_inside_the_blocks_and_leaves_the_tables(tie_weights):
    model = make_gpt(tie_weights=tie_weights)
    matrices, decayed, others = named(model, muon=True)
    assert matrices == {name for name, p in model.named_parameters() if name.startswith("h.") and p.dim() == 2}
    assert len(matrices) == 2 * 4
    assert decayed == {"wte.weight", "positions.wpe.weight"} | (set() if tie_weights else {"lm_head.weight"})
    assert others == named(model, muon=False)[2]


def test_a_frozen_parameter_has_no_optimizer():
    model = make_gpt()
    model.wte.weight.requires_grad_(False)
    assert "wte.weight" not in set.union(*named(model, muon=True))


def test_it_is_pytorchs_adamw_with_two_groups():
    ours, theirs = make_gpt().double(), make_gpt().double()
    config = OptimConfig(lr=3e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    optimizers = Optimizers(ours, config)
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() >= 2], "weight_decay": 0.3},
        {"params": [p for p in theirs.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    oracle = torch.optim.AdamW(groups, lr=3e-3, betas=(0.8, 0.95), eps=1e-6, fused=False, foreach=False)
    for step, factor in enumerate((0.5, 1.0, 0.25, 0.25)):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizers.step(factor)
        for group in oracle.param_groups:
            group["lr"] = 3e-3 * factor  # of the highest rate, not of the last one
        oracle.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15, msg=name)


def test_with_decay_all_it_is_pytorchs_adamw_over_all_parameters():
    ours, theirs = make_gpt().double(), make_gpt().double()
    optimizers = Optimizers(ours, OptimConfig(lr=3e-3, betas=(0.9, 0.999), weight_decay=0.01, decay_all=True))
    oracle = torch.optim.AdamW(theirs.parameters(), lr=3e-3)
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizers.step(1.0)
        oracle.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15, msg=name)


def test_the_factor_is_of_both_optimizers_highest_rates():
    """At a factor of 0 nothing moves, decay included."""
    model = make_gpt()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizers = Optimizers(model, OptimConfig(kind="muon", muon_weight_decay=0.1))
    for factor in (0.0, 1.0):
        give_gradients(model, 1)
        optimizers.step(factor)
        moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)]
        assert all(moved) if factor else not any(moved)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_its_state_is_restored_by_name_exactly(kind):
    unbroken = make_gpt()
    optimizers = Optimizers(unbroken, OptimConfig(kind=kind))
    for step in range(3):
        give_gradients(unbroken, step)
        optimizers.step(1.0)
    resumed = make_gpt()
    resumed.load_state_dict(unbroken.state_dict())
    fresh = Optimizers(resumed, OptimConfig(kind=kind))
    remembered = {key: value.clone() for key, value in optimizers.state_tensors().items()}
    fresh.load_state_tensors(remembered)
    moments = {"step", "exp_avg", "exp_avg_sq"}
    expected = {f"{name}|{what}" for name, _ in unbroken.named_parameters() for what in moments}
    if kind == "muon":
        matrices = named(unbroken, muon=True)[0]
        expected = {key for key in expected if key.partition("|")[0] not in matrices}
        expected |= {f"{name}|momentum" for name in matrices}
    assert fresh.state_tensors().keys() == remembered.keys() == expected
    for step in range(3, 5):
        for model, part in ((unbroken, optimizers), (resumed, fresh)):
            give_gradients(model, step)
            part.step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True))


def test_state_of_another_model_is_refused():
    optimizers = Optimizers(make_gpt(), OptimConfig())
    with pytest.raises(CheckpointError, match=r"'h\.9\.attn\.c_attn\.weight'"):
        optimizers.load_state_tensors({"h.9.attn.c_attn.weight|exp_avg": torch.zeros(1)})


def test_gradients_are_cleared():
    model = make_gpt()
    give_gradients(model, 0)
    Optimizers(model, OptimConfig(kind="muon")).zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": 0.0},
        {"muon_lr": -1.0},
        {"eps": 0.0},
        {"weight_decay": -0.1},
        {"muon_weight_decay": -0.1},
        {"betas": (0.9, 1.0)},
        {"muon_momentum": 1.0},
        {"muon_iterations": 0},
        {"muon_iterations": 6},
        {"lr": float("nan")},
    ],
    ids=str,
)
def test_invalid_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        OptimConfig(**bad)
