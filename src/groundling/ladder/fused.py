"""The heads of rung 4 in one product: the same function, in an eighth of the calls.

A small model spends its time on calling operations, and heads that run one after another call each of them H times.
All heads read the same x, so one product with their stacked matrices gives every query, key and value. The ladder
trains with this; the rungs show the lecture's form, and a law ties the two. Only dropout differs: it draws the masks of
all heads at once, so several heads get other masks of the same kind.

Shapes: B sequences in a batch, T positions, S positions looked at (here S = T), C = n_embd numbers for a position,
H heads, D = C / H numbers in a query, key or value, F = 3 C.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from groundling.ladder.s3_one_head import Head
from groundling.ladder.s4_multi_head import MultiHead
from groundling.ladder.s8_scaled import DropoutHead


def attention_weights(head: Head, q_BTD: Tensor, k_BSD: Tensor) -> Tensor:
    """The weights of attention from queries and keys, with a head's scale, mask and dropout.

    Of one head, to look at: `attention_weights(head, head.query(x_BTC), head.key(x_BTC))`.

    Args:
        head: what makes the weights.
        q_BTD: queries; dimensions for several heads may stand before the last two.
        k_BSD: keys, alike.
    """
    T = q_BTD.shape[-2]
    weights_BTS: Tensor = q_BTD @ k_BSD.transpose(-2, -1) * head.scale
    weights_BTS = weights_BTS.masked_fill(head.tril[:T, :T] == 0, float("-inf")).softmax(dim=-1)
    return head.dropout(weights_BTS) if isinstance(head, DropoutHead) else weights_BTS


class FusedHeads(MultiHead):
    """A `MultiHead` with the same heads under the same names, computed together."""

    def forward(self, x_BTC: Tensor) -> Tensor:
        """What every head found, side by side."""
        B, T, _ = x_BTC.shape
        heads = [cast(Head, head) for head in self.heads]
        matrices: list[Tensor] = [getattr(head, name).weight for name in ("query", "key", "value") for head in heads]
        all_BTF = linear(x_BTC, torch.cat(matrices))
        q_BHTD, k_BHSD, v_BHSD = all_BTF.view(B, T, 3, len(heads), -1).permute(2, 0, 3, 1, 4)
        found_BHTD: Tensor = attention_weights(heads[0], q_BHTD, k_BHSD) @ v_BHSD
        return found_BHTD.transpose(1, 2).flatten(start_dim=2)


def fuse_heads(model: nn.Module) -> nn.Module:
    """Replace each `MultiHead` inside a model by `FusedHeads` with the same parameters; return the model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, MultiHead):
                setattr(module, name, FusedHeads(child.heads).train(child.training))
    return model
