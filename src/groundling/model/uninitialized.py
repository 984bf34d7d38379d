"""A GPT with uninitialised weights, for loading them or for counting parameters."""

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from groundling.errors import ConfigError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT


def blank_gpt(config: GPTConfig, device: torch.device | str = "cpu") -> GPT:
    """A GPT with uninitialised parameters; buffers are computed.

    Drawing weights takes as long as loading them and advances a generator. On the device "meta" (shapes only, no
    memory) it also makes PyTorch import its compiler, which takes more than a second.
    """
    with torch.device(device), _WithoutDrawing():
        return GPT(config)


def count_parameters(config: GPTConfig) -> int:
    """Number of parameters of a GPT, extrapolated from one and two layers; a tied matrix counts once.

    Raises:
        ConfigError: the sizes overflow.
    """
    try:
        one, two = (
            blank_gpt(dataclasses.replace(config, n_layer=n, block_size=1), "meta").n_parameters() for n in (1, 2)
        )
    except RuntimeError as error:
        raise ConfigError(f"these are sizes that no machine can hold: {str(error).splitlines()[0]}") from error
    positions = (config.block_size - 1) * config.n_embd if config.position == "learned" else 0
    return one + positions + (config.n_layer - 1) * (two - one)


class _WithoutDrawing(TorchFunctionMode):
    """Make `nn.init` functions return their tensor unchanged."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
