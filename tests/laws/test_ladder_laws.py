"""The laws that tie each rung to another: take away what it adds, and what is left is the rung below."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from groundling.errors import ConfigError
from groundling.ladder import trick
from groundling.ladder.fused import FusedHeads, fuse_heads
from groundling.ladder.rungs import RUNGS
from groundling.ladder.s1_bigram import BigramModel
from groundling.ladder.s2_embeddings import EmbeddingModel
from groundling.ladder.s3_one_head import Head, OneHeadModel
from groundling.ladder.s4_multi_head import MultiHead, MultiHeadModel
from groundling.ladder.s6_residual import ResidualBlock, ResidualModel
from groundling.ladder.s7_layer_norm import LayerNormModel, layer_norm_by_hand
from groundling.ladder.s8_scaled import ScaledModel
from groundling.ladder.s9_production import fold_bias, production_gpt
from groundling.model.loss import loss_sum

V = 65


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1337)


def ids(block_size: int = 8) -> Tensor:
    return torch.randint(V, (4, block_size))


def copy_parameters(source: nn.Module, target: nn.Module) -> None:
    """Both list their parameters in the order in which they use them; `strict` and shapes catch a difference."""
    with torch.no_grad():
        for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
            assert mine.shape == theirs.shape
            mine.copy_(theirs)


def stir(model: nn.Module) -> None:
    """Move every parameter off its initial value, so that a norm or a bias at 1 or 0 hides nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def assert_same_logits(one: nn.Module, other: nn.Module, atol: float = 0.0, block_size: int = 8) -> None:
    idx_BT = ids(block_size)
    with torch.no_grad():
        torch.testing.assert_close(one(idx_BT), other(idx_BT), rtol=0, atol=atol)


