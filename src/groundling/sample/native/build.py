"""Compile csrc/decode.cpp once for this machine, and load it.

The library is kept in the user's cache folder, under a name that says all it depends on: the sources, the compiler,
the processor. A compilation takes seconds and runs in a process of its own, which goes on when this one ends: nobody
waits for it, and the next start finds it.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import time
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path

from groundling.storage import atomic
from groundling.system.hardware import processor_name
from groundling.system.progress import Progress
from groundling.system.runtime import find_compiler

CSRC = Path(__file__).parent / "csrc"
SOURCES = ("decode.cpp", "attention.h", "simd.h", "thread_team.h", "vectors.h")
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
LONGEST_S = 120.0
"""A compilation that takes longer has failed: GCC 12 needs 4 s on one core of an AMD EPYC."""

# The shell outlives this process, gives the library its name only when it is whole, and keeps what went wrong.
_IN_THE_BACKGROUND = """
part=$1 whole=$2 sum=$3 log=$4; shift 4
{
    if { "$@" -o "$part" && cksum < "$part" > "$part.sum" && mv -f "$part.sum" "$sum" && mv -f "$part" "$whole"
       } 2> "$part.log"
    then rm -f "$part.log"
    else rm -f "$part" "$part.sum"; mv -f "$part.log" "$log"
    fi
} &
"""
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Library:
    """The compiled functions. Each call gives up Python's lock, so that other threads go on."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self.lanes = int(library.lanes())
        self.woven_panels: Callable[[int], int] = library.woven_panels
        library.woven_panels.argtypes, library.woven_panels.restype = [ctypes.c_int], ctypes.c_int
        self.team_new: Callable[[int], int] = library.team_new
        self.team_wake: Callable[[int], None] = library.team_wake
        self.team_delete: Callable[[int], None] = library.team_delete
        self.read_rows: Callable[..., int] = library.read_rows
        self.race: Callable[..., None] = library.race
        integer, pointer = ctypes.c_int64, ctypes.c_void_p
        library.race.restype = None
        library.race.argtypes = [pointer, integer, integer, integer, ctypes.c_float, pointer, pointer]
        library.team_new.argtypes, library.team_new.restype = [ctypes.c_int], ctypes.c_void_p
        library.team_wake.argtypes, library.team_wake.restype = [ctypes.c_void_p], None
        library.team_delete.argtypes, library.team_delete.restype = [ctypes.c_void_p], None
        library.read_rows.argtypes, library.read_rows.restype = [ctypes.c_void_p] * 5, ctypes.c_int


