"""Each rung alone: its shapes, what it can see, how many parameters it has, and the table that lists them."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from groundling.errors import ConfigError
from groundling.ladder.fused import FusedHeads, fuse_heads
from groundling.ladder.rungs import RUNGS, find_rung
from groundling.ladder.s1_bigram import BigramModel
from groundling.ladder.s4_multi_head import MultiHeadModel
from groundling.ladder.s6_residual import ResidualBlock
from groundling.ladder.s8_scaled import DropoutHead, ScaledModel
from groundling.model.loss import loss_sum

V, C, T = 65, 32, 8  # the lecture's vocabulary, width and context
PARAMETERS = {
    "s1": V * V,
    "s2": (s2 := V * C + T * C + C * V + V),
    "s3": (s3 := s2 + 3 * C * C),
    "s4": s3,
    "s5": s3 + C * C + C,
    "s6": (s6 := s2 + 3 * (3 * C * C + (C * C + C) + (C * 4 * C + 4 * C) + (4 * C * C + C))),
    "s7": s6 + (3 * 2 + 1) * 2 * C,
    "s8": 10_788_929,  # as the lecture's own program prints it: 10.788929 M
    "s9": 10_788_929 - V + 6 * 3 * 384,  # lm_head without a bias, queries, keys and values with one
}
LONG_SIGHTED = [name for name in RUNGS if name not in ("s1", "s2")]


def build(name: str) -> nn.Module:
    torch.manual_seed(1337)
    return RUNGS[name].build(V).eval()


def random_ids(model: nn.Module, batch: int = 2) -> torch.Tensor:
    assert isinstance(model.block_size, int)
    return torch.randint(V, (batch, model.block_size), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", RUNGS)
def test_ids_in_logits_out_at_any_length_up_to_the_block(name: str) -> None:
    model = build(name)
    idx_BT = random_ids(model)
    for n in (1, 5, idx_BT.shape[1]):
        logits_BTV = model(idx_BT[:, :n])
        assert logits_BTV.shape == (2, n, V)
        assert logits_BTV.dtype == torch.float32
        assert logits_BTV.isfinite().all()


@pytest.mark.parametrize("name", RUNGS)
def test_the_lectures_parameter_counts(name: str) -> None:
    assert sum(parameter.numel() for parameter in build(name).parameters()) == PARAMETERS[name]


def test_the_lectures_count_for_its_middle_size() -> None:
    """The lecture's notebook prints 0.209729 M parameters for 4 layers, 4 heads, width 64, context 32."""
    model = ScaledModel(V, block_size=32, n_embd=64, n_head=4, n_layer=4)
    assert sum(parameter.numel() for parameter in model.parameters()) == 209_729


@pytest.mark.parametrize("name", RUNGS)
def test_no_position_sees_the_future(name: str) -> None:
    model = build(name)
    idx_BT = random_ids(model)
    n = idx_BT.shape[1] // 2
    changed_BT = idx_BT.clone()
    changed_BT[:, n:] = (changed_BT[:, n:] + 1) % V
    with torch.no_grad():
        before, after = model(idx_BT), model(changed_BT)
    torch.testing.assert_close(after[:, :n], before[:, :n], rtol=0, atol=0)
    assert (after[:, n:] != before[:, n:]).any(-1).all()


@pytest.mark.parametrize("name", RUNGS)
def test_attention_sees_the_whole_past_and_the_first_rungs_see_none_of_it(name: str) -> None:
    model = build(name)
    idx_BT = random_ids(model)
    changed_BT = idx_BT.clone()
    changed_BT[:, 0] = (changed_BT[:, 0] + 1) % V
    with torch.no_grad():
        moved = (model(idx_BT)[:, -1] != model(changed_BT)[:, -1]).any(-1)
    assert moved.all() if name in LONG_SIGHTED else not moved.any()


