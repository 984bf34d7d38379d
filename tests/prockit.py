"""What a process holds and starts, for tests of processes that change or end while they are looked at."""

from contextlib import suppress

import psutil


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def children(pid: int, named: str = "") -> list[int]:
    """The processes started by one, whose command line contains `named`."""
    found = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            if named in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def n_sockets(pid: int) -> int:
    """How many sockets a process has open."""
    return len(psutil.Process(pid).net_connections("all"))


def resident_bytes(pid: int) -> int:
    """The memory that a process holds now."""
    return int(psutil.Process(pid).memory_info().rss)
