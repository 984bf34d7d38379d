"""Trained weights, optimizer state and random generators as named tensors, for checkpoints.

The names: `weights|NAME`, `optimizer|NAME|WHAT`, `generator|RANK|KIND`.
"""

import torch
from torch import Tensor, nn

from groundling.errors import CheckpointError
from groundling.system import distributed
from groundling.train.optim.optimizers import Optimizers


def weight_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters."""
    learned = ((name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad)
    return {f"weights|{name}": tensor.detach().contiguous() for name, tensor in learned}


def optimizer_tensors(optimizers: Optimizers) -> dict[str, Tensor]:
    """The optimizers' state."""
    return {f"optimizer|{key}": value for key, value in optimizers.state_tensors().items()}


def learned_tensors(model: nn.Module, optimizers: Optimizers, prefix: str = "") -> dict[str, Tensor]:
    """Trainable parameters and optimizer state, with a prefix before each name. See `restore_learned`."""
    learned = weight_tensors(model) | optimizer_tensors(optimizers)
    return {f"{prefix}{name}": tensor for name, tensor in learned.items()}


def generator_tensors(device: torch.device) -> dict[str, Tensor]:
    """The generator states of all ranks, from which dropout draws. All ranks call this together."""
    tensors = dict[str, Tensor]()
    for kind, value in _generators(device).items():
        for rank, of_rank in enumerate(distributed.gather_tensors(value.to(device))):
            tensors[f"generator|{rank}|{kind}"] = of_rank.cpu()
    return tensors


def restore_learned(model: nn.Module, optimizers: Optimizers, tensors: dict[str, Tensor], prefix: str = "") -> None:
    """Restore what `learned_tensors` returned with this prefix.

    Raises:
        CheckpointError: the tensors belong to another model.
    """
    given = with_prefix(tensors, f"{prefix}weights|")
    learned = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    for name in {**learned, **given}:
        kinds = [None if each is None else (each.shape, each.dtype) for each in (learned.get(name), given.get(name))]
        if kinds[0] != kinds[1]:
            raise CheckpointError(f"its weight {name} is {kinds[1]}, and the model's {kinds[0]}")
    with torch.no_grad():
        for name, tensor in learned.items():
            tensor.copy_(given[name])
    optimizers.load_state_tensors(with_prefix(tensors, f"{prefix}optimizer|"))


def restore_generators(tensors: dict[str, Tensor]) -> None:
    """Restore this rank's generators."""
    states = with_prefix(tensors, f"generator|{distributed.rank()}|")
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _generators(device: torch.device) -> dict[str, Tensor]:
    """The states of PyTorch's global generators, as bytes."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states