@pytest.mark.parametrize("name", [name for name in RUNGS if name != "s1"])
def test_a_context_that_is_too_long_is_refused_in_words(name: str) -> None:
    model = build(name)
    idx_BT = random_ids(model)
    with pytest.raises(ValueError, match="positions"):
        model(torch.cat([idx_BT, idx_BT[:, :1]], dim=1))


def test_heads_must_share_the_width_evenly() -> None:
    with pytest.raises(ConfigError, match=r"n_embd=32 .* n_head=5"):
        MultiHeadModel(V, n_embd=32, n_head=5)


def test_dropout_works_in_training_only() -> None:
    torch.manual_seed(0)
    model = ScaledModel(V, block_size=8, n_embd=24, n_head=2, n_layer=1, dropout=0.5)
    idx_BT = random_ids(model)
    assert not torch.equal(model(idx_BT), model(idx_BT))
    model.eval()
    assert torch.equal(model(idx_BT), model(idx_BT))


@pytest.mark.parametrize("fused", [False, True], ids=["as written", "fused"])
def test_dropout_falls_on_the_attention_weights_and_on_the_end_of_each_half(fused: bool) -> None:
    model = ScaledModel(V, block_size=8, n_embd=24, n_head=2, n_layer=1, dropout=0.5)
    if fused:
        fuse_heads(model)
    (block,) = (module for module in model.modules() if isinstance(module, ResidualBlock))
    heads = [module for module in model.modules() if isinstance(module, DropoutHead)]
    assert len(heads) == 2
    assert any(isinstance(module, FusedHeads) for module in model.modules()) == fused
    dropped = []
    for head in heads:
        head.dropout.register_forward_hook(lambda _, inputs, weights_BTS: dropped.append(weights_BTS))
    x_BTC = torch.randn(16, 8, 24)
    block.communicate(x_BTC)
    assert [tuple(weights.shape) for weights in dropped] == ([(16, 2, 8, 8)] if fused else [(16, 8, 8)] * 2)
    past_TS = torch.tril(torch.ones(8, 8, dtype=torch.bool))
    for weights_BTS in dropped:
        share = (weights_BTS[..., past_TS] == 0).float().mean().item()
        assert 0.4 < share < 0.6, "about half of the weights on the past must be dropped"
    for half in (block.communicate, block.compute):
        assert 0.45 < (half(x_BTC) == 0).float().mean().item() < 0.55


def test_an_untrained_bigram_is_worse_than_a_uniform_guess() -> None:
    """Normal logits cost about half a nat over ln 65 = 4.17; the lecture sees 4.87."""
    torch.manual_seed(1337)
    model = BigramModel(V)
    idx_BT, targets_BT = torch.randint(V, (2, 500, 8)).unbind()
    loss = loss_sum(model(idx_BT), targets_BT).item() / targets_BT.numel()
    assert math.log(V) + 0.3 < loss < math.log(V) + 0.9


def test_the_table_has_the_lectures_settings() -> None:
    assert list(RUNGS) == [f"s{i}" for i in range(1, 10)]
    assert all(name == rung.name for name, rung in RUNGS.items())
    settings = {rung.name: (rung.steps, rung.lr, rung.batch_size) for rung in RUNGS.values()}
    small, large = (5000, 1e-3, 32), (5000, 3e-4, 64)
    assert settings == {"s1": (3000, 1e-2, 32), **dict.fromkeys(("s2", "s3", "s4", "s5", "s6", "s7"), small)} | {
        "s8": large,
        "s9": large,
    }
    losses = [rung.lecture_val_loss for rung in RUNGS.values()]
    assert losses == [2.5, None, 2.4, 2.28, 2.24, 2.08, 2.06, 1.48, 1.48]


def test_an_unknown_rung() -> None:
    with pytest.raises(ConfigError, match=r"'s10'.*s1, s2, .*s9"):
        find_rung("s10")


def test_the_table_is_read_without_torch() -> None:
    check = "import sys, groundling.ladder.rungs, groundling.ladder.show; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
