"""Laws of the production model: it looks back only, a cache changes nothing, and it is GPT-2, Llama and Qwen3.

Shapes: B batch, T positions, H heads, D head_size.
"""

import dataclasses

import pytest
import torch
from torch import nn

from groundling.model.cache import KVCache
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT, CausalSelfAttention

BASE = GPTConfig(n_layer=3, n_head=4, n_embd=32, block_size=16, vocab_size=23)
CONFIGS = {
    "learned": BASE,
    "rotary": dataclasses.replace(BASE, position="rotary"),
    "gqa": dataclasses.replace(BASE, n_kv_head=2),
    "rotary gqa qk_norm": dataclasses.replace(
        BASE, position="rotary", n_kv_head=1, qk_norm=True, norm="rmsnorm", mlp="swiglu", bias=False, head_size=6
    ),
}


def lively(model: nn.Module) -> nn.Module:
    """Weights far from their small first values, gains and biases too, so that every part speaks in the logits."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3
    return model.eval()


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def gpt(request):
    return lively(GPT(request.param).double())


@pytest.fixture
def idx_BT(gpt):
    return torch.randint(gpt.config.vocab_size, (2, 8), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def test_a_future_token_changes_no_earlier_logit(gpt, idx_BT):
    changed_BT = idx_BT.clone()
    changed_BT[:, 5] = (changed_BT[:, 5] + 1) % gpt.config.vocab_size
    before, after = gpt(idx_BT), gpt(changed_BT)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=1e-12)
    assert (after[:, 5:] - before[:, 5:]).abs().amax(-1).min() > 1e-3, "the change has to be seen from its place on"


@pytest.mark.parametrize("cut", [(8,), (1,) * 8, (5, 1, 2), (1, 7), (3, 3, 2)], ids=str)
@torch.no_grad()
def test_cached_pieces_give_the_logits_of_one_pass(gpt, idx_BT, cut):
    """The ragged cuts catch `is_causal=True`, whose mask is aligned to the wrong corner when T < S."""
    cache = KVCache(gpt.config, batch_size=2, dtype=torch.float64)
    pieces = [gpt(piece_BT, cache) for piece_BT in idx_BT.split(cut, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), gpt(idx_BT), rtol=0, atol=1e-11)
    assert cache.length == 8


@torch.no_grad()
def test_a_cleared_cache_is_as_good_as_new(gpt, idx_BT):
    cache = KVCache(gpt.config, batch_size=2, dtype=torch.float64)
    gpt(idx_BT.flip(1), cache)
    cache.clear()
    torch.testing.assert_close(gpt(idx_BT, cache), gpt(idx_BT), rtol=0, atol=1e-11)


@torch.no_grad()
def test_a_full_cache_refuses_one_more(gpt):
    cache = KVCache(gpt.config, batch_size=1, dtype=torch.float64)
    gpt(torch.zeros(1, 16, dtype=torch.long), cache)
    assert cache.room == 0
    with pytest.raises(ValueError, match="16 \\+ 1 positions do not fit"):
        gpt(torch.zeros(1, 1, dtype=torch.long), cache)


def naive_attention(attention: CausalSelfAttention, config: GPTConfig, x_BTC: torch.Tensor) -> torch.Tensor:
    """Attention with loops over heads and positions, its rotation by complex numbers: slow, and easy to believe."""
    T = x_BTC.size(1)
    D, group = config.head_width(), config.n_head // config.kv_heads()
    q, k, v = attention.c_attn(x_BTC).split([config.n_head * D, config.kv_heads() * D, config.kv_heads() * D], dim=-1)

    def head(x: torch.Tensor, h: int, norm: nn.Module | None) -> torch.Tensor:
        x_BTD = x[..., h * D : (h + 1) * D]
        if norm is None:
            return x_BTD
        if config.qk_norm:
            x_BTD = norm.weight * x_BTD / (x_BTD.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
        if config.position == "rotary":
            rates = config.rope_theta ** (-torch.arange(D // 2, dtype=torch.float64) * 2 / D)
            turns = torch.polar(torch.ones(T, D // 2).double(), torch.outer(torch.arange(T).double(), rates))
            turned = torch.complex(x_BTD[..., : D // 2], x_BTD[..., D // 2 :]) * turns
            x_BTD = torch.cat((turned.real, turned.imag), dim=-1)
        return x_BTD

    heads = []
    for h in range(config.n_head):
        q_BTD, k_BTD = head(q, h, attention.q_norm), head(k, h // group, attention.k_norm)
        v_BTD = head(v, h // group, None)
        y_BTD = torch.zeros_like(q_BTD)
        for t in range(T):
            scores = torch.stack([(q_BTD[:, t] * k_BTD[:, s]).sum(-1) for s in range(t + 1)], dim=-1) / D**0.5
            for s, weight_B in enumerate(scores.softmax(-1).unbind(-1)):
                y_BTD[:, t] += weight_B[:, None] * v_BTD[:, s]
        heads.append(y_BTD)
    return attention.c_proj(torch.cat(heads, dim=-1))


@torch.no_grad()
def test_naive_attention_is_the_fused_one(gpt):
    x_BTC = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    attention = gpt.h[1].attn
    # The model keeps its angles in float32 tables.
    torch.testing.assert_close(attention(x_BTC), naive_attention(attention, gpt.config, x_BTC), rtol=1e-6, atol=1e-6)


# What is trained here is one of three published families, to the last logit.


def of_gpt2(state: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    """GPT-2 keeps its matrices transposed, under our names."""
    own = {name: tensor for name, tensor in state.items() if name.startswith(f"transformer.h.{layer}.")}
    transposed = ("c_attn.weight", "c_fc.weight", "c_proj.weight")
    return {
        name.removeprefix("transformer."): tensor.T if name.endswith(transposed) else tensor
        for name, tensor in own.items()
    }


def of_llama(state: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    """Llama's and Qwen3's names; they keep q, k and v apart."""
    theirs = f"model.layers.{layer}."
    qkv = [state[f"{theirs}self_attn.{part}_proj.weight"] for part in "qkv"]
    names = {
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "attn.c_proj": "self_attn.o_proj",
        "attn.q_norm": "self_attn.q_norm",
        "attn.k_norm": "self_attn.k_norm",
        "mlp.c_gate": "mlp.gate_proj",
        "mlp.c_fc": "mlp.up_proj",
        "mlp.c_proj": "mlp.down_proj",
    }
    weights = {f"h.{layer}.attn.c_attn.weight": torch.cat(qkv)}
    for ours, name in names.items():
        if f"{theirs}{name}.weight" in state:
            weights[f"h.{layer}.{ours}.weight"] = state[f"{theirs}{name}.weight"]
    return weights


def assert_same_logits(theirs: nn.Module, config: GPTConfig, weights: dict[str, torch.Tensor]) -> None:
    ours = GPT(config).eval()
    if config.tie_weights:
        weights = {**weights, "lm_head.weight": weights["wte.weight"]}
    ours.load_state_dict(weights)  # strict: no tensor of either is left over
    idx_BT = torch.randint(config.vocab_size, (3, config.block_size), generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        expected, found = theirs(idx_BT).logits, ours(idx_BT)
    assert expected.std() > 0.5, "logits that are all alike would prove nothing"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_ours_is_hugging_faces_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 3, "n_head": 4, "n_embd": 32, "vocab_size": 53}
    theirs = lively(GPT2LMHeadModel(GPT2Config(**sizes, n_positions=24, bos_token_id=0, eos_token_id=0)))
    state = theirs.state_dict()
    weights = {
        "wte.weight": state["transformer.wte.weight"],
        "positions.wpe.weight": state["transformer.wpe.weight"],
        "ln_f.weight": state["transformer.ln_f.weight"],
        "ln_f.bias": state["transformer.ln_f.bias"],
    }
    for layer in range(3):
        weights |= of_gpt2(state, layer)
    assert_same_logits(theirs, GPTConfig(**sizes, block_size=24), weights)


FAMILY = {"norm": "rmsnorm", "mlp": "swiglu", "position": "rotary", "bias": False}
SIZES = GPTConfig(
    n_layer=3, n_head=4, n_kv_head=2, n_embd=32, n_hidden=48, vocab_size=53, block_size=24, rope_theta=500.0, **FAMILY
)


def their_sizes(config: GPTConfig) -> dict[str, object]:
    return {
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_hidden,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_width(),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_ours_is_hugging_faces_llama_and_qwen3(family, tied):
    import transformers

    config = dataclasses.replace(SIZES, tie_weights=tied, qk_norm=family == "Qwen3", norm_eps=1e-4)
    if family == "Qwen3":
        config = dataclasses.replace(config, head_size=10)  # not n_embd / n_head, as in Qwen3's small models
    their_config = getattr(transformers, f"{family}Config")(**their_sizes(config))
    theirs = lively(getattr(transformers, f"{family}ForCausalLM")(their_config))
    state = theirs.state_dict()
    weights = {"wte.weight": state["model.embed_tokens.weight"], "ln_f.weight": state["model.norm.weight"]}
    if not tied:
        weights["lm_head.weight"] = state["lm_head.weight"]
    for layer in range(config.n_layer):
        weights |= of_llama(state, layer)
    assert_same_logits(theirs, config, weights)
