"""Low-rank adapters (LoRA, arXiv:2106.09685).

W is frozen and B A is trained; everything that reads `linear.weight` sees W + (alpha / rank) B A, so decoding, export
and inspection need no code for adapters. Either the sum is saved, or the adapter alone.

Why not peft: it depends on transformers and accelerate, for what `torch.nn.utils.parametrize` does in a few lines.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from groundling.bundle.adapter import Adapter, add_low_rank
from groundling.errors import require
from groundling.model.gpt import GPT


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA adapters (arXiv:2106.09685)."""

    rank: int | None = None
    """LoRA rank of the adapters in the blocks; the chat token embeddings are trained, too. None: train all weights."""
    alpha: float | None = None
    """LoRA alpha: adapters are scaled by alpha / rank. None: twice the rank."""
    keep: bool = False
    """Save the adapter alone, with a reference to its base model; otherwise merge it into the model."""

    def __post_init__(self) -> None:
        require(self.rank is None or self.rank >= 1, f"lora.rank is {self.rank}; it must be at least 1, or None")
        require(self.alpha is None or self.alpha > 0, f"lora.alpha is {self.alpha}; it must be positive, or None")
        require(self.alpha is None or self.rank is not None, "lora.alpha needs lora.rank")
        require(self.rank is not None or not self.keep, "lora.keep needs lora.rank: without it there is no adapter")

    def scale(self) -> float:
        """Factor of B A."""
        assert self.rank is not None
        return 2.0 if self.alpha is None else self.alpha / self.rank


class LowRank(nn.Module):
    """Add a low-rank matrix to a weight; initially zero, since B is."""

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        n_out, n_in = weight.shape
        a = torch.empty(rank, n_in).uniform_(-1, 1, generator=generator) * math.sqrt(3 / n_in)
        self.a = nn.Parameter(a.to(weight))
        self.b = nn.Parameter(weight.new_zeros(n_out, rank))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        return add_low_rank(weight, self.a, self.b, self.scale)


class LearnedRows(nn.Module):
    """Train only the last rows of an embedding."""

    def __init__(self, weight: Tensor, n_frozen: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(weight[n_frozen:].detach().clone())
        self.n_frozen = n_frozen

    def forward(self, weight: Tensor) -> Tensor:
        return torch.cat([weight[: self.n_frozen], self.rows])


def adapt(model: GPT, config: LoraConfig, n_known_ids: int, seed: int) -> None:
    """Freeze a model except for adapters and the embeddings of ids from `n_known_ids` on; without a rank, do nothing.

    Raises:
        ConfigError: the rank is higher than that of any matrix.
    """
    if config.rank is None:
        return
    most = max(min(linear.weight.shape) for linear in _block_linears(model))
    require(config.rank <= most, f"lora.rank is {config.rank}; the model's matrices have at most a rank of {most}")
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for linear in _block_linears(model):
        parametrize.register_parametrization(
            linear, "weight", LowRank(linear.weight, config.rank, config.scale(), generator)
        )
    if n_known_ids >= model.config.vocab_size:
        return
    rows = LearnedRows(model.wte.weight, n_known_ids)
    parametrize.register_parametrization(model.wte, "weight", rows)
    if model.config.tie_weights:  # one parameter and one parametrization for both
        del model.lm_head.weight
        parametrize.register_parametrization(_with_weight(model.lm_head, model.wte), "weight", rows)
    else:
        parametrize.register_parametrization(model.lm_head, "weight", LearnedRows(model.lm_head.weight, n_known_ids))


def _with_weight(linear: nn.Linear, embedding: nn.Embedding) -> nn.Linear:
    linear.weight = embedding.parametrizations.weight.original  # type: ignore[union-attr,assignment]
    return linear


@torch.no_grad()
def merged_state(model: GPT) -> dict[str, Tensor]:
    """Weights under plain names with the adapters merged; the model is unchanged."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        head, found, tail = name.partition(".parametrizations.weight.")
        if not found:
            state[name] = tensor
        elif tail == "original":
            state[f"{head}.weight"] = model.get_submodule(head).weight.detach()  # type: ignore[operator]
    return state


def adapter_of(model: GPT, config: LoraConfig) -> Adapter:
    """The trained adapter of a model that `adapt` has changed."""
    low_rank: dict[str, tuple[Tensor, Tensor]] = {}
    rows: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module, "weight"):
            continue
        (learned,) = module.parametrizations.weight
        if isinstance(learned, LowRank):
            low_rank[f"{name}.weight"] = (learned.a.detach(), learned.b.detach())
        elif not (module is model.lm_head and model.config.tie_weights):
            rows[f"{name}.weight"] = learned.rows.detach()
    return Adapter(low_rank, rows, config.scale())


def _block_linears(model: GPT) -> Iterator[nn.Linear]:
    for block in model.h:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                yield module
