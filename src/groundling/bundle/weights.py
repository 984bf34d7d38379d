"""A model's weights as a file of safetensors: written under plain names, read only where names and shapes fit."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from groundling.errors import CheckpointError
from groundling.storage.tensors import read_tensors
from groundling.system.runtime import unwrap


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """A model's weights under the names of the plain model, whatever wraps it; a tied matrix once.

    `torch.compile` puts `_orig_mod.` before names and data parallelism `module.`; a file that kept them could be
    loaded only by a model wrapped in the same way. Of a model that is sharded over ranks, the whole tensors are
    gathered; all ranks call this together then.
    """
    state: dict[str, Tensor] = unwrap(model).state_dict(keep_vars=True)
    first_names: dict[int, str] = {}
    for name, tensor in state.items():
        first_names.setdefault(id(tensor), name)
    # Blocks that were compiled one by one carry the prefix in the middle of their names.
    return {name.replace("_orig_mod.", ""): _whole(state[name].detach()) for name in first_names.values()}


def read_weights(file: Path, model: nn.Module) -> dict[str, Tensor]:
    """Read weights whose names and shapes are exactly those of `model`'s `plain_state_dict`.

    They go into the plain model by `load_state_dict(..., strict=False)`: a tied matrix is there once.

    Raises:
        CheckpointError: this is not a safetensors file, or it belongs to another model.
    """
    weights = read_tensors(file)
    require_fit(weights, model, file)
    return weights


def require_fit(weights: Mapping[str, Tensor], model: nn.Module, file: Path) -> None:
    """Check that the names and shapes of weights are exactly those of `model`'s `plain_state_dict`.

    Raises:
        CheckpointError: they are not; `file` is where they were read.
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


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that lies on this rank in one piece: a sharded one (DTensor) has no memory of its own to be written."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.contiguous()
