"""Looking inside changes nothing, and what is seen is what the model computes."""

import math

import pytest
import torch
from elsewhere import PLACE, elsewhere, sent_there
from torch.utils._python_dispatch import TorchDispatchMode

from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.inspect import attention_weights, score_heads, trace_forward

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
    seen = trace_forward(model, IDS).attention_LHTS
    assert seen.shape == (3, 4, len(IDS), len(IDS))
    torch.testing.assert_close(seen.sum(-1), torch.ones(3, 4, len(IDS)))
    assert seen.triu(1).abs().max() == 0
    assert seen.min() >= 0


def test_the_weights_are_those_of_the_fused_kernel(model: GPT) -> None:
    """What each head takes, by these weights, is what the module gives."""
    attention = model.eval().h[1].attn
    x_BTC = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        weights_BHTS = attention_weights(attention, x_BTC)
        n_kv, size = attention.n_kv_head, attention.head_size
        v_BHSD = attention.c_attn(x_BTC).view(2, 9, -1, size)[:, :, -n_kv:].transpose(1, 2)
        y_BHTD = weights_BHTS @ v_BHSD.repeat_interleave(attention.n_head // n_kv, 1)
        ours = attention.c_proj(y_BHTD.transpose(1, 2).reshape(2, 9, -1))
        torch.testing.assert_close(ours, attention(x_BTC), rtol=1e-4, atol=1e-5)


def test_the_last_lens_is_the_model_and_the_parts_make_the_stream(model: GPT) -> None:
    seen = trace_forward(model, IDS)
    with torch.no_grad():
        logits_TV = model.eval()(torch.tensor([IDS]))[0]
    logprobs_TV = logits_TV.log_softmax(-1)
    assert torch.equal(seen.logits_V, logits_TV[-1])
    assert torch.equal(seen.likely_LTK[-1], logprobs_TV.topk(5).indices)
    assert torch.equal(seen.likely_logprobs_LTK[-1], logprobs_TV.topk(5).values)
    own_T = logprobs_TV[:-1].gather(-1, torch.tensor(IDS[1:])[:, None])[:, 0].exp()
    assert torch.equal(seen.following_LT[-1], own_T)
    assert seen.likely_LTK.shape == seen.likely_logprobs_LTK.shape == (4, len(IDS), 5)
    assert seen.following_LT.shape == (4, len(IDS) - 1)
    assert seen.stream_norms_LT.shape == (4, len(IDS))
    assert seen.attention_norms_LT.shape == seen.mlp_norms_LT.shape == (3, len(IDS))
    most = seen.stream_norms_LT[:-1] + seen.attention_norms_LT + seen.mlp_norms_LT
    assert (seen.stream_norms_LT[1:] <= most + 1e-5).all()


def test_ids_that_mean_nothing_are_not_told(model: GPT) -> None:
    ids = [3, 1, 4, 1, 19]
    seen, whole = trace_forward(model, ids, n_ids=4), trace_forward(model, ids)
    assert torch.equal(seen.logits_V, whole.logits_V[:4])
    assert seen.likely_LTK.shape == (4, 5, 4)
    assert seen.likely_LTK.max() == 3
    torch.testing.assert_close(seen.likely_logprobs_LTK.exp().sum(-1), torch.ones(4, 5))
    assert (seen.following_LT[:, 0] > 0).all()
    assert (seen.following_LT[:, 1] == 0).all()
    assert (seen.following_LT[:, 3] == 0).all()


def test_a_text_of_one_token_has_nothing_that_follows(model: GPT) -> None:
    assert trace_forward(model, [7]).following_LT.shape == (4, 0)


def test_the_first_lens_knows_only_the_token_itself(model: GPT) -> None:
    seen = trace_forward(model, IDS)
    first, how_likely = seen.likely_LTK[0], seen.likely_logprobs_LTK[0]
    if model.config.position == "rotary":
        assert torch.equal(how_likely[1], how_likely[3]), "two ones, before anything was read"
        assert torch.equal(first[1], first[3])
    assert not torch.equal(how_likely[1], how_likely[2])


class Watched(TorchDispatchMode):
    """Notes the largest thing that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.most = max(self.most, made.numel())
        return made


def test_no_more_than_one_layers_logits_are_held_at_once() -> None:
    """Of all 13 at once, GPT-2's would be 374 MB for 143 tokens."""
    model = GPT(GPTConfig(n_layer=6, n_head=1, n_embd=8, block_size=32, vocab_size=5000))
    with Watched() as watched:
        seen = trace_forward(model, [1] * 32)
    assert watched.most == 32 * 5000
    assert seen.logits_V.untyped_storage().nbytes() == 5000 * 4, "the last place does not keep the others alive"


def test_looking_leaves_no_trace(model: GPT) -> None:
    model.train()
    with torch.no_grad():
        before = model.eval()(torch.tensor([IDS]))
        model.train()
        trace_forward(model, IDS)
        assert model.training
        assert torch.equal(model.eval()(torch.tensor([IDS])), before)
    for module in model.modules():
        assert not module._forward_hooks


def test_an_error_leaves_no_trace_either(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.h[2].mlp, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trace_forward(model, IDS)
    for module in model.modules():
        assert not module._forward_hooks


@pytest.mark.parametrize("n", [0, 33])
def test_what_it_cannot_read_is_refused(model: GPT, n: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 32"):
        trace_forward(model, [1] * n)


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


def test_a_head_made_for_induction_scores_so() -> None:
    """By hand, on 65 letters: the first layer notes at each token the one before, the second looks for itself there."""
    size, n_ids = 96, 65
    tokens, before = slice(size, size + n_ids), slice(size + n_ids, size + 2 * n_ids)
    config = {"n_layer": 2, "n_head": 1, "n_embd": size + 2 * n_ids, "head_size": size, "block_size": size}
    model = GPT(GPTConfig(**config, vocab_size=n_ids, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.zero_()
        model.wte.weight[:, tokens] = torch.eye(n_ids)
        model.positions.wpe.weight[:, :size] = torch.eye(size)
        first, second = model.h[0].attn, model.h[1].attn
        first.c_attn.weight[torch.arange(size - 1), torch.arange(1, size)] = 100.0
        first.c_attn.weight[size : 2 * size, :size] = torch.eye(size)
        first.c_attn.weight[2 * size : 2 * size + n_ids, tokens] = torch.eye(n_ids)
        first.c_proj.weight[before, :n_ids] = torch.eye(n_ids)
        second.c_attn.weight[:n_ids, tokens] = 100.0 * torch.eye(n_ids)
        second.c_attn.weight[size : size + n_ids, before] = torch.eye(n_ids)
    scores = score_heads(model.eval(), n_ids)
    assert scores is not None
    assert scores.induction_LH[1, 0] > 0.95
    assert scores.previous_LH[0, 0] > 0.95
    assert scores.induction_LH[0, 0] < 0.1


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


def test_what_is_told_of_a_model_on_another_device_lies_in_memory(model: GPT) -> None:
    here, heads_here = trace_forward(model, IDS, 18), score_heads(model, 18)
    sent_there(model)
    with elsewhere():
        assert model.wte.weight.device == PLACE
        with pytest.raises(RuntimeError, match="same device"):
            model.wte.weight.sum(0) + torch.ones(32)
        there, heads_there = trace_forward(model, IDS, 18), score_heads(model, 18)
    for ours, theirs in ((here, there), (heads_here, heads_there)):
        for name, value in vars(ours).items():
            found = getattr(theirs, name)
            assert type(found) is torch.Tensor, name
            assert found.device.type == "cpu"
            assert found.dtype in (torch.float32, torch.int64)
            torch.testing.assert_close(found, value)
