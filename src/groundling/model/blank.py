"""A GPT whose weights are about to come from elsewhere."""

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from groundling.model.gpt import GPT, GPTConfig


def blank_gpt(config: GPTConfig, device: torch.device | str = "cpu") -> GPT:
    """A GPT with its tables and no weights: what its parameters hold is arbitrary.

    Drawing weights takes as long as reading them, needs a generator, and on the device "meta" (a mere outline, which
    costs no memory) it makes PyTorch load its compiler, for more than a second.
    """
    with torch.device(device), _WithoutDrawing():
        return GPT(config)


class _WithoutDrawing(TorchFunctionMode):
    """Initialisers do nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