def test_the_best_bigram_table_is_the_logarithm_of_the_counts() -> None:
    """There the gradient of the loss is zero: training s1 is counting pairs, the slow way."""
    text = torch.randint(5, (400,))
    counts = torch.zeros(5, 5).index_put_((text[:-1], text[1:]), torch.ones(399), accumulate=True)
    model = BigramModel(5)
    with torch.no_grad():
        model.next_character.weight.copy_(counts.log())
    loss = loss_sum(model(text[None, :-1]), text[None, 1:])
    (gradient,) = torch.autograd.grad(loss, [model.next_character.weight])
    torch.testing.assert_close(gradient, torch.zeros(5, 5), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "mean", [trick.mean_by_matrix, trick.mean_by_softmax, trick.mean_by_fused_attention], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("T", [1, 8, 33])
def test_the_trick_is_four_ways_to_one_mean(mean: Callable[[Tensor], Tensor], T: int) -> None:
    x_BTC = torch.randn(4, T, 16, dtype=torch.float64)
    torch.testing.assert_close(mean(x_BTC), trick.mean_by_loops(x_BTC), rtol=1e-12, atol=1e-12)


def test_a_head_with_zero_queries_takes_the_mean_of_the_past() -> None:
    """Queries of zero make every score zero: attention with no data in it is the trick."""
    head = Head(n_embd=16, head_size=16, block_size=8)
    nn.init.zeros_(head.query.weight)
    x_BTC = torch.randn(4, 8, 16)
    torch.testing.assert_close(head(x_BTC), trick.mean_by_loops(head.value(x_BTC)))


def test_s4_with_one_head_is_s3() -> None:
    s3, s4 = OneHeadModel(V), MultiHeadModel(V, n_head=1)
    copy_parameters(s3, s4)
    assert_same_logits(s4, s3)


@pytest.mark.parametrize("T", [1, 5, 8])
def test_fused_heads_are_the_heads_one_by_one(T: int) -> None:
    one_by_one = MultiHead(Head(12, 4, 8) for _ in range(3)).double()
    fused = FusedHeads(one_by_one.heads)
    x_BTC = torch.randn(4, T, 12, dtype=torch.float64, requires_grad=True)
    outputs = [module(x_BTC) for module in (fused, one_by_one)]
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    direction_BTC = torch.randn_like(x_BTC)
    learned = [x_BTC, *one_by_one.parameters()]
    gradients = [torch.autograd.grad(output, learned, direction_BTC) for output in outputs]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


SIZES = {"s4": {"n_embd": 12, "n_head": 3}, "s7": {"n_embd": 12, "n_head": 3, "n_layer": 2}}
MULTI_HEADED = {
    "s4": lambda: MultiHeadModel(V, **SIZES["s4"]),
    "s7": lambda: LayerNormModel(V, **SIZES["s7"]),
    "s8 without dropout": lambda: ScaledModel(V, block_size=8, dropout=0.0, **SIZES["s7"]),
    "s8 of one head": lambda: ScaledModel(V, block_size=8, dropout=0.3, **{**SIZES["s7"], "n_head": 1}),
}
"""With several heads dropout draws in another order when they are fused; with one, the draws are the same."""


@pytest.mark.parametrize("build", MULTI_HEADED.values(), ids=MULTI_HEADED.keys())
def test_a_model_with_fused_heads_trains_as_the_plain_one(build: Callable[[], nn.Module]) -> None:
    """The losses of ten steps of AdamW agree to 1e-9, in float64; in float32 the logits do to 1e-6."""
    plain = build()
    fused = fuse_heads(copy.deepcopy(plain))
    assert not any(isinstance(module, FusedHeads) for module in plain.modules())
    assert any(isinstance(module, FusedHeads) for module in fused.modules())
    assert [name for name, _ in fused.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert_same_logits(fused.eval(), plain.eval(), atol=1e-6)
    idx_BT, losses = torch.randint(V, (10, 4, 9)), []
    for model in (plain.double().train(), fused.double().train()):
        torch.manual_seed(2)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        losses.append([])
        for batch_BT in idx_BT:
            loss = loss_sum(model(batch_BT[:, :-1]), batch_BT[:, 1:]) / batch_BT[:, 1:].numel()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[0][-1] != losses[0][0]


def test_s6_with_zero_projections_is_s2() -> None:
    s2, s6 = EmbeddingModel(V), ResidualModel(V)
    s2.load_state_dict({name: value for name, value in s6.state_dict().items() if not name.startswith("body.")})
    projections = [parameter for name, parameter in s6.named_parameters() if ".projection." in name]
    assert len(projections) == 3 * 2 * 2
    for parameter in projections:
        nn.init.zeros_(parameter)
    assert_same_logits(s6, s2)


def test_s7_with_its_norms_replaced_by_the_identity_is_s6() -> None:
    s6, s7 = ResidualModel(V), LayerNormModel(V)
    norms = [parent for parent in s7.modules() if isinstance(getattr(parent, "norm", None), nn.LayerNorm)]
    assert len(norms) == 3 * 2 + 1
    for parent in norms:
        parent.norm = nn.Identity()
    copy_parameters(s6, s7)
    assert_same_logits(s7, s6)


def test_the_norm_by_hand_is_layer_norm() -> None:
    x_BTC = 3 * torch.randn(4, 8, 32) + 1
    torch.testing.assert_close(layer_norm_by_hand(x_BTC), nn.LayerNorm(32)(x_BTC))


def test_s8_with_dropout_0_is_s7_even_in_training() -> None:
    s7 = LayerNormModel(V, block_size=16, n_embd=24, n_head=3, n_layer=2)
    s8 = ScaledModel(V, block_size=16, n_embd=24, n_head=3, n_layer=2, dropout=0.0)
    stir(s7)
    copy_parameters(s7, s8)
    assert s8.training
    assert_same_logits(s8, s7, block_size=16)


@pytest.mark.parametrize(
    "s8",
    [
        pytest.param(lambda: ScaledModel(V, block_size=16, n_embd=72, n_head=3, n_layer=2), id="small"),
        pytest.param(lambda: ScaledModel(V), id="the lecture's size"),
    ],
)
def test_the_production_gpt_with_the_weights_of_s8_gives_its_logits(s8: Callable[[], ScaledModel]) -> None:
    model = s8().eval()
    for norm in model.modules():
        if isinstance(norm, nn.LayerNorm):
            stir(norm)
    gpt = production_gpt(model)
    assert gpt.block_size == model.block_size
    assert not gpt.training
    assert_same_logits(gpt, model, atol=1e-5, block_size=model.block_size)


def test_a_fresh_s9_starts_where_a_fresh_s8_starts() -> None:
    torch.manual_seed(3)
    s8 = RUNGS["s8"].build(V).eval()
    torch.manual_seed(3)
    s9 = RUNGS["s9"].build(V).eval()
    assert_same_logits(s9, s8, atol=1e-5, block_size=64)


def test_a_bias_that_cannot_be_folded_is_refused() -> None:
    """With fewer numbers than characters, most biases are out of reach of weight @ delta."""
    narrow = ScaledModel(V, block_size=8, n_embd=32, n_head=2, n_layer=1)
    with pytest.raises(ConfigError, match="vocab_size 65 and n_embd 32"):
        production_gpt(narrow)


def test_a_folded_bias_is_exact() -> None:
    weight_VC, bias_V = torch.randn(65, 384, dtype=torch.float64), torch.randn(65, dtype=torch.float64)
    torch.testing.assert_close(weight_VC @ fold_bias(weight_VC, bias_V), bias_V, rtol=0, atol=1e-12)


def test_a_block_with_zero_halves_is_the_identity() -> None:
    class Silence(nn.Module):
        def forward(self, x_BTC: Tensor) -> Tensor:
            return torch.zeros_like(x_BTC)

    x_BTC = torch.randn(2, 4, 8)
    assert torch.equal(ResidualBlock(communicate=Silence(), compute=Silence())(x_BTC), x_BTC)
