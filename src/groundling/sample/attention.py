"""What goes on inside a model while it reads: attention, the stream, and what each layer would say.

All of it is taken from outside, by hooks: the model knows nothing of being looked at, and computes what it always does.
The fused kernel never shows its weights, so they are computed again from what went into it.

Shapes: L layers, H heads, T positions, S positions looked at, C n_embd, D head_size, V vocabulary, K likeliest.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from groundling.model.gpt import GPT, Block, CausalSelfAttention
from groundling.model.layers import at_least_float32

LONGEST_REPEAT = 48
"""Tokens of the random sequence that is read twice, to score heads."""


@dataclass(frozen=True)
class Look:
    """One reading of one text."""

    attention_LHTS: Tensor
    """How much each position takes from each earlier one, and from itself; rows sum to 1."""
    stream_norms_LT: Tensor
    """Root mean square of the residual stream: after the embeddings, and after each block (L + 1 rows)."""
    attention_norms_LT: Tensor
    """Of what attention adds in each block."""
    mlp_norms_LT: Tensor
    """Of what the MLP adds in each block."""
    lens_LTV: Tensor
    """Logits, if the stream went to the end from here (the logit lens, nostalgebraist 2020); the last row is the
    model's own. L + 1 rows."""


@dataclass(frozen=True)
class HeadScores:
    """What kind of head each is, from 0 to 1: its mean attention on a random sequence that is read twice."""

    previous_LH: Tensor
    """To the token before."""
    induction_LH: Tensor
    """From a token's second coming to what followed on its first (Olsson et al. 2022, arXiv:2209.11895)."""
    first_LH: Tensor
    """To the very first token, where heads look that have nothing to say."""


def look(model: GPT, ids: Sequence[int], n_ids: int | None = None) -> Look:
    """Read a text once, and tell what went on.

    Args:
        model: as it is; it is left as it was.
        ids: at least one, and at most `block_size`.
        n_ids: only these logits mean something (a model's vocabulary may be padded); None: all.

    Raises:
        ValueError: there are no ids, or too many.
    """
    if not 1 <= len(ids) <= model.block_size:
        raise ValueError(f"{len(ids)} ids were given; this model reads from 1 to {model.block_size}")
    seen = _Seen()
    with torch.inference_mode(), _watching(model, seen):
        logits_TV = at_least_float32(_read(model, ids))[0, :, :n_ids]
        lens = [model.lm_head(model.ln_f(x_1TC))[0, :, :n_ids] for x_1TC in seen.stream[:-1]]
        return Look(
            torch.stack(seen.attention),
            torch.stack([_rms(x_1TC) for x_1TC in seen.stream]),
            torch.stack([_rms(x_1TC) for x_1TC in seen.from_attention]),
            torch.stack([_rms(x_1TC) for x_1TC in seen.from_mlp]),
            torch.stack([*(at_least_float32(x_TV) for x_TV in lens), logits_TV]),
        )


def score_heads(model: GPT, n_ids: int, seed: int = 0) -> HeadScores | None:
    """Score all heads on a random sequence of ids below `n_ids` that is read twice; None: the context is too short."""
    n = min(model.block_size // 2, LONGEST_REPEAT)
    if n < 2:
        return None
    draw = torch.Generator().manual_seed(seed)
    once = torch.randint(n_ids, (n,), generator=draw).tolist()
    seen = _Seen()
    with torch.inference_mode(), _watching(model, seen):
        _read(model, once + once)
    attention_LHTS = torch.stack(seen.attention)
    again = torch.arange(n, 2 * n)
    return HeadScores(
        attention_LHTS.diagonal(-1, -2, -1).mean(-1),
        attention_LHTS[:, :, again, again - n + 1].mean(-1),
        attention_LHTS[:, :, n:, 0].mean(-1),
    )


def weights_of(attention: CausalSelfAttention, x_BTC: Tensor) -> Tensor:
    """What the fused kernel weighs by (BHTS): the softmax of the scaled products of queries and keys, causally."""
    B, T, _ = x_BTC.shape
    qkv_BTHD = attention.c_attn(x_BTC).view(B, T, -1, attention.head_size)
    q, k, _ = qkv_BTHD.split((attention.n_head, attention.n_kv_head, attention.n_kv_head), dim=2)
    q_BHTD = attention.rotate(attention.q_norm(q).transpose(1, 2), slice(0, T))
    k_BHSD = attention.rotate(attention.k_norm(k).transpose(1, 2), slice(0, T))
    k_BHSD = k_BHSD.repeat_interleave(attention.n_head // attention.n_kv_head, 1)
    scores_BHTS = at_least_float32(q_BHTD @ k_BHSD.transpose(-1, -2)) / math.sqrt(attention.head_size)
    ahead_TS = torch.ones(T, T, dtype=torch.bool, device=x_BTC.device).triu(1)
    return scores_BHTS.masked_fill(ahead_TS, -math.inf).softmax(-1)


class _Seen:
    def __init__(self) -> None:
        self.attention: list[Tensor] = []
        self.stream: list[Tensor] = []
        self.from_attention: list[Tensor] = []
        self.from_mlp: list[Tensor] = []


@contextmanager
def _watching(model: GPT, seen: _Seen) -> Iterator[None]:
    """Note what passes, as long as the block lasts; the model computes in evaluation mode meanwhile."""

    def at_attention(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(module, CausalSelfAttention)
        seen.attention.append(weights_of(module, inputs[0])[0])
        seen.from_attention.append(output)

    def at_mlp(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        del module, inputs
        seen.from_mlp.append(output)

    def at_block(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        del module
        if not seen.stream:
            seen.stream.append(inputs[0])
        seen.stream.append(output)

    was_training = model.training
    hooks = []
    try:
        for block in model.h:
            assert isinstance(block, Block)
            hooks.append(block.attn.register_forward_hook(at_attention))
            hooks.append(block.mlp.register_forward_hook(at_mlp))
            hooks.append(block.register_forward_hook(at_block))
        model.eval()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)


def _read(model: GPT, ids: Sequence[int]) -> Tensor:
    logits_BTV: Tensor = model(torch.tensor([list(ids)], device=model.wte.weight.device))
    return logits_BTV


def _rms(x_1TC: Tensor) -> Tensor:
    return at_least_float32(x_1TC)[0].square().mean(-1).sqrt()
