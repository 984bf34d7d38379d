"""What this machine is and how fast: its name, its peak of matrix products, and waiting for its device."""

import os
import platform
import time
from pathlib import Path

import torch

from groundling.system.memory import memory_total_bytes


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """The FLOP/s of a large square matrix product: what utilisation is measured against.

    The best of several rounds: other processes can only make a round slower.
    """
    size = 4096 if device.type == "cuda" else 1024
    draws = torch.Generator().manual_seed(0)  # its own: training draws from the global one
    a, b = (torch.randn(size, size, generator=draws).to(device, dtype) for _ in range(2))
    out = torch.mm(a, b)
    best, stop_at = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < stop_at:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(4):
            torch.mm(a, b, out=out)
        synchronize(device)
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - start))
    return best


class Peak:
    """The most that a machine was seen to do, in FLOP/s or bytes/s, and the share of it that something reaches.

    A measurement can fall below what is reached later, for example while other processes run. What was reached was
    possible, so it raises the peak: no share is above 1.

    Args:
        measured: the peak as it was measured.
    """

    def __init__(self, measured: float) -> None:
        self.per_s = measured

    def share(self, reached_per_s: float) -> float:
        """The part of the peak that `reached_per_s` is, from 0 to 1."""
        self.per_s = max(self.per_s, reached_per_s)
        return reached_per_s / self.per_s if self.per_s else 0.0


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a clock read before says nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def environment() -> dict[str, str]:
    """What a figure depends on: versions, processor, cores."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": str(os.cpu_count()),
        "memory_gb": f"{memory_total_bytes() / 1e9:.1f}",
    }


def processor_name() -> str:
    """The processor's own name where the system tells it (Linux), else the platform's word for it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
