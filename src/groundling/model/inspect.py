"""Internals of a forward pass: attention maps, residual stream norms, logit lens.

Everything is recorded by forward hooks; the model is unchanged. The fused attention kernel does not return its
weights, so they are recomputed from its inputs. Results are float32 on the CPU, whatever the model's device.

Shapes: L layers, H heads, T positions, S positions attended to, C n_embd, D head_size, V vocabulary, K most likely ids.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from groundling.model.gpt import GPT, Block, CausalSelfAttention
from groundling.model.numerics import at_least_float32

MAX_REPEAT = 48
"""Length of the repeated random sequence that scores heads."""
N_LIKELY = 5
"""Ids that the logit lens shows at each position."""


@dataclass(frozen=True)
class ForwardTrace:
    """Internals of one forward pass over one sequence, from `trace_forward`."""

    attention_LHTS: Tensor
    """Attention weights; rows sum to 1."""
    stream_norms_LT: Tensor
    """Root mean square of the residual stream after the embeddings and after each block (L + 1 rows)."""
    attention_norms_LT: Tensor
    """Root mean square of each attention output."""
    mlp_norms_LT: Tensor
    """Root mean square of each MLP output."""
    likely_LTK: Tensor
    """Most likely next ids from the stream after each block by the logit lens (nostalgebraist 2020); the last of the
    L + 1 rows is the model's output."""
    likely_logprobs_LTK: Tensor
    """Their log-probabilities."""
    following_LT: Tensor
    """Probability of the actual next id by the logit lens, for T - 1 positions; 0 for an id beyond n_ids."""
    logits_V: Tensor
    """The model's output at the last position."""


@dataclass(frozen=True)
class HeadScores:
    """Type of each head: its mean attention, from 0 to 1, on a repeated random sequence."""

    previous_LH: Tensor
    """To the previous token."""
    induction_LH: Tensor
    """From the second occurrence of a token to the successor of its first (Olsson et al. 2022, arXiv:2209.11895)."""
    first_LH: Tensor
    """To the first token, the attention sink of inactive heads."""


def trace_forward(model: GPT, ids: Sequence[int], n_ids: int | None = None) -> ForwardTrace:
    """Run a model on a sequence and record its internals.

    Args:
        model: left unchanged.
        ids: 1 to `block_size` ids.
        n_ids: number of ids that are not padding of the vocabulary; None: all.

    Raises:
        ValueError: there are no ids, or too many.
    """
    if not 1 <= len(ids) <= model.block_size:
        raise ValueError(f"{len(ids)} ids were given; this model reads from 1 to {model.block_size}")
    seen = _Recorded()
    with torch.inference_mode():
        with _recording(model, seen):
            logits_TV = _read(model, ids)[0, :, :n_ids]
        own, logits_V = _likely(logits_TV, ids), _on_cpu(logits_TV[-1].clone())
        del logits_TV
        # Layer by layer: with GPT-2's vocabulary, the logits of all layers would take a gigabyte.
        lens = [_likely(model.lm_head(model.ln_f(x_1TC))[0, :, :n_ids], ids) for x_1TC in seen.stream[:-1]]
        likely, logprobs, following = zip(*lens, own, strict=True)
        return ForwardTrace(
            torch.stack(seen.attention),
            torch.stack([_rms(x_1TC) for x_1TC in seen.stream]),
            torch.stack([_rms(x_1TC) for x_1TC in seen.from_attention]),
            torch.stack([_rms(x_1TC) for x_1TC in seen.from_mlp]),
            torch.stack(likely),
            torch.stack(logprobs),
            torch.stack(following),
            logits_V,
        )


def score_heads(model: GPT, n_ids: int, seed: int = 0) -> HeadScores | None:
    """Score all heads on a random sequence of ids below `n_ids`, repeated once.

    Its ids are distinct, so that an induction head has one position to attend to. None: the context or the vocabulary
    is too small.
    """
    n = min(model.block_size // 2, MAX_REPEAT, n_ids)
    if n < 2:
        return None
    draw = torch.Generator().manual_seed(seed)
    once = torch.randperm(n_ids, generator=draw)[:n].tolist()
    seen = _Recorded()
    with torch.inference_mode(), _recording(model, seen):
        _read(model, once + once)
    attention_LHTS = torch.stack(seen.attention)
    again = torch.arange(n, 2 * n)
    return HeadScores(
        attention_LHTS.diagonal(-1, -2, -1).mean(-1),
        attention_LHTS[:, :, again, again - n + 1].mean(-1),
        attention_LHTS[:, :, n:, 0].mean(-1),
    )


def attention_weights(attention: CausalSelfAttention, x_BTC: Tensor) -> Tensor:
    """Attention weights of an attention module (BHTS), recomputed from its input."""
    B, T, _ = x_BTC.shape
    qkv_BTHD = attention.c_attn(x_BTC).view(B, T, -1, attention.head_size)
    q, k, _ = qkv_BTHD.split((attention.n_head, attention.n_kv_head, attention.n_kv_head), dim=2)
    q_BHTD = attention.rotate(attention.q_norm(q).transpose(1, 2), slice(0, T))
    k_BHSD = attention.rotate(attention.k_norm(k).transpose(1, 2), slice(0, T))
    k_BHSD = k_BHSD.repeat_interleave(attention.n_head // attention.n_kv_head, 1)
    scores_BHTS = at_least_float32(q_BHTD @ k_BHSD.transpose(-1, -2)) / math.sqrt(attention.head_size)
    place_T = torch.arange(T, device=x_BTC.device)
    return scores_BHTS.masked_fill(place_T[None, :] > place_T[:, None], -math.inf).softmax(-1)


class _Recorded:
    def __init__(self) -> None:
        self.attention: list[Tensor] = []
        self.stream: list[Tensor] = []
        self.from_attention: list[Tensor] = []
        self.from_mlp: list[Tensor] = []


@contextmanager
def _recording(model: GPT, seen: _Recorded) -> Iterator[None]:
    """Record into `seen` inside this block, with the model in evaluation mode."""

    def at_attention(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(module, CausalSelfAttention)
        seen.attention.append(_on_cpu(attention_weights(module, inputs[0])[0]))
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


def _likely(logits_TV: Tensor, ids: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Most likely ids (TK), their log-probabilities, and the probability of each actual next id (T - 1)."""
    logprobs_TV = at_least_float32(logits_TV).log_softmax(-1)
    best = logprobs_TV.topk(min(N_LIKELY, logprobs_TV.size(-1)), dim=-1)
    following_T = torch.tensor(list(ids[1:]), dtype=torch.long, device=logprobs_TV.device)
    known_T = following_T.clamp(max=logprobs_TV.size(-1) - 1)
    own_T = logprobs_TV[:-1].gather(-1, known_T[:, None])[:, 0].exp() * (following_T == known_T)
    return best.indices.cpu(), _on_cpu(best.values), _on_cpu(own_T)


def _rms(x_1TC: Tensor) -> Tensor:
    return _on_cpu(at_least_float32(x_1TC)[0].square().mean(-1).sqrt())


def _on_cpu(values: Tensor) -> Tensor:
    """Cast before the copy: not every device has float64."""
    return at_least_float32(values).cpu()
