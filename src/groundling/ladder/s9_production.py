"""Rung 9, production: the same function, computed the way it is computed in earnest.

Adds no class: from here on the model is `groundling.model.gpt.GPT`. What changed there, and why:
- One matrix makes the queries, keys and values of all heads (`c_attn`), where rung 8 multiplies by 18 small ones.
- `scaled_dot_product_attention` does scores, mask, softmax and weighted mean in one call that never stores the T x T
  weights. The heads are a dimension of the tensor (the H in `q_BHTD`), not a loop.
- A cache keeps keys and values, so that sampling costs one position for a new character, not the whole context.
- No branch in `forward` depends on the data, so `torch.compile` can turn it into a few large kernels.
- The six choices of `GPTConfig` (norm, mlp, position, qk_norm, bias, tie_weights) make it a GPT-2, a Llama or a
  Qwen3. The lecture's model is one point among them.
- As in GPT-2, dropout falls on the embeddings too, `c_attn` has biases, and `lm_head` has none.

Why believe that it is the same? `production_gpt` carries the weights of rung 8 over, and a test demands equal logits.

The lecture's validation loss: 1.48, that of rung 8.

Shapes: C = n_embd numbers for a position, D = head_size, H = n_head, V vocabulary.
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
    """The production model with the sizes and the weights of a rung 8: in evaluation, the same logits.

    Raises:
        ConfigError: the bias of `lm_head` has no place in the production model; see `fold_bias`.
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
    """The point among the production model's choices where the lecture's model is, in the sizes of a rung 8."""
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
    """What to add to the final norm's bias so that `lm_head` needs none: the delta with weight @ delta = bias.

    There is one whenever the rows of the weight are independent, for which n_embd must be at least vocab_size.

    Raises:
        ConfigError: there is none.
    """
    # On the CPU, where least squares copes with any rank, and in float64, because a loss of digits here would show.
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
    """The production model in the lecture's full size, starting where a new rung 8 starts."""
    return production_gpt(ScaledModel(vocab_size))
