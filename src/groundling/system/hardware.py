"""Hardware facts: processor name, peak matmul throughput, device synchronization."""

import os
import platform
import time
from pathlib import Path

import torch

from groundling.system.memory import memory_total_bytes


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Measure the FLOP/s of a large square matmul, the denominator of utilisation.

    Takes the best of several rounds, because other processes can only slow a round down.
    """
    size = 4096 if device.type == "cuda" else 1024
    draws = torch.Generator().manual_seed(0)  # not the global one, which training uses
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
    """Peak throughput in FLOP/s or bytes/s, and utilisation relative to it.

    A measured peak can be too low, for example while other processes run. A higher throughput seen later raises it, so
    utilisation never exceeds 1.

    Args:
        measured: the measured peak.
    """

    def __init__(self, measured: float) -> None:
        self.per_s = measured

    def share(self, reached_per_s: float) -> float:
        """Utilisation at a throughput of `reached_per_s`, from 0 to 1."""
        self.per_s = max(self.per_s, reached_per_s)
        return reached_per_s / self.per_s if self.per_s else 0.0


def synchronize(device: torch.device) -> None:
    """Wait for all queued work of the device, so that timings are meaningful."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def environment() -> dict[str, str]:
    """Versions, processor, cores and memory: the context of a measurement."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": str(os.cpu_count()),
        "memory_gb": f"{memory_total_bytes() / 1e9:.1f}",
    }


def processor_name() -> str:
    """Model name of the processor (Linux), else what `platform` reports."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
