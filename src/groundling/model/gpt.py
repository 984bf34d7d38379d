"""The one production model: a decoder-only transformer that is GPT-2, Llama or Qwen3 by its configuration.

Shapes: B batch, T new positions, S positions so far, C n_embd, H heads, D head_size, V vocabulary, F hidden.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundling.errors import require
from groundling.model.attention import fused_attention
from groundling.model.cache import KVCache
from groundling.model.dropout import Dropout
from groundling.model.layers import LearnedPositions, RMSNorm, Rotary, Unchanged, Unrotated, make_mlp, make_norm

MAX_LAYERS = 10_000
"""No model that anybody has is a tenth as deep, and building a deeper one would hang."""
MAX_BLOCK_SIZE = 2**22
"""Rotary positions have tables of this length, and no weights whose file would bound it."""


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The sizes of a GPT, and the six choices that make it GPT-2, Llama or Qwen3."""

    n_layer: int = 6
    """Blocks."""
    n_head: int = 6
    """Heads of the queries."""
    n_kv_head: int | None = None
    """Heads of the keys and values, shared by groups of queries (arXiv:2305.13245); None: as many as n_head."""
    n_embd: int = 384
    """Width of the residual stream."""
    head_size: int | None = None
    """Width of one head; None: n_embd / n_head."""
    n_hidden: int | None = None
    """Width inside the MLP; None: 4 n_embd, or 8/3 n_embd rounded up to a multiple of 32 for swiglu."""
    block_size: int = 256
    """The longest context, in tokens."""
    vocab_size: int = 65
    """Distinct tokens; `pretrain` takes it from the tokenizer."""
    dropout: float = 0.0
    """Dropout on the embeddings and on what each block adds to the stream."""
    attention_dropout: float = 0.0
    """Dropout on the attention weights; without a compiler, any at all is slow on a CPU."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """GPT-2: layernorm. Llama, Qwen3: rmsnorm."""
    mlp: Literal["relu", "gelu", "swiglu", "relu2"] = "gelu"
    """The lecture: relu. GPT-2: gelu. Llama, Qwen3: swiglu."""
    position: Literal["learned", "rotary"] = "learned"
    """GPT-2: learned. Llama, Qwen3: rotary."""
    qk_norm: bool = False
    """Normalise each head's queries and keys (arXiv:2302.05442). Qwen3: True."""
    bias: bool = True
    """Biases in linear layers and layer norms. GPT-2: True. Llama, Qwen3: False."""
    tie_weights: bool = True
    """The token embedding is also the output matrix (arXiv:1608.05859). GPT-2: True."""
    rope_theta: float = 10_000.0
    """Base of the rotary angles."""
    norm_eps: float = 1e-5
    """Added to the variance in every norm."""

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(self.n_layer <= MAX_LAYERS, f"n_layer is {self.n_layer:,}; it must be at most {MAX_LAYERS:,}")
        most = MAX_BLOCK_SIZE
        require(self.block_size <= most, f"block_size is {self.block_size:,}; it must be at most {most:,}")
        for name in ("n_kv_head", "head_size", "n_hidden"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}; it must be at least 1, or None")
        for name in ("dropout", "attention_dropout"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        require(
            self.head_size is not None or self.n_embd % self.n_head == 0,
            f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}; change one, or give head_size",
        )
        require(
            self.n_head % self.kv_heads() == 0,
            f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}; change one",
        )
        require(
            self.position != "rotary" or self.head_width() % 2 == 0,
            f"head_size {self.head_width()} is odd; rotary positions turn pairs and need an even one",
        )
        require(self.rope_theta > 0, f"rope_theta is {self.rope_theta}; it must be positive")
        require(self.norm_eps > 0, f"norm_eps is {self.norm_eps}; it must be positive")

    def kv_heads(self) -> int:
        """Heads of the keys and values."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    def head_width(self) -> int:
        """D, the width of one head."""
        return self.n_embd // self.n_head if self.head_size is None else self.head_size

    def hidden_width(self) -> int:
        """F, the width inside the MLP."""
        if self.n_hidden is not None:
            return self.n_hidden
        return 32 * math.ceil(self.n_embd * 8 / 3 / 32) if self.mlp == "swiglu" else 4 * self.n_embd


class CausalSelfAttention(nn.Module):
    """Each position asks (q) all earlier ones what they have (k) and takes what fits (v): rungs 3 and 4, fused."""

    def __init__(self, config: GPTConfig, layer: int, rotate: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_size = config.n_head, config.kv_heads(), config.head_width()
        n_heads_in_all = self.n_head + 2 * self.n_kv_head
        self.c_attn = nn.Linear(config.n_embd, n_heads_in_all * self.head_size, bias=config.bias)
        self.c_proj = nn.Linear(self.n_head * self.head_size, config.n_embd, bias=config.bias)
        self.dropout = config.attention_dropout
        self.attend = fused_attention  # while training; from outside, a faster way for the device can be put here

        def head_norm() -> nn.Module:
            return RMSNorm(self.head_size, eps=config.norm_eps) if config.qk_norm else nn.Identity()

        self.q_norm, self.k_norm = head_norm(), head_norm()
        self.rotate = rotate

    def forward(self, x_BTC: Tensor, cache: KVCache | None = None) -> Tensor:
        B, T, _ = x_BTC.shape
        places = cache.places(T) if cache is not None else slice(0, T)
        qkv_BTHD = self.c_attn(x_BTC).view(B, T, -1, self.head_size)
        q, k, v = qkv_BTHD.split((self.n_head, self.n_kv_head, self.n_kv_head), dim=2)
        q_BHTD = self.rotate(self.q_norm(q).transpose(1, 2), places)
        k_BHSD = self.rotate(self.k_norm(k).transpose(1, 2), places)
        v_BHSD = v.transpose(1, 2)
        mask = None
        if cache is not None:
            mask = cache.mask(T)
            k_BHSD, v_BHSD = cache.extend(self.layer, k_BHSD, v_BHSD)
        if self.n_kv_head != self.n_head:
            group = self.n_head // self.n_kv_head
            k_BHSD, v_BHSD = k_BHSD.repeat_interleave(group, 1), v_BHSD.repeat_interleave(group, 1)
        if self.training and cache is None:
            y_BHTD = self.attend(q_BHTD, k_BHSD, v_BHSD, self.dropout)
        else:
            y_BHTD = F.scaled_dot_product_attention(
                q_BHTD, k_BHSD, v_BHSD, attn_mask=mask, is_causal=mask is None and T > 1
            )
        return self.c_proj(y_BHTD.transpose(1, 2).reshape(B, T, -1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Communicate (attention), then compute (MLP); each adds to the stream: rungs 6 and 7."""

    def __init__(self, config: GPTConfig, layer: int, rotate: nn.Module) -> None:
        super().__init__()
        self.ln_1 = make_norm(config.norm, config.n_embd, config.norm_eps, config.bias)
        self.attn = CausalSelfAttention(config, layer, rotate)
        self.ln_2 = make_norm(config.norm, config.n_embd, config.norm_eps, config.bias)
        self.mlp = make_mlp(config.mlp, config.n_embd, config.hidden_width(), config.bias)
        self.drop = Dropout(config.dropout)

    def forward(self, x_BTC: Tensor, cache: KVCache | None = None) -> Tensor:
        x_BTC = x_BTC + self.drop(self.attn(self.ln_1(x_BTC), cache))
        return x_BTC + self.drop(self.mlp(self.ln_2(x_BTC)))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Token ids in, logits out, always. A loss is a function of the logits, and is not computed here.

    Initialisation: weights and embeddings from N(0, 0.02), biases zero, and the two projections of each block that
    write to the stream from N(0, 0.02 / sqrt(2 n_layer)), so that the stream's variance does not grow with depth
    (GPT-2, Radford et al. 2019, section 2.3). Llama-like models of this size are started in the same way.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.positions: LearnedPositions | Unchanged = LearnedPositions(config.block_size, config.n_embd)
            rotate: nn.Module = Unrotated()
        else:
            self.positions = Unchanged()
            # One table for all blocks: of 40,960 places it has 21 MB.
            rotate = Rotary(config.block_size, config.head_width(), config.rope_theta)
        self.drop = Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer, rotate) for layer in range(config.n_layer))
        self.ln_f = make_norm(config.norm, config.n_embd, config.norm_eps, config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight
        self.reset_parameters()

    @property
    def block_size(self) -> int:
        """The longest context, in tokens."""
        return self.config.block_size

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial weights; see the class for the rule and its source."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                shrink = math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(parameter, mean=0.0, std=0.02 / shrink, generator=generator)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.ones_(parameter)

    @torch.no_grad()
    def start_as_identity(self) -> None:
        """Set the projections that write to the stream to zero: each block first passes on what it gets.

        As in modded-nanogpt, after muP's rule for such layers (arXiv:2203.03466, section D.2).
        """
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                parameter.zero_()

    def n_parameters(self) -> int:
        """All trained numbers; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> float:
        """Floating-point operations that training spends on a token: forward and backward, 6 per weight in a matrix
        product and 12 C per layer and visible position, of which a causal model sees half (arXiv:2204.02311, B).
        """
        c = self.config
        looked_up = set() if c.tie_weights else {id(self.wte.weight)}
        if isinstance(self.positions, LearnedPositions):
            looked_up.add(id(self.positions.wpe.weight))
        weights = sum(p.numel() for p in self.parameters() if p.dim() == 2 and id(p) not in looked_up)
        return 6 * weights + 6 * c.n_layer * c.n_head * c.head_width() * c.block_size

    def forward(self, idx_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return logits_BTV: at each position, the scores of the token that comes next.

        Args:
            idx_BT: token ids. With a cache they are the new positions, after those it has read.
            cache: keys and values of earlier positions; it is extended by T.

        Raises:
            ValueError: the positions read and new are more than `block_size`.
        """
        return self.lm_head(self.features(idx_BT, cache))  # type: ignore[no-any-return]

    def set_dropout(self, p: float) -> None:
        """Drop this part of the values from now on, in training, in the embedding and the blocks; not in attention."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.p = p

    def features(self, idx_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return x_BTC: what the logits are read from; another head may read it too. Takes what `forward` takes."""
        T = idx_BT.size(1)
        n_read = cache.length if cache is not None else 0
        if n_read + T > self.config.block_size:
            raise ValueError(f"{n_read} + {T} positions do not fit into a block_size of {self.config.block_size}")
        places = cache.places(T) if cache is not None else slice(0, T)
        x_BTC = self.drop(self.positions(self.wte(idx_BT), places))
        for block in self.h:
            x_BTC = block(x_BTC, cache)
        if cache is not None:
            cache.advance(T)
        return self.ln_f(x_BTC)  # type: ignore[no-any-return]
