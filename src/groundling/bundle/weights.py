"""Weights under the names of the unwrapped model, with strict checks of names and shapes."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from groundling.errors import CheckpointError
from groundling.storage.tensors import read_tensors
from groundling.system.runtime import unwrap


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights under the names of the unwrapped model; a tied matrix is included once.

    Removes the prefixes of `torch.compile` (`_orig_mod.`) and DDP (`module.`), so any model can load the file. Sharded
    tensors are gathered; all ranks must call this together.
    """
    state: dict[str, Tensor] = unwrap(model).state_dict(keep_vars=True)
    first_names: dict[int, str] = {}
    for name, tensor in state.items():
        first_names.setdefault(id(tensor), name)
    # Blocks that are compiled individually have the prefix in the middle of their names.
    return {name.replace("_orig_mod.", ""): _gathered(state[name].detach()) for name in first_names.values()}


def read_weights(file: Path, model: nn.Module) -> dict[str, Tensor]:
    """Read weights with exactly the names and shapes of `plain_state_dict(model)`.

    Load them with `load_state_dict(..., strict=False)`, because a tied matrix is stored once.

    Raises:
        CheckpointError: the file is not safetensors, or does not fit the model.
    """
    weights = read_tensors(file)
    require_fit(weights, model, file)
    return weights


def require_fit(weights: Mapping[str, Tensor], model: nn.Module, file: Path) -> None:
    """Check that weights have exactly the names and shapes of `plain_state_dict(model)`.

    Raises:
        CheckpointError: they differ; `file` is named in the error.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in plain_state_dict(model).items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [
        f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{file} does not fit the model: {'; '.join(wrong[:3])}{more}")


def _gathered(tensor: Tensor) -> Tensor:
    """The whole tensor, contiguous on this rank; a DTensor is gathered."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.contiguous()
