"""Looking inside changes nothing, and what is seen is what the model computes."""

import math

import pytest
import torch

from groundling.model.gpt import GPT, GPTConfig
from groundling.sample.attention import look, score_heads, weights_of

SIZES = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 32, "vocab_size": 20}
FAMILIES = {
    "gpt2": {},
    "llama": {"norm": "rmsnorm", "mlp": "swiglu", "position": "rotary", "bias": False, "n_kv_head": 2},
    "qwen3": {
        "norm": "rmsnorm",
        "mlp": "swiglu",
        "position": "rotary",
        "bias": False,
        "qk_norm": True,
        "head_size": 12,
    },
}
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


@pytest.fixture(params=FAMILIES, ids=str)
def model(request) -> GPT:
    torch.manual_seed(1)
    gpt = GPT(GPTConfig(**SIZES, **FAMILIES[request.param], dropout=0.3))
    for parameter in gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return gpt


def test_attention_is_a_distribution_over_the_past(model: GPT) -> None:
    seen = look(model, IDS).attention_LHTS
    assert seen.shape == (3, 4, len(IDS), len(IDS))
    torch.testing.assert_close(seen.sum(-1), torch.ones(3, 4, len(IDS)))
    assert seen.triu(1).abs().max() == 0
    assert seen.min() >= 0


def test_the_weights_are_those_of_the_fused_kernel(model: GPT) -> None:
    """What each head takes, by these weights, is what the module gives."""
    attention = model.eval().h[1].attn
    x_BTC = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        weights_BHTS = weights_of(attention, x_BTC)
        n_kv, size = attention.n_kv_head, attention.head_size
        v_BHSD = attention.c_attn(x_BTC).view(2, 9, -1, size)[:, :, -n_kv:].transpose(1, 2)
        y_BHTD = weights_BHTS @ v_BHSD.repeat_interleave(attention.n_head // n_kv, 1)
        ours = attention.c_proj(y_BHTD.transpose(1, 2).reshape(2, 9, -1))
        torch.testing.assert_close(ours, attention(x_BTC), rtol=1e-4, atol=1e-5)


def test_the_last_lens_is_the_model_and_the_parts_make_the_stream(model: GPT) -> None:
    seen = look(model, IDS)
    with torch.no_grad():
        logits_TV = model.eval()(torch.tensor([IDS]))[0]
    assert torch.equal(seen.lens_LTV[-1], logits_TV)
    assert seen.lens_LTV.shape == (4, len(IDS), 20)
    assert seen.stream_norms_LT.shape == (4, len(IDS))
    assert seen.attention_norms_LT.shape == seen.mlp_norms_LT.shape == (3, len(IDS))
    most = seen.stream_norms_LT[:-1] + seen.attention_norms_LT + seen.mlp_norms_LT
    assert (seen.stream_norms_LT[1:] <= most + 1e-5).all()
    assert look(model, IDS, n_ids=18).lens_LTV.shape[-1] == 18


def test_the_first_lens_knows_only_the_token_itself(model: GPT) -> None:
    first = look(model, IDS).lens_LTV[0]
    if model.config.position == "rotary":
        assert torch.equal(first[1], first[3]), "two ones, before anything was read"
    assert not torch.equal(first[1], first[2])


def test_looking_leaves_no_trace(model: GPT) -> None:
    model.train()
    with torch.no_grad():
        before = model.eval()(torch.tensor([IDS]))
        model.train()
        look(model, IDS)
        assert model.training
        assert torch.equal(model.eval()(torch.tensor([IDS])), before)
    for module in model.modules():
        assert not module._forward_hooks


def test_an_error_leaves_no_trace_either(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.h[2].mlp, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        look(model, IDS)
    for module in model.modules():
        assert not module._forward_hooks


@pytest.mark.parametrize("n", [0, 33])
def test_what_it_cannot_read_is_refused(model: GPT, n: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 32"):
        look(model, [1] * n)


def test_a_head_that_looks_at_the_token_before_is_found() -> None:
    """Its queries ask for the place before, and nothing else."""
    size = 32
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=2 * size, block_size=size, vocab_size=12, bias=False))
    with torch.no_grad():
        model.wte.weight.zero_()
        model.positions.wpe.weight.zero_()
        model.positions.wpe.weight[:, :size] = torch.eye(size)
        attention = model.h[0].attn
        attention.c_attn.weight.zero_()
        shift = torch.zeros(size, size)
        shift[torch.arange(size - 1), torch.arange(1, size)] = 100.0  # the query of place t is the key of place t - 1
        attention.c_attn.weight[:size, :size] = shift
        attention.c_attn.weight[2 * size : 3 * size, :size] = torch.eye(size)
    scores = score_heads(model.eval(), 12)
    assert scores is not None
    assert scores.previous_LH[0, 0] > 0.95
    assert scores.previous_LH[0, 1] < 0.2, "the other head looks everywhere alike"
    assert scores.induction_LH.max() < 0.2


@pytest.mark.slow
def test_an_induction_head_forms_where_sequences_repeat() -> None:
    """Two layers learn to go on with what came before: some head has to look where it came."""
    torch.manual_seed(3)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=32, vocab_size=64, position="rotary", norm="rmsnorm")
    model = GPT(config)
    before = score_heads(model, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(4)
    for _ in range(600):
        length = int(torch.randint(6, 17, (1,), generator=draw))
        once = torch.randint(64, (64, length), generator=draw)
        idx_BT = once.repeat(1, 32 // length + 1)[:, :32]
        logits_BTV = model(idx_BT[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), idx_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = score_heads(model, 64)
    assert before is not None
    assert after is not None
    assert before.induction_LH.max() < 0.2
    assert after.induction_LH.max() > 0.6
    assert after.induction_LH.argmax() >= 2, "it is in the second layer: the first one has only the tokens themselves"


def test_a_context_of_three_is_too_short_to_score() -> None:
    assert score_heads(GPT(GPTConfig(**{**SIZES, "block_size": 3})), 20) is None
    assert math.isfinite(float(score_heads(GPT(GPTConfig(**{**SIZES, "block_size": 4})), 20).first_LH.sum()))
