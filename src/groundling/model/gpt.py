"""The production model: a decoder-only transformer that its config makes GPT-2, Llama or Qwen3.

Shapes: B batch, T new positions, S all positions attended to, C n_embd, H heads, D head_size, V vocabulary, F hidden.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundling.model.attention import fused_attention
from groundling.model.config import GPTConfig
from groundling.model.context import AttentionContext
from groundling.model.dropout import Dropout
from groundling.model.layers import LearnedPositions, NoPositions, NoRotation, RMSNorm, Rotary, make_mlp, make_norm


class CausalSelfAttention(nn.Module):
    """Multi-head causal self-attention: rungs 3 and 4 in one matrix product."""

    def __init__(self, config: GPTConfig, layer: int, rotate: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_size = config.n_head, config.kv_heads(), config.head_width()
        n_heads_qkv = self.n_head + 2 * self.n_kv_head
        self.c_attn = nn.Linear(config.n_embd, n_heads_qkv * self.head_size, bias=config.bias)
        self.c_proj = nn.Linear(self.n_head * self.head_size, config.n_embd, bias=config.bias)
        self.dropout = config.attention_dropout
        self.attend = fused_attention  # for training; compile_objective may replace it by a faster one for the device

        def head_norm() -> nn.Module:
            return RMSNorm(self.head_size, eps=config.norm_eps) if config.qk_norm else nn.Identity()

        self.q_norm, self.k_norm = head_norm(), head_norm()
        self.rotate = rotate

    def forward(self, x_BTC: Tensor, context: AttentionContext | None = None) -> Tensor:
        B, T, _ = x_BTC.shape
        positions = context.positions(T) if context is not None else slice(0, T)
        qkv_BTHD = self.c_attn(x_BTC).view(B, T, -1, self.head_size)
        q, k, v = qkv_BTHD.split((self.n_head, self.n_kv_head, self.n_kv_head), dim=2)
        q_BHTD = self.rotate(self.q_norm(q).transpose(1, 2), positions)
        k_BHSD = self.rotate(self.k_norm(k).transpose(1, 2), positions)
        v_BHSD = v.transpose(1, 2)
        mask = None
        if context is not None:
            mask = context.mask(T)
            k_BHSD, v_BHSD = context.extend(self.layer, k_BHSD, v_BHSD)
        if self.n_kv_head != self.n_head:
            group = self.n_head // self.n_kv_head
            k_BHSD, v_BHSD = k_BHSD.repeat_interleave(group, 1), v_BHSD.repeat_interleave(group, 1)
        if self.training and context is None:
            y_BHTD = self.attend(q_BHTD, k_BHSD, v_BHSD, self.dropout)
        else:
            y_BHTD = F.scaled_dot_product_attention(
                q_BHTD, k_BHSD, v_BHSD, attn_mask=mask, is_causal=mask is None and T > 1
            )
        return self.c_proj(y_BHTD.transpose(1, 2).reshape(B, T, -1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention (communication), then an MLP (computation), each added to the residual stream: rungs 6 and 7."""

    def __init__(self, config: GPTConfig, layer: int, rotate: nn.Module) -> None:
        super().__init__()
        self.ln_1 = make_norm(config.norm, config.n_embd, config.norm_eps, config.bias)
        self.attn = CausalSelfAttention(config, layer, rotate)
        self.ln_2 = make_norm(config.norm, config.n_embd, config.norm_eps, config.bias)
        self.mlp = make_mlp(config.mlp, config.n_embd, config.hidden_width(), config.bias)
        self.drop = Dropout(config.dropout)

    def forward(self, x_BTC: Tensor, context: AttentionContext | None = None) -> Tensor:
        x_BTC = x_BTC + self.drop(self.attn(self.ln_1(x_BTC), context))
        return x_BTC + self.drop(self.mlp(self.ln_2(x_BTC)))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Token ids in, logits out. Losses are functions of the logits, computed elsewhere.

    Initialisation: weights and embeddings from N(0, 0.02), biases zero, and the two projections of each block that
    write to the residual stream from N(0, 0.02 / sqrt(2 n_layer)), so that its variance does not grow with depth
    (GPT-2, Radford et al. 2019, section 2.3). Llama-like models are initialised in the same way.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.positions: LearnedPositions | NoPositions = LearnedPositions(config.block_size, config.n_embd)
            rotate: nn.Module = NoRotation()
        else:
            self.positions = NoPositions()
            # One table for all blocks: 21 MB for 40,960 positions.
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
        """Draw the initial weights, as described in the class docstring."""
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
        """Zero the projections that write to the residual stream, so that each block starts as the identity.

        As in modded-nanogpt, after muP's rule for these layers (arXiv:2203.03466, section D.2).
        """
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                parameter.zero_()

    def n_parameters(self) -> int:
        """Number of parameters; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self) -> float:
        """FLOPs of the forward and backward pass per token (arXiv:2204.02311, appendix B).

        6 per weight in a matrix product, and 12 C per layer and position attended to: half of the context on average.
        """
        c = self.config
        looked_up = set() if c.tie_weights else {id(self.wte.weight)}
        if isinstance(self.positions, LearnedPositions):
            looked_up.add(id(self.positions.wpe.weight))
        weights = sum(p.numel() for p in self.parameters() if p.dim() == 2 and id(p) not in looked_up)
        return 6 * weights + 6 * c.n_layer * c.n_head * c.head_width() * c.block_size

    def forward(self, idx_BT: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Return the logits of each position's next token (BTV).

        Args:
            idx_BT: token ids of the new positions.
            context: what they attend to besides each other: a KV cache, which the pass extends by T, or the layout of
                packed rows. None: idx_BT is the whole window.

        Raises:
            ValueError: past and new positions exceed `block_size`.
        """
        return self.lm_head(self.features(idx_BT, context))  # type: ignore[no-any-return]

    def set_dropout(self, p: float) -> None:
        """Set the dropout probability of the embedding and the blocks, but not of attention."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.p = p

    def features(self, idx_BT: Tensor, context: AttentionContext | None = None) -> Tensor:
        """Return the final hidden states (BTC), the input of `lm_head` or another head. Arguments as for `forward`."""
        T = idx_BT.size(1)
        n_read = context.length if context is not None else 0
        if n_read + T > self.config.block_size:
            raise ValueError(f"{n_read} + {T} positions do not fit into a block_size of {self.config.block_size}")
        positions = context.positions(T) if context is not None else slice(0, T)
        x_BTC = self.drop(self.positions(self.wte(idx_BT), positions))
        for block in self.h:
            x_BTC = block(x_BTC, context)
        if context is not None:
            context.advance(T)
        return self.ln_f(x_BTC)  # type: ignore[no-any-return]
