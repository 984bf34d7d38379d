"""The sizes of a GPT, and the six choices that make it GPT-2, Llama or Qwen3."""

import math
from dataclasses import dataclass
from typing import Literal

from groundling.errors import require

MAX_LAYERS = 10_000
"""Ten times deeper than any published model; building more would hang."""
MAX_BLOCK_SIZE = 2**22
"""Limit of the rotary tables, which no file of weights bounds."""


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a GPT, and the six choices that make it GPT-2, Llama or Qwen3."""

    n_layer: int = 6
    """Number of transformer blocks."""
    n_head: int = 6
    """Number of query heads."""
    n_kv_head: int | None = None
    """Number of key/value heads, for grouped-query attention (arXiv:2305.13245); None: n_head."""
    n_embd: int = 384
    """Width of the residual stream."""
    head_size: int | None = None
    """Head dimension; None: n_embd / n_head."""
    n_hidden: int | None = None
    """Hidden width of the MLP; None: 4 n_embd, or 8/3 n_embd rounded up to a multiple of 32 for swiglu."""
    block_size: int = 256
    """Maximum context length in tokens."""
    vocab_size: int = 65
    """Vocabulary size; `pretrain` takes it from the tokenizer."""
    dropout: float = 0.0
    """Dropout on the embeddings and on the output of each sublayer."""
    attention_dropout: float = 0.0
    """Dropout on the attention weights; slow on a CPU without a compiler."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Norm: layernorm (GPT-2) or rmsnorm (Llama, Qwen3)."""
    mlp: Literal["relu", "gelu", "swiglu", "relu2"] = "gelu"
    """MLP: relu (the lecture), gelu (GPT-2), swiglu (Llama, Qwen3) or relu2 (squared ReLU)."""
    position: Literal["learned", "rotary"] = "learned"
    """Position encoding: learned (GPT-2) or rotary (Llama, Qwen3)."""
    qk_norm: bool = False
    """Normalize the queries and keys of each head (arXiv:2302.05442). Qwen3: True."""
    bias: bool = True
    """Biases in linear layers and layer norms. GPT-2: True. Llama, Qwen3: False."""
    tie_weights: bool = True
    """Share the token embedding and the LM head (arXiv:1608.05859). GPT-2: True."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-5
    """Epsilon of the norms."""

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
        """Number of key/value heads."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    def head_width(self) -> int:
        """D, the width of one head."""
        return self.n_embd // self.n_head if self.head_size is None else self.head_size

    def hidden_width(self) -> int:
        """F, the hidden width of the MLP."""
        if self.n_hidden is not None:
            return self.n_hidden
        return 32 * math.ceil(self.n_embd * 8 / 3 / 32) if self.mlp == "swiglu" else 4 * self.n_embd
