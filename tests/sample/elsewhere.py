"""A device that is not the CPU, on a machine that has no other: what a GPU forbids is an error; numbers are real."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

PLACE = torch.device("meta")
"""The name that it goes by; nothing is computed by PyTorch's own device of this name."""
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.lift_fresh.default)


class There(Tensor):
    """A tensor that lies there."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "There":
        if inner.dtype == torch.float64:
            raise TypeError("there is no float64 here, as on Apple's GPUs")
        with torch.inference_mode(False):  # or else a view of a weight could not be one
            own = Tensor._make_wrapper_subclass(
                cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=PLACE, requires_grad=False
            )
        own.inner = inner
        return own

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Made(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Said(TorchFunctionMode):
    """`torch.tensor` goes past the dispatcher."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == PLACE:
            return There(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[None]:
    """While it lasts, what is made on the device lies there."""
    with _Made(), _Said():
        yield


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, There)]
    if there and func not in MOVES and any(not isinstance(each, There) and each.dim() for each in tensors):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    target = kwargs.get("device")
    goes = bool(there) if target is None else torch.device(target) == PLACE
    own = {**kwargs, "device": torch.device("cpu")} if target is not None else kwargs
    made = func(*tree_map(_inner, args), **tree_map(_inner, own))
    return tree_map(lambda each: There(each) if isinstance(each, Tensor) else each, made) if goes else made


def _inner(each: Any) -> Any:
    return each.inner if isinstance(each, There) else each


def sent_there(model: nn.Module) -> None:
    """Move a model."""
    moved: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                new = moved.setdefault(parameter, nn.Parameter(There(parameter.detach()), requires_grad=False))
                module._parameters[name] = new  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = There(buffer)
