"""The production model by itself: what its config refuses, its shapes, its first weights, its counts."""

import dataclasses
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from groundling.errors import ConfigError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.loss import loss_sum

GPT2 = GPTConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257)
LLAMA_LIKE = GPTConfig(
    n_layer=3,
    n_head=4,
    n_kv_head=2,
    n_embd=64,
    block_size=32,
    vocab_size=97,
    norm="rmsnorm",
    mlp="swiglu",
    position="rotary",
    bias=False,
    tie_weights=False,
)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n_layer": 0}, "n_layer is 0"),
        ({"block_size": 0}, "block_size is 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"n_hidden": 0}, "n_hidden is 0"),
        ({"n_embd": 10, "n_head": 3}, "not a multiple of n_head 3"),
        ({"n_head": 6, "n_kv_head": 4}, "not a multiple of n_kv_head 4"),
        ({"n_embd": 9, "n_head": 3, "position": "rotary"}, "odd"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": math.nan}, "dropout is nan"),
        ({"attention_dropout": 1.5}, "attention_dropout is 1.5"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
    ],
)
def test_a_config_that_cannot_work_is_refused_where_it_is_declared(fields, said):
    with pytest.raises(ConfigError, match=said):
        GPTConfig(**fields)


def test_head_size_frees_the_width_from_the_number_of_heads():
    config = GPTConfig(n_layer=1, n_head=3, n_embd=10, head_size=4, block_size=8, vocab_size=11)
    assert GPT(config)(torch.zeros(2, 8, dtype=torch.long)).shape == (2, 8, 11)


@pytest.mark.parametrize("mlp", ["relu", "gelu", "swiglu", "relu2"])
@pytest.mark.parametrize("position", ["learned", "rotary"])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_every_choice_maps_ids_to_logits(norm, position, mlp):
    config = GPTConfig(
        n_layer=1, n_head=2, n_embd=8, block_size=6, vocab_size=5, norm=norm, position=position, mlp=mlp, qk_norm=True
    )
    logits_BTV = GPT(config)(torch.randint(5, (3, 4)))
    assert logits_BTV.shape == (3, 4, 5)
    assert logits_BTV.isfinite().all()


def test_more_positions_than_the_block_are_refused():
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, block_size=3, vocab_size=5))
    with pytest.raises(ValueError, match="do not fit into a block_size of 3"):
        model(torch.zeros(1, 4, dtype=torch.long))


def test_first_weights_follow_gpt2():
    """N(0, 0.02); what writes to the stream is smaller by sqrt(2 n_layer); biases 0; gains 1."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=200))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            expected = 0.02 / math.sqrt(8) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
            assert parameter.mean().abs().item() < 0.05 * expected * 4, name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert (parameter == 1).all(), name


def test_a_fresh_model_is_as_unsure_as_a_uniform_guess():
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=32, vocab_size=65))
    idx_BT = torch.randint(65, (8, 32))
    loss = loss_sum(model(idx_BT), torch.randint(65, (8, 32))).item() / idx_BT.numel()
    assert loss == pytest.approx(math.log(65), abs=0.05)


def test_reset_parameters_draws_from_the_generator_it_is_given():
    model = GPT(LLAMA_LIKE)
    model.reset_parameters(torch.Generator().manual_seed(5))
    first = [parameter.clone() for parameter in model.parameters()]
    model.reset_parameters(torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(first, model.parameters(), strict=True))


def test_gpt2_has_its_published_number_of_parameters():
    with torch.device("meta"):
        assert GPT(GPT2).n_parameters() == 124_439_808


def test_a_tied_matrix_is_one_matrix():
    tied = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, block_size=3, vocab_size=7))
    untied = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, block_size=3, vocab_size=7, tie_weights=False))
    assert tied.lm_head.weight is tied.wte.weight
    assert untied.n_parameters() - tied.n_parameters() == 7 * 4


@pytest.mark.parametrize("config", [GPT2, LLAMA_LIKE], ids=["gpt2", "llama-like"])
def test_flops_are_those_that_pytorch_counts(config):
    """Three times a forward pass (backward costs two), of whose attention a causal model needs half."""
    with torch.device("meta"):
        model = GPT(config)
        idx_BT = torch.zeros(1, config.block_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(idx_BT)
    by_operation = {str(operation): flops for operation, flops in counter.get_flop_counts()["Global"].items()}
    matrices = sum(flops for name, flops in by_operation.items() if "mm" in name and "bmm" not in name)
    attention = 4 * config.n_layer * config.n_head * config.head_width() * config.block_size**2
    assert matrices > 0
    assert model.flops_per_token() * config.block_size == 3 * (matrices + attention / 2)


@pytest.mark.parametrize("config", [GPT2, LLAMA_LIKE], ids=["gpt2", "llama"])
def test_started_as_identity_a_model_says_what_its_embeddings_say(config):
    small = dataclasses.replace(config, n_layer=2, n_embd=64, n_head=4, block_size=16, vocab_size=11)
    model = GPT(small).eval()
    idx_BT = torch.arange(10).view(2, 5)
    without_blocks = model.lm_head(model.ln_f(model.positions(model.wte(idx_BT), slice(0, 5))))
    assert not torch.allclose(model(idx_BT), without_blocks)
    model.start_as_identity()
    torch.testing.assert_close(model(idx_BT), without_blocks)
