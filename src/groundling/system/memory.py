"""Total, free and used memory.

Linux kills a process that runs out of memory without raising an error, so large allocations are checked beforehand.
"""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

CGROUPS = Path("/sys/fs/cgroup")
NO_LIMIT = 1 << 60
"""Limits above this mean "unlimited": cgroup v1 reports 2**63 minus one page."""


class Memory(NamedTuple):
    """Memory of a device in bytes. For main memory, cgroup limits and `ulimit -v` are taken into account."""

    total: int
    free: int
    """Can be allocated without swapping or an OOM kill."""


def memory_of(device: torch.device | str = "cpu") -> Memory | None:
    """Current memory of a device; None if unknown."""
    device = torch.device(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return Memory(total, free + unused)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return Memory(total, max(0, total - torch.mps.current_allocated_memory()))
    if sys.platform == "win32":
        return _windows_memory()
    found = _linux_memory()
    if found is None:
        return None
    for limited in (*_control_groups(), *_own_limit()):
        found = Memory(min(found.total, limited.total), min(found.free, limited.free))
    return found


def _linux_memory() -> Memory | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        return Memory(facts["MemTotal"], facts["MemAvailable"])
    except (OSError, ValueError, LookupError):
        return None


def _control_groups(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> Iterator[Memory]:
    """Limits of this process's cgroups (v1 and v2) and their parents.

    The inactive page cache counts as free, because the kernel reclaims it under pressure.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        mount, names = (root / "memory", V1) if kinds else (root, V2)
        folder = mount / path.strip("/")
        for place in dict.fromkeys((folder, *folder.parents, mount)):  # a container may not see the parents of its own
            if place == mount or mount in place.parents:
                limit, used, files = (_number(place, *name) for name in names)
                if limit is not None and used is not None and limit < NO_LIMIT:
                    yield Memory(limit, max(0, limit - used + (files or 0)))


def _own_limit() -> Iterator[Memory]:
    """Limit of the address space (`ulimit -v`), if set."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        yield Memory(limit, max(0, limit - used))


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of Python or PyTorch, on any device, means out of memory."""
    said = ("can't allocate memory", "not enough memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in said)


V1 = (("memory.limit_in_bytes",), ("memory.usage_in_bytes",), ("memory.stat", "total_inactive_file"))
V2 = (("memory.max",), ("memory.current",), ("memory.stat", "inactive_file"))
"""Files (and lines in them) of a cgroup: limit, usage, inactive page cache."""


def _number(folder: Path, file: str, line: str = "") -> int | None:
    """Read a number from a cgroup file; None if it is missing or "max" (unlimited)."""
    try:
        text = (folder / file).read_text(encoding="ascii")
        if line:
            text = next(each for each in text.splitlines() if each.startswith(f"{line} ")).split()[1]
        return int(text)
    except (OSError, ValueError, StopIteration):
        return None


def _windows_memory() -> Memory | None:

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("total", "free", "rest1", "rest2", "rest3", "rest4", "rest5")),
        ]

    status = Status(length=ctypes.sizeof(Status))
    kernel32 = getattr(ctypes, "windll").kernel32  # noqa: B009
    return Memory(status.total, status.free) if kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this process: allocated GPU memory on cuda, else resident set size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_total_bytes() -> int:
    """Main memory of the machine; 0 if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0
