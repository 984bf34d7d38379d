"""Rung 9, production: the same function as rung 8, implemented for speed.

Adds no class: the model is `groundling.model.gpt.GPT`. Differences from rung 8:
- One matrix (`c_attn`) computes the queries, keys and values of all heads, instead of 18 small ones.
- `scaled_dot_product_attention` computes scores, mask, softmax and weighted mean in one call and never stores the T x T
  weights. The heads are a dimension of the tensor (the H in `q_BHTD`), not a loop.
- A KV cache reduces the cost of a sampled character from the whole context to one position.
- `forward` has no data-dependent branch, so `torch.compile` can fuse it into a few kernels.
- Six options of `GPTConfig` (norm, mlp, position, qk_norm, bias, tie_weights) turn it into GPT-2, Llama or Qwen3.
- As in GPT-2, dropout applies to the embeddings too, `c_attn` has biases, and `lm_head` has none.

`production_gpt` converts the weights of rung 8; a test checks that the logits are equal.

The lecture's validation loss: 1.48, that of rung 8.

Shapes: C = n_embd, D = head_size, H = n_head, V vocabulary.
"""

import torch
from torch import Tensor, nn

from groundling.errors import ConfigError
from groundling.ladder.s3_one_head import Head
from groundling.ladder.s6_residual import ResidualBlock
from groundling.ladder.s8_scaled import ScaledModel
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT


def production_gpt(s8: ScaledModel) -> GPT:
    """Convert a rung 8 to the production model; in evaluation mode both give the same logits.

    Raises:
        ConfigError: the bias of `lm_head` cannot be folded; see `fold_bias`.
    """
    old = s8.state_dict()
    config = lecture_config(s8)
    new = {"lm_head.weight": old["lm_head.weight"]}

    def carry(source: str, target: str) -> None:
        new.update({f"{target}.{kind}": old[f"{source}.{kind}"] for kind in ("weight", "bias")})

    new["wte.weight"] = old["token_embedding.weight"]
    new["positions.wpe.weight"] = old["position_embedding.weight"]
    carry("body.norm", "ln_f")
    new["ln_f.bias"] = old["body.norm.bias"] + fold_bias(old["lm_head.weight"], old["lm_head.bias"])
    for layer in range(config.n_layer):
        block, h = f"body.blocks.{layer}", f"h.{layer}"
        carry(f"{block}.communicate.norm", f"{h}.ln_1")
        carry(f"{block}.communicate.projection", f"{h}.attn.c_proj")
        carry(f"{block}.compute.norm", f"{h}.ln_2")
        carry(f"{block}.compute.feed_forward.linear", f"{h}.mlp.c_fc")
        carry(f"{block}.compute.projection", f"{h}.mlp.c_proj")
        fused = [
            old[f"{block}.communicate.heads.heads.{head}.{role}.weight"]
            for role in ("query", "key", "value")
            for head in range(config.n_head)
        ]  # 3 H matrices of D x C, the queries of all heads first
        new[f"{h}.attn.c_attn.weight"] = torch.cat(fused)
        new[f"{h}.attn.c_attn.bias"] = torch.zeros_like(new[f"{h}.attn.c_attn.weight"][:, 0])
    gpt = GPT(config).to(old["lm_head.weight"])
    gpt.load_state_dict(new)
    return gpt.train(s8.training)


def lecture_config(s8: ScaledModel) -> GPTConfig:
    """Return the config of the production model that matches a rung 8."""
    vocab_size, n_embd = s8.lm_head.weight.shape
    n_layer = sum(isinstance(module, ResidualBlock) for module in s8.modules())
    dropout = max(module.p for module in s8.modules() if isinstance(module, nn.Dropout))
    return GPTConfig(
        n_layer=n_layer,
        n_head=sum(isinstance(module, Head) for module in s8.modules()) // n_layer,
        n_embd=n_embd,
        block_size=s8.block_size,
        vocab_size=vocab_size,
        dropout=dropout,
        attention_dropout=dropout,
        norm="layernorm",
        mlp="relu",
        position="learned",
        qk_norm=False,
        bias=True,
        tie_weights=False,
    )


def fold_bias(weight_VC: Tensor, bias_V: Tensor) -> Tensor:
    """Solve weight @ delta = bias for the delta that moves `lm_head`'s bias into the final norm's bias.

    A solution exists if the rows of the weight are linearly independent, which needs n_embd >= vocab_size.

    Raises:
        ConfigError: there is no solution.
    """
    # On the CPU, where `gelsd` handles rank-deficient matrices, and in float64 for precision.
    weight_64, bias_64 = weight_VC.detach().cpu().double(), bias_V.detach().cpu().double()
    delta_C: Tensor = torch.linalg.lstsq(weight_64, bias_64.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    missed = (weight_64 @ delta_C - bias_64).abs().max().item()
    if missed > 1e-8:
        raise ConfigError(
            f"the bias of lm_head cannot be folded into the final norm (it misses by {missed:.1e}); with "
            f"vocab_size {len(bias_V)} and n_embd {weight_VC.shape[1]}, make n_embd at least vocab_size"
        )
    return delta_C.to(bias_V)


def fresh_gpt(vocab_size: int) -> GPT:
    """Return a production model with the initial weights of a new rung 8 in full size."""
    return production_gpt(ScaledModel(vocab_size))