class Compilation:
    """The library, or the way to it.

    `reason` says why there will be none, once that is known: no compiler, or what the compiler said.

    Args:
        folder: where libraries are kept; None: in the user's cache.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.reason = ""
        self._library: Library | None = None
        self._started_at: float | None = None
        self._compiler = "" if sys.platform == "win32" else find_compiler()
        if not self._compiler:
            return
        try:
            self._folder = (folder or atomic.cache_folder() / "native").absolute()
            self._whole = self._folder / f"decode-{_key(self._compiler)}.so"
            self._sum, self._log = self._whole.with_suffix(".sum"), self._whole.with_suffix(".log")
        except (OSError, RuntimeError) as error:  # no home folder, for example
            self._fail(str(error))

    def library(self) -> Library | None:
        """The library if it is ready by now; costs a look at a folder at most."""
        if self._library is None and self._compiler and not self.reason:
            try:
                if self._whole.is_file():
                    self._load()
                elif self._started_at is not None:
                    self._look_for_failure(self._started_at)
            except (OSError, AttributeError) as error:
                self._fail(str(error))
        return self._library

    @property
    def timings(self) -> Path:
        """Where measurements of this library are kept; there need be none."""
        return self._whole.with_suffix(".json")

    def start(self) -> None:
        """Let the compiler begin, if there is no library; it works in the background."""
        if not self._compiler:
            self.reason = "no C++ compiler was found (install g++ or clang++, or set CXX)"
        elif self._started_at is None and self.library() is None and not self.reason:
            self._started_at = time.monotonic()
            self._start(self._compiler)

    def wait(self) -> Library | None:
        """The library once it is ready, or None if it will never be."""
        self.start()
        if self._library is None and not self.reason:
            with Progress("compiling the decoding step for this machine, once"):
                while self.library() is None and not self.reason:
                    time.sleep(0.02)
        return self._library

    def _look_for_failure(self, started_at: float) -> None:
        if self._log.exists():
            self._fail(self._log.read_text(encoding="utf-8", errors="replace"))
        elif time.monotonic() - started_at > LONGEST_S:
            self._fail(f"the compiler took more than {LONGEST_S:.0f} s")

    def _start(self, compiler: str) -> None:
        try:
            atomic.make_folder(self._folder.parent)
            self._folder.mkdir(mode=0o700, exist_ok=True)  # code is run from here: nobody else may write
            atomic.make_folder(self._folder)  # where the shell cannot write, it cannot say so either
            self._log.unlink(missing_ok=True)
            source = str(CSRC / SOURCES[0])
            part = self._whole.with_suffix(f".{os.getpid()}-{uuid.uuid4().hex[:8]}")
            command = [compiler, *FLAGS, _for_this_processor(), "-pthread", source]
            files = [str(path) for path in (part, self._whole, self._sum, self._log)]
            shell = ["sh", "-c", _IN_THE_BACKGROUND, "sh", *files, *command]
            subprocess.run(
                shell, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True, check=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            self._fail(str(error))

    def _load(self) -> None:
        _require_own(self._folder)
        _require_own(self._whole)
        if not self._is_undamaged():
            self._whole.unlink(missing_ok=True)
            if self._started_at is not None:
                raise OSError(f"{self._whole} is damaged")
            return  # it is compiled again
        try:
            self._library = Library(self._whole)
        except (OSError, AttributeError):
            with contextlib.suppress(OSError):
                self._whole.unlink()  # damaged: it is made anew next time
            raise

    def _is_undamaged(self) -> bool:
        """Whether the library is as it was compiled: the system kills a process that calls into a part that is gone."""
        try:
            return self._sum.read_text(encoding="ascii").split() == list(map(str, cksum(self._whole.read_bytes())))
        except (OSError, ValueError):
            return False

    def _fail(self, what: str) -> None:
        lines = [line for line in what.splitlines() if "error" in line] or what.splitlines() or ["it gave no reason"]
        self.reason = f"the decoding step could not be compiled by {self._compiler}: {lines[0].strip()}"


def cksum(data: bytes) -> tuple[int, int]:
    """What POSIX's `cksum` prints of some bytes: zlib's CRC with all bits the other way round, and their number."""
    n = len(data)
    length = n.to_bytes((n.bit_length() + 7) // 8, "little")
    crc = zlib.crc32((data + length).translate(_REVERSED), 0xFFFFFFFF)
    return int(f"{crc:032b}"[::-1], 2), n


def _require_own(path: Path) -> None:
    """Check that nobody else can have put code there.

    Raises:
        PermissionError: it belongs to another user, or others may write to it.
    """
    state = path.stat()
    if state.st_uid != os.getuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} belongs to another user, or others may write to it; no code is taken from there")


def _key(compiler: str) -> str:
    """What a library depends on, in a few characters."""
    file = Path(shutil.which(compiler) or compiler)
    state = file.stat()
    parts = [_processor(), _for_this_processor(), *FLAGS, str(file), str(state.st_size), str(state.st_mtime_ns)]
    sources = b"".join((CSRC / name).read_bytes() for name in SOURCES)
    return hashlib.sha256("\n".join(parts).encode() + sources).hexdigest()[:16]


def _processor() -> str:
    """The processor with all its abilities: a home folder may be shared by machines, and a name by processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return processor_name() + next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _for_this_processor() -> str:
    """The flag for the processor to compile for; GROUNDLING_MARCH names another one, older than this."""
    target = os.environ.get("GROUNDLING_MARCH", "native")
    return f"-m{'arch' if platform.machine().lower() in ('x86_64', 'amd64', 'i686') else 'cpu'}={target}"
