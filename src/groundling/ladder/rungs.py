"""The ladder as a table: what each rung adds, the lecture's training settings, and its loss."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from groundling.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One rung of the ladder, with the lecture's settings for training it."""

    name: str
    """s1 to s9."""
    title: str
    """Short name of the idea."""
    adds: str
    """What it adds to the rung before."""
    module: str
    """Module of this package with the rung's code."""
    model: str
    """Callable in that module that builds the model from a vocabulary size."""
    steps: int = 5000
    """Optimizer steps."""
    lr: float = 1e-3
    """Constant learning rate."""
    batch_size: int = 32
    """Sequences in one step."""
    lecture_val_loss: float | None = None
    """Validation loss reported by the lecture (nats per character, random batches); None if not reported."""

    def build(self, vocab_size: int) -> "nn.Module":
        """Build the model in the lecture's size; initial weights come from PyTorch's default generator.

        It maps `idx_BT` to `logits_BTV` and has a `block_size`.
        """
        module = importlib.import_module(f"{__package__}.{self.module}")
        model: nn.Module = getattr(module, self.model)(vocab_size)
        return model

    def path(self) -> Path:
        """Return the path of the rung's source file."""
        return Path(__file__).with_name(f"{self.module}.py")


def find_rung(name: str) -> Rung:
    """Return a rung by name.

    Raises:
        ConfigError: no rung has this name.
    """
    if name not in RUNGS:
        raise ConfigError(f"no rung {name!r}; the rungs are: {', '.join(RUNGS)}")
    return RUNGS[name]


RUNGS: dict[str, Rung] = {
    rung.name: rung
    for rung in (
        Rung(
            name="s1",
            title="Bigram",
            adds="a V x V table",
            module="s1_bigram",
            model="BigramModel",
            steps=3000,
            lr=1e-2,
            lecture_val_loss=2.5,
        ),
        Rung(
            name="s2",
            title="Embeddings",
            adds="token and position embeddings, lm_head",
            module="s2_embeddings",
            model="EmbeddingModel",
        ),
        Rung(
            name="s3",
            title="One head",
            adds="one head of self-attention",
            module="s3_one_head",
            model="OneHeadModel",
            lecture_val_loss=2.4,
        ),
        Rung(
            name="s4",
            title="Multi-head",
            adds="heads in parallel, concatenated",
            module="s4_multi_head",
            model="MultiHeadModel",
            lecture_val_loss=2.28,
        ),
        Rung(
            name="s5",
            title="Feed-forward",
            adds="a per-token MLP",
            module="s5_feed_forward",
            model="FeedForwardModel",
            lecture_val_loss=2.24,
        ),
        Rung(
            name="s6",
            title="Residuals",
            adds="residuals, projections, 4x inner width, 3 blocks",
            module="s6_residual",
            model="ResidualModel",
            lecture_val_loss=2.08,
        ),
        Rung(
            name="s7",
            title="LayerNorm",
            adds="pre-norm LayerNorm and a final norm",
            module="s7_layer_norm",
            model="LayerNormModel",
            lecture_val_loss=2.06,
        ),
        Rung(
            name="s8",
            title="Scaled up",
            adds="dropout; 6 layers, 6 heads, n_embd 384, block_size 256",
            module="s8_scaled",
            model="ScaledModel",
            lr=3e-4,
            batch_size=64,
            lecture_val_loss=1.48,
        ),
        Rung(
            name="s9",
            title="Production",
            adds="fused attention, cache, compile: the same function, faster",
            module="s9_production",
            model="fresh_gpt",
            lr=3e-4,
            batch_size=64,
            lecture_val_loss=1.48,
        ),
    )
}
"""The rungs in order."""
