"""Compute the heads of rung 4 in one product: the same function with an eighth of the calls.

A small model spends most of its time launching operations, and a loop over H heads launches each one H times. All heads
read the same x, so one product with their stacked matrices gives all queries, keys and values. `groundling ladder`
trains with this class while the rungs keep the lecture's form; a test checks that both agree. Only dropout differs: all
masks are drawn at once, so with several heads the masks are different samples of the same distribution.

Shapes: B sequences in a batch, T positions, S positions attended to (here S = T), C = n_embd, H heads, D = C / H,
F = 3 C.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from groundling.ladder.s3_one_head import Head
from groundling.ladder.s4_multi_head import MultiHead
from groundling.ladder.s8_scaled import DropoutHead


def attention_weights(head: Head, q_BTD: Tensor, k_BSD: Tensor) -> Tensor:
    """Compute attention weights with a head's scale, mask and dropout.

    For one head: `attention_weights(head, head.query(x_BTC), head.key(x_BTC))`.

    Args:
        head: provides scale, mask and dropout.
        q_BTD: queries; may have a head dimension before the last two.
        k_BSD: keys, of the same layout.
    """
    T = q_BTD.shape[-2]
    weights_BTS: Tensor = q_BTD @ k_BSD.transpose(-2, -1) * head.scale
    weights_BTS = weights_BTS.masked_fill(head.tril[:T, :T] == 0, float("-inf")).softmax(dim=-1)
    return head.dropout(weights_BTS) if isinstance(head, DropoutHead) else weights_BTS


class FusedHeads(MultiHead):
    """A `MultiHead` that computes all heads together; parameters and their names are the same."""

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Return the concatenated outputs of all heads."""
        B, T, _ = x_BTC.shape
        heads = [cast(Head, head) for head in self.heads]
        matrices: list[Tensor] = [getattr(head, name).weight for name in ("query", "key", "value") for head in heads]
        all_BTF = linear(x_BTC, torch.cat(matrices))
        q_BHTD, k_BHSD, v_BHSD = all_BTF.view(B, T, 3, len(heads), -1).permute(2, 0, 3, 1, 4)
        out_BHTD: Tensor = attention_weights(heads[0], q_BHTD, k_BHSD) @ v_BHSD
        return out_BHTD.transpose(1, 2).flatten(start_dim=2)


def fuse_heads(model: nn.Module) -> nn.Module:
    """Replace each `MultiHead` in a model by `FusedHeads` with the same parameters; return the model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, MultiHead):
                setattr(module, name, FusedHeads(child.heads).train(child.training))
    return model
