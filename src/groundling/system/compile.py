"""Compilation of functions by PyTorch, and going on without it where it fails."""

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from groundling.system.runtime import Runtime

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
_COMPILER_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "cpp.vec_isa_ok": True,  # what the processor has, PyTorch knows; asking the compiler anew takes seconds
    "fallback_random": True,  # PyTorch's own generators: the same numbers as without compilation
    "cpp.use_decompose_tanh": True,  # tanh by way of exp, twice as fast
}


class Compiler:
    """Compiles functions. Should that fail when one of them is first called, all go on without, and it is said once.

    Args:
        runtime: whose choice it is whether anything is compiled at all.
        on_failure: called once, when compilation has failed.
    """

    def __init__(self, runtime: Runtime, on_failure: Callable[[], None] = lambda: None) -> None:
        self.works = runtime.compile
        self._on_failure = on_failure

    def __call__(self, function: F) -> F:
        """The compiled function, or where nothing is compiled, the function."""
        if not self.works:
            return function
        compiled = torch.compile(function, dynamic=False, options=_COMPILER_OPTIONS)
        was_called = False

        @functools.wraps(function)
        def compiled_while_that_works(*args: Any, **kwargs: Any) -> Any:
            nonlocal was_called
            if not self.works:
                return function(*args, **kwargs)
            if was_called:
                return compiled(*args, **kwargs)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the compiler's own chatter
                    result = compiled(*args, **kwargs)
            except Exception as error:
                if not _is_compiler_failure(error):
                    raise
                self._give_up(error)
                return function(*args, **kwargs)
            was_called = True
            return result

        return compiled_while_that_works  # type: ignore[return-value]

    def _give_up(self, error: Exception) -> None:
        self.works = False
        self._on_failure()
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning(f"compilation failed, going on without it (training is slower): {first_line}")


def _is_compiler_failure(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._inductor", "torch._dynamo", "torch._functorch"))
