"""The optimizers of a model: AdamW with decay groups, and Muon for the matrices inside the blocks."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from groundling.errors import CheckpointError, require
from groundling.train.optim.muon import POLAR_EXPRESS, Muon


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizers."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw (arXiv:1711.05101), or muon for the matrices in the blocks and adamw for the rest."""
    lr: float = 1e-3
    """AdamW: peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW: betas."""
    eps: float = 1e-8
    """AdamW: epsilon."""
    weight_decay: float = 0.1
    """AdamW: weight decay of matrices and embeddings; of norms and biases only with decay_all."""
    decay_all: bool = False
    """Apply weight decay to norms and biases, too, as torch.optim.AdamW(model.parameters()) does."""
    muon_lr: float = 0.02
    """Muon: peak learning rate."""
    muon_momentum: float = 0.95
    """Muon: momentum."""
    muon_weight_decay: float = 0.0
    """Muon: weight decay."""
    muon_iterations: int = 3
    """Muon: orthogonalization iterations, at most 5."""
    muon_neuron_beta: float | None = None
    """NorMuon: beta of the per-neuron second moment, for example 0.95; None: plain Muon."""

    def __post_init__(self) -> None:
        for name in ("lr", "muon_lr", "eps"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"optim.{name} is {value}; it must be positive, and finite")
        for name in ("weight_decay", "muon_weight_decay"):
            require(getattr(self, name) >= 0, f"optim.{name} is {getattr(self, name)}; it must be at least 0")
        for value in (*self.betas, self.muon_momentum):
            require(0 <= value < 1, f"a beta or momentum is {value}; each must be in [0, 1)")
        beta = self.muon_neuron_beta
        require(beta is None or 0 <= beta < 1, f"optim.muon_neuron_beta is {beta}; it must be in [0, 1), or None")
        most = len(POLAR_EXPRESS)
        require(
            1 <= self.muon_iterations <= most,
            f"optim.muon_iterations is {self.muon_iterations}; it must be 1 to {most}",
        )


class Optimizers:
    """All optimizers of a model as one: they step together, share a schedule, and save state by parameter name."""

    def __init__(self, model: nn.Module, config: OptimConfig, matmul_dtype: torch.dtype = torch.float32) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        """The trainable parameters, in the model's order."""
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        matrices, decayed, others = split_parameters(model, muon=config.kind == "muon")
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": config.weight_decay if config.decay_all else 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self._parts: list[torch.optim.Optimizer] = []
        if groups:
            fused = decayed[0].device.type in ("cpu", "cuda") if decayed else False
            self._parts.append(torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused))
        if matrices:
            self._parts.append(
                Muon(
                    matrices,
                    lr=config.muon_lr,
                    momentum=config.muon_momentum,
                    weight_decay=config.muon_weight_decay,
                    iterations=config.muon_iterations,
                    neuron_beta=config.muon_neuron_beta,
                    dtype=matmul_dtype,
                )
            )
        for part in self._parts:
            for group in part.param_groups:
                group["peak_lr"] = group["lr"]

    def step(self, lr_factor: float) -> None:
        """Make one update at `lr_factor` times the peak learning rates."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = group["peak_lr"] * lr_factor
            part.step()

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """The optimizers' state, as `parameter name|key` -> tensor."""
        return {
            f"{self._names[id(parameter)]}|{key}": value
            for part in self._parts
            for parameter, state in part.state.items()
            for key, value in state.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` returned.

        Raises:
            CheckpointError: a tensor is for an unknown parameter, or of another shape or type.
        """
        owners = {
            self._names[id(parameter)]: (part, parameter)
            for part in self._parts
            for group in part.param_groups
            for parameter in group["params"]
        }
        found: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors.items():
            name, _, what = key.rpartition("|")
            if name not in owners:
                raise CheckpointError(f"the optimizer's state is for {name!r}, which this model does not have")
            found[name][what] = value
        for name, state in found.items():
            part, parameter = owners[name]
            _require_whole(part, parameter, name, state)
            for what, value in state.items():
                device = "cpu" if what == "step" and parameter.device.type == "cpu" else parameter.device
                part.state[parameter][what] = value.to(device)


def _require_whole(part: torch.optim.Optimizer, parameter: Tensor, name: str, state: dict[str, Tensor]) -> None:
    """Check that the state of a parameter has the keys, shapes and types that the optimizer itself creates."""
    like = torch.empty_like(parameter, device="meta")
    adam = {"step": torch.empty((), dtype=torch.float32, device="meta"), "exp_avg": like, "exp_avg_sq": like}
    expected = part.initial_state(like) if isinstance(part, Muon) else adam
    if state.keys() != expected.keys():
        raise CheckpointError(
            f"the optimizer's state of {name!r} is {', '.join(sorted(state))}; expected {', '.join(sorted(expected))}"
        )
    for what, wanted in expected.items():
        kinds = [(each.dtype, tuple(each.shape)) for each in (state[what], wanted)]
        if kinds[0] != kinds[1]:
            raise CheckpointError(f"the optimizer's {what} of {name!r} is {kinds[0]}, expected {kinds[1]}")


def split_parameters(model: nn.Module, *, muon: bool) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Split a model's parameters into Muon's matrices, AdamW's decayed ones, and AdamW's others.

    Muon takes the matrices of linear layers except the output projection, which like an embedding has one row per
    token. Tensors of two or more dimensions decay; norms and biases do not.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    tables |= {id(p) for name, p in model.named_parameters() if name.startswith("lm_head.")}
    matrices: list[Tensor] = []
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if muon and parameter.dim() == 2 and id(parameter) not in tables:
            matrices.append(parameter)
        else:
            (decayed if parameter.dim() >= 2 else others).append(parameter)
    return matrices, decayed, others
