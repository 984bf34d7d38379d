"""Crashes at a chosen file operation, and damage to files: what several tests of faults do."""

from collections.abc import Callable
from pathlib import Path

from groundling.storage import atomic


class CrashPoint(BaseException):
    """The process ends here: nothing may catch it."""


def crash_at(number: int, action: Callable[[], object]) -> bool:
    """Crash before the file operation of this number (from 1); return whether there were that many."""
    left = number

    def count_down(operation: str, path: Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise CrashPoint

    atomic.observers.append(count_down)
    try:
        action()
    except CrashPoint:
        return True
    finally:
        atomic.observers.remove(count_down)
    return False


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def append_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


DAMAGE = [flip_a_bit, cut_in_half, append_a_byte, Path.unlink]
