"""torch.compile with a fallback to eager execution if compilation fails."""

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
    "cpp.vec_isa_ok": True,  # skip PyTorch's test compilation, which takes seconds
    "fallback_random": True,  # same random numbers as in eager mode
    "cpp.use_decompose_tanh": True,  # tanh by way of exp, twice as fast
}


class Compiler:
    """Compiles functions; if the first call of one fails to compile, all run eagerly and one warning is logged.

    Args:
        runtime: says whether to compile at all.
        on_failure: called once, when compilation fails.
    """

    def __init__(self, runtime: Runtime, on_failure: Callable[[], None] = lambda: None) -> None:
        self.works = runtime.compile
        self._on_failure = on_failure

    def __call__(self, function: F) -> F:
        """Return the compiled function, or the function itself if compilation is off."""
        if not self.works:
            return function
        compiled = torch.compile(function, dynamic=False, options=_COMPILER_OPTIONS)
        was_called = False

        @functools.wraps(function)
        def compiled_or_eager(*args: Any, **kwargs: Any) -> Any:
            nonlocal was_called
            if not self.works:
                return function(*args, **kwargs)
            if was_called:
                return compiled(*args, **kwargs)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the compiler itself
                    result = compiled(*args, **kwargs)
            except Exception as error:
                if not _is_compiler_failure(error):
                    raise
                self._fall_back(error)
                return function(*args, **kwargs)
            was_called = True
            return result

        return compiled_or_eager  # type: ignore[return-value]

    def _fall_back(self, error: Exception) -> None:
        self.works = False
        self._on_failure()
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        log.warning(f"compilation failed, going on without it (training is slower): {first_line}")


def _is_compiler_failure(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._inductor", "torch._dynamo", "torch._functorch"))
