"""Selects device, precision, threads, allocator and compilation, each with the reason for the choice."""

import ctypes
import os
import platform
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from groundling.errors import ConfigError, require

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Device, precision and compilation; "auto" picks the best available."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Precision of matrix products; weights stay in float32 (float64: everything in float64)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Use torch.compile; auto: if a compiler is found and the run is long enough."""
    threads: int | None = None
    """CPU threads; None: PyTorch's default."""
    tune_allocator: bool = True
    """Keep freed memory in the process instead of returning it to the kernel (glibc only)."""

    def __post_init__(self) -> None:
        require(self.threads is None or self.threads >= 1, f"threads is {self.threads}; it must be at least 1, or None")


@dataclass(frozen=True)
class Runtime:
    """The selected settings, each with its reason."""

    device: torch.device
    compute_dtype: torch.dtype
    weight_dtype: torch.dtype
    compile: bool
    threads: int
    reasons: dict[str, str]

    def autocast(self) -> AbstractContextManager[Any]:
        """Context manager for a forward pass: matmuls in `compute_dtype`."""
        if self.compute_dtype == self.weight_dtype:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    def lines(self) -> list[str]:
        """One line for each choice and its reason."""
        return [f"{name}: {reason}" for name, reason in self.reasons.items()]


def pick_device(name: str) -> torch.device:
    """Select a device: "cpu", "cuda", "mps", or "auto" for the first available of cuda, mps, cpu.

    Raises:
        ConfigError: the device is not available.
    """
    kinds = (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()), ("cpu", True))
    available = [kind for kind, is_available in kinds if is_available]
    if name == "auto":
        name = available[0]
    if name not in available:
        raise ConfigError(f"device {name!r} is not available; this machine has: {', '.join(available)}")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def bfloat16_support(device: torch.device) -> str:
    """The hardware feature that makes bfloat16 matmuls fast ("AMX", ...); "" if they are not faster than float32."""
    if device.type == "cuda":
        return "tensor cores" if torch.cuda.is_bf16_supported(including_emulation=False) else ""
    if device.type != "cpu":
        return ""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512" if torch.cpu._is_avx512_bf16_supported() else ""


def find_compiler() -> str:
    """Path of the C++ compiler that torch.compile would use on the CPU; "" if there is none."""
    candidates = [os.environ.get("CXX", ""), "g++", "clang++", "cl" if sys.platform == "win32" else ""]
    return next((found for name in candidates if name and (found := shutil.which(name))), "")


def tune_allocator() -> str:
    """Make glibc keep large freed blocks; zeroing fresh pages can take half of the CPU time of training.

    Must be called before memory is allocated. Returns a description of what was done.
    """
    preloaded = os.environ.get("LD_PRELOAD", "")
    if any(name in preloaded for name in ("jemalloc", "mimalloc", "tcmalloc")):
        return f"unchanged: LD_PRELOAD loads {preloaded}"
    if platform.libc_ver()[0] != "glibc":
        return "unchanged: only glibc's is tuned"
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    libc = ctypes.CDLL(None)
    done = libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, 2**31 - 1) and libc.mallopt(m_top_pad, 2**26)
    return "glibc, keeps freed memory (mallopt)" if done else "glibc refused mallopt"


def pick(config: RuntimeConfig, worth_compiling: bool = True) -> Runtime:
    """Select device, precision, threads, allocator and compilation, and apply the process-wide settings.

    Args:
        config: of the user.
        worth_compiling: whether the run is long enough to pay for compilation; used if `compile` is "auto".

    Raises:
        ConfigError: a requested setting is not available.
    """
    reasons: dict[str, str] = {}
    reasons["allocator"] = tune_allocator() if config.tune_allocator else "unchanged, as requested"
    device = pick_device(config.device)
    choice = "as requested" if config.device != "auto" else "the best available"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    reasons["device"] = f"{device} ({name}), {choice}"
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    reasons["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    compute, weights = _pick_dtype(config, device, reasons)
    if device.type == "cuda" and compute == torch.float32:
        torch.backends.cuda.matmul.allow_tf32 = True
    return Runtime(
        device=device,
        compute_dtype=compute,
        weight_dtype=weights,
        compile=_pick_compile(config, device, worth_compiling, reasons),
        threads=torch.get_num_threads(),
        reasons=reasons,
    )


def _pick_dtype(
    config: RuntimeConfig, device: torch.device, reasons: dict[str, str]
) -> tuple[torch.dtype, torch.dtype]:
    support = bfloat16_support(device)
    if config.dtype == "float64":
        require(device.type != "mps", "mps has no float64; take --runtime.dtype float32, or --runtime.device cpu")
        reasons["precision"] = "float64 throughout, as requested"
        return torch.float64, torch.float64
    if config.dtype == "auto":
        reasons["precision"] = (
            f"bfloat16 products ({support}), float32 weights" if support else "float32: bfloat16 is not faster here"
        )
        return (torch.bfloat16 if support else torch.float32), torch.float32
    reasons["precision"] = f"{config.dtype} products, float32 weights, as requested"
    return DTYPES[config.dtype], torch.float32


def _pick_compile(config: RuntimeConfig, device: torch.device, worth_compiling: bool, reasons: dict[str, str]) -> bool:
    if config.compile == "off":
        reasons["compile"] = "off, as requested"
        return False
    if device.type == "mps":
        reasons["compile"] = "off: unreliable on mps"
        return False
    compiler = find_compiler() if device.type == "cpu" else "Triton"
    if not compiler:
        reasons["compile"] = "off: no C++ compiler was found (install g++ or clang++, or set CXX); training is slower"
        return False
    if config.compile == "auto" and not worth_compiling:
        reasons["compile"] = "off: the run is too short for compilation to pay off"
        return False
    reasons["compile"] = f"on ({compiler})"
    return True


def unwrap(model: nn.Module) -> nn.Module:
    """Strip the wrappers of `torch.compile` and DDP."""
    while True:
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def make_deterministic(device: torch.device) -> None:
    """Enable deterministic algorithms on a CPU.

    Without them, compiled code sums an embedding's gradient in the order of the threads. The cost is not measurable;
    that of filling uninitialized memory, which PyTorch enables along with them, would be.
    """
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
