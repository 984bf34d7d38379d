"""Which reader reads: PyTorch at once, and compiled code as soon as there is any."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from groundling.errors import ConfigError
from groundling.model.cache import KVCache
from groundling.model.gpt import GPT
from groundling.runtime import unwrap
from groundling.sample.native.library import Compilation
from groundling.sample.native.reader import NativeReader, can_read
from groundling.sample.quantize import Weights, with_rounded_weights
from groundling.sample.readers import Piece, Reader, TorchReader, WindowReader

Native = Literal["auto", "on", "off"]


class Backend:
    """A reader for any model: a `Reader`.

    A GPT on the CPU is read by compiled code. Until that is there (a machine's first time takes seconds) and where it
    cannot be, PyTorch reads, into the same cache; so nothing ever waits for a compiler. Both agree to rounding.

    Args:
        model: a GPT, plain, compiled or wrapped; or any module from `idx_BT` to `logits_BTV` with a `block_size`.
        n_slots: how many sequences it can hold.
        weights: the precision of a GPT's matrices. Keys and values are kept in bfloat16 if this is not float32.
        native: "auto"; "on" waits for the compiled code, and "off" does without.
        say: prints a line for people, should compiled code be impossible.

    Raises:
        ConfigError: what was asked for cannot be.
    """

    def __init__(
        self,
        model: nn.Module,
        n_slots: int,
        weights: Weights = "float32",
        native: Native = "auto",
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._model, self._weights, self._say = unwrap(model), weights, say
        self._compilation: Compilation | None = None
        if isinstance(self._model, GPT):
            self._open(self._model, n_slots, native)
        elif weights != "float32" or native == "on":
            raise ConfigError(
                f"a {type(self._model).__name__} is read as it is: weights float32 and native auto or off"
            )
        else:
            self._reader: Reader = WindowReader(self._model, n_slots)

    @property
    def block_size(self) -> int:
        """The longest window of a slot."""
        return self._reader.block_size

    @property
    def is_native(self) -> bool:
        """Whether compiled code reads by now."""
        return isinstance(self._reader, NativeReader)

    def read(self, pieces: Sequence[Piece]) -> Tensor:
        """See `Reader`."""
        if self._compilation is not None:
            self._compiled()
        return self._reader.read(pieces)

    def copy(self, source: int, target: int, n_positions: int) -> None:
        """See `Reader`."""
        self._reader.copy(source, target, n_positions)

    def _open(self, model: GPT, n_slots: int, native: Native) -> None:
        weight = model.wte.weight
        dtype = weight.dtype if self._weights == "float32" else torch.bfloat16
        self._cache = KVCache(model.config, n_slots, dtype, weight.device)
        if native == "off" or not can_read(model):
            if native == "on":
                raise ConfigError(
                    f"only a float32 model on the CPU can be compiled, not {weight.dtype} on {weight.device}"
                )
        else:
            self._compilation = Compilation()
            if native == "on" and self._compilation.wait() is None:
                raise ConfigError(f"{self._compilation.reason}; leave native at auto, and PyTorch decodes")
            if self._compiled():
                return
        if self._weights != "float32":
            model = with_rounded_weights(model, self._weights)
            if weight.device.type != "cpu":
                model = model.to(torch.bfloat16)
        self._reader = TorchReader(model, self._cache)

    def _compiled(self) -> bool:
        """Take the compiled code if it is ready; returns whether it was."""
        assert self._compilation is not None
        library = self._compilation.library()
        if library is not None:
            assert isinstance(self._model, GPT)
            threads = torch.get_num_threads()
            self._reader = NativeReader(self._model, self._cache, self._weights, library, threads)
        elif self._compilation.reason:
            self._say(f"decoding with PyTorch, which is slower: {self._compilation.reason}")
        else:
            return False
        self._compilation = None
        return library is not None
