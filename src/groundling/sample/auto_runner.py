"""Choose the backend: PyTorch at once, the native decoder when it is ready and faster."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from groundling.errors import ConfigError, require
from groundling.model.cache import KVCache
from groundling.model.gpt import GPT
from groundling.sample.filters import exponential_race_of_few
from groundling.sample.native.build import Compilation, Library
from groundling.sample.native.comparison import PROMPT, STREAMS, Comparison, load_or_measure, measure, shape_key
from groundling.sample.native.runner import NativeRunner, can_read
from groundling.sample.quantize import Weights, with_rounded_weights
from groundling.sample.runner import ModelRunner, TokenSpan, TorchRunner, WindowRunner, in_parts
from groundling.system.memory import is_out_of_memory
from groundling.system.progress import Progress
from groundling.system.runtime import unwrap

log = logging.getLogger(__name__)

Native = Literal["auto", "on", "off"]
WORTH_COMPILING_S = 1.0
"""Start compiling after this many seconds of decoding in PyTorch."""
READ_AT_ONCE = 2048
"""Positions to read at once; more would take more memory for activations and be no faster."""


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn an out-of-memory error into one line.

    Raises:
        ConfigError: the system refused the memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        what = str(error).splitlines()[0] if str(error) else "none is left"
        raise ConfigError(
            f"there is not enough memory to continue: {what}; decode fewer texts at a time, ask for fewer new "
            "tokens, or load the model with a smaller --context"
        ) from error


def vocab_size(model: nn.Module) -> int | None:
    """Vocabulary of a GPT, plain, compiled or wrapped; None for other modules."""
    plain = unwrap(model)
    return plain.config.vocab_size if isinstance(plain, GPT) else None


def native_is_faster(model: nn.Module, weights: Weights, n_slots: int) -> bool:
    """Whether the native decoder can run this model here, and is faster than PyTorch. Waits for the compiler."""
    plain = unwrap(model)
    if not (isinstance(plain, GPT) and can_read(plain)):
        return False
    compilation = Compilation()
    library = compilation.wait()
    return library is not None and compare(plain, n_slots, weights, compilation, library).prefers_native


def compare(model: GPT, n_slots: int, weights: Weights, compilation: Compilation, library: Library) -> Comparison:
    """Speed of the native decoder and of PyTorch for models of this shape; measured once, then read from a file.

    Raises:
        ConfigError: there is not enough memory to measure.
    """

    def measured_now() -> Comparison:
        dtype = model.wte.weight.dtype if weights == "float32" else torch.bfloat16
        cache = KVCache(model.config, min(n_slots, STREAMS), dtype)
        for slot in range(cache.n_slots):  # memory for whole windows could take gigabytes
            cache.limit(slot, PROMPT)
        with Progress("timing the native decoder and PyTorch with this model, once"):
            native = NativeRunner(model, cache, weights, library, n_threads=1)
            return measure(native, TorchRunner(model, cache), model.config, n_slots)

    with explain_out_of_memory():
        return load_or_measure(compilation.timings, shape_key(model.config, weights, n_slots), measured_now)


class AutoRunner:
    """A `ModelRunner` for any model.

    Runs a GPT on the CPU by the native decoder if its library is compiled and faster here (`compare`). Without the
    library, PyTorch runs it; after a second of decoding, the compiler starts in the background, and the native decoder
    takes over when it is ready. Both fill the same cache and agree to rounding. So nothing waits for the compiler, and
    short jobs never start it. With bfloat16 weights the two round differently: only the next AutoRunner switches.

    Args:
        model: a GPT, plain, compiled or wrapped; or any module from `idx_BT` to `logits_BTV` with a `block_size`.
        n_slots: sequences it can hold.
        weights: precision of a GPT's matrices; float32: unchanged. Otherwise keys and values are bfloat16, and on
            other devices than the CPU so is the whole model.
        native: "on" waits for the compiler; "off" never uses the native decoder.

    Raises:
        ConfigError: a setting does not fit the model or the machine.
    """

    def __init__(
        self,
        model: nn.Module,
        n_slots: int,
        weights: Weights = "float32",
        native: Native = "auto",
    ) -> None:
        model = unwrap(model)
        self._compilation: Compilation | None = None
        self._compiled: Callable[[Library], ModelRunner] | None = None
        self._compare: Callable[[Library], Comparison]
        self.cache: KVCache | None = None
        """Keys and values of each slot; None for modules other than a GPT."""
        if isinstance(model, GPT):
            with explain_out_of_memory():  # the matrices are packed
                self._runner = self._open(model, n_slots, weights, native)
        elif weights == "float32" and native != "on":
            self._runner = WindowRunner(model, n_slots)
        else:
            raise ConfigError(f"a {type(model).__name__} runs only with weights float32, and native auto or off")
        self._seconds = 0.0

    @property
    def block_size(self) -> int:
        """The longest window of a slot."""
        return self._runner.block_size

    @property
    def is_native(self) -> bool:
        """Whether the native decoder runs the model by now."""
        return isinstance(self._runner, NativeRunner)

    def read(self, spans: Sequence[TokenSpan]) -> Tensor:
        """See `ModelRunner`.

        Raises:
            ConfigError: there is not enough memory.
        """
        start = time.perf_counter()
        with explain_out_of_memory():
            logits_RV = self._read_in_parts(spans)
        if self._compilation is None:
            return logits_RV
        self._seconds += time.perf_counter() - start
        if self._seconds > WORTH_COMPILING_S:
            self._go_on_compiled(self._compilation)
        return logits_RV

    def exponential_race(self, logits_RV: Tensor, t: float, noises: Sequence[Tensor]) -> list[int]:
        """Sample an id of each row; see `filters.exponential_race_of_few`.

        Raises:
            CheckpointError: the logits are not finite.
        """
        if isinstance(self._runner, NativeRunner):
            return self._runner.exponential_race(logits_RV, t, noises)
        ids: list[int] = exponential_race_of_few(logits_RV, t, torch.stack(list(noises))).tolist()
        return ids

    def copy(self, source: int, target: int, n_positions: int) -> None:
        """See `ModelRunner`."""
        self._runner.copy(source, target, n_positions)

    def _read_in_parts(self, spans: Sequence[TokenSpan]) -> Tensor:
        """Read at most `READ_AT_ONCE` positions at a time, to bound the memory for activations."""
        if self.cache is None or sum(len(span.ids) for span in spans) <= READ_AT_ONCE:
            return self._runner.read(spans)
        for slot, position, ids, _ in spans:  # all at once, so that growing caches are not copied repeatedly
            self.cache.reserve(slot, position + len(ids))
        parts = in_parts(spans, READ_AT_ONCE)
        return torch.cat([scores for part, wanted in parts for scores in [self._runner.read(part)] if wanted])

    def _open(self, model: GPT, n_slots: int, weights: Weights, native: Native) -> ModelRunner:
        own = model.wte.weight
        cache = KVCache(model.config, n_slots, own.dtype if weights == "float32" else torch.bfloat16, own.device)
        self.cache = cache
        if can_read(model) and native != "off":
            threads = torch.get_num_threads()
            compilation = Compilation()
            library = compilation.wait() if native == "on" else compilation.library()
            self._compare = lambda library: compare(model, n_slots, weights, compilation, library)
            if library is not None and (native == "on" or self._prefers(library)):
                return NativeRunner(model, cache, weights, library, threads)
            require(native != "on", f"{compilation.reason}; leave native at auto, and PyTorch decodes")
            if library is None:
                # With bfloat16 weights the native decoder may round more, so do not switch in the middle of a text.
                self._takes_over = weights != "bfloat16"
                self._compilation = compilation
                self._compiled = lambda library: NativeRunner(model, cache, weights, library, threads)
        require(
            native != "on" or can_read(model), f"only float32 on a CPU is compiled, not {own.dtype} on {own.device}"
        )
        if weights == "float32":
            return TorchRunner(model, cache)
        rounded = with_rounded_weights(model, weights)
        return TorchRunner(rounded if own.device.type == "cpu" else rounded.to(torch.bfloat16), cache)

    def _prefers(self, library: Library) -> bool:
        """Whether the native decoder is faster; logs if it is not."""
        comparison = self._compare(library)
        if not comparison.prefers_native:
            log.info(f"decoding with PyTorch, {1 / comparison.speedup:.1f} times as fast here as the native decoder")
        return comparison.prefers_native

    def _go_on_compiled(self, compilation: Compilation) -> None:
        """Start the compiler, or switch to the native decoder if it is ready."""
        compilation.start()
        library = compilation.library()
        if library is None and not compilation.reason:
            return
        if library is None:
            log.info(f"decoding with PyTorch, which is slower: {compilation.reason}")
        elif self._takes_over and self._prefers(library):
            assert self._compiled is not None
            self._runner = self._compiled(library)
        self._compilation = self._compiled = None
