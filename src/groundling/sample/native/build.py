"""Compile csrc/decode.cpp for this machine, cache the library, and load it.

The library's file name is a hash of everything it depends on: sources, flags, compiler, processor. Compiling takes
seconds, in a background process that outlives this one: the current run need not wait, and the next one loads the file.
"""

import _ctypes
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

from groundling.sample.native.abi import AbiError, require_matching
from groundling.storage import atomic
from groundling.system.hardware import processor_name
from groundling.system.progress import Progress
from groundling.system.runtime import find_compiler

CSRC = Path(__file__).parent / "csrc"
SOURCE = "decode.cpp"
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
TIMEOUT_S = 120.0
"""A compiler that takes longer is killed: GCC 12 needs 4 s on one core of an AMD EPYC."""

# The shell outlives this process. It renames the library only when it is complete, and keeps the log of a failure. When
# the time is over, it kills its process group, compiler included.
_BACKGROUND_SCRIPT = """
part=$1 library=$2 checksum=$3 log=$4 timeout=$5; shift 5
{
    {
        trap 'kill $!; exit' TERM
        sleep "$timeout" & wait
        rm -f "$part" "$part.sum" "$part.log"
        echo "the compiler took more than $timeout s" > "$log"
        kill -KILL 0
    } &
    timer=$!
    if { "$@" -o "$part" && cksum < "$part" > "$part.sum" && mv -f "$part.sum" "$checksum" && mv -f "$part" "$library"
       } 2> "$part.log"
    then rm -f "$part.log"
    else rm -f "$part" "$part.sum"; mv -f "$part.log" "$log"
    fi
    kill "$timer"
} &
"""
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class WrongProcessorError(Exception):
    """A library was compiled for another processor."""


class Library:
    """The functions of csrc/abi.h. Calls release the GIL.

    Raises:
        WrongProcessorError: this processor lacks a feature that the library needs.
        AbiError: the library's binary interface is not that of abi.py.
        OSError: it cannot be loaded.
        AttributeError: it lacks a function.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        try:
            require_matching(library)
        except AbiError:
            if sys.platform != "win32":
                _ctypes.dlclose(library._handle)  # or the same path would give the same library again
            raise
        library.missing_feature.argtypes, library.missing_feature.restype = [], ctypes.c_char_p
        if missing := library.missing_feature():  # its instructions would kill the process
            raise WrongProcessorError(
                f"this processor has no {missing.decode('ascii')}, which GROUNDLING_MARCH={_target()} uses; "
                "set it to an older processor, or unset it"
            )
        integer, pointer = ctypes.c_int64, ctypes.c_void_p
        library.panels_per_group.argtypes, library.panels_per_group.restype = [ctypes.c_int], ctypes.c_int
        library.team_create.argtypes, library.team_create.restype = [ctypes.c_int], pointer
        library.team_wake.argtypes, library.team_wake.restype = [pointer], None
        library.team_destroy.argtypes, library.team_destroy.restype = [pointer], None
        library.forward.argtypes, library.forward.restype = [pointer] * 5, ctypes.c_int
        library.race.argtypes = [pointer, integer, integer, integer, ctypes.c_float, pointer, pointer]
        library.race.restype = None
        self.lanes = int(library.panel_lanes())
        self.panels_per_group: Callable[[int], int] = library.panels_per_group
        self.team_create: Callable[[int], int] = library.team_create
        self.team_wake: Callable[[int], None] = library.team_wake
        self.team_destroy: Callable[[int], None] = library.team_destroy
        self.forward: Callable[..., int] = library.forward
        self.race: Callable[..., None] = library.race


class Compilation:
    """The compiled library: cached, being compiled, or impossible.

    `reason` is "" unless there will be no library; then it says why, for example the compiler's error.

    Args:
        folder: where libraries are cached; None: in the user's cache folder.
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
            self._path = self._folder / f"decode-{_cache_key(self._compiler)}.so"
            self._checksum_path, self._log_path = self._path.with_suffix(".sum"), self._path.with_suffix(".log")
        except (OSError, RuntimeError) as error:  # no home folder, for example
            self._fail(str(error))

    def library(self) -> Library | None:
        """The library if it is ready; costs at most a look into a folder."""
        if self._library is None and self._compiler and not self.reason:
            try:
                if self._path.is_file():
                    self._load()
                elif self._started_at is not None:
                    self._check_for_failure(self._started_at)
            except (OSError, AttributeError) as error:
                self._fail(str(error))
        return self._library

    @property
    def timings(self) -> Path:
        """The file for timings of this library; it may not exist."""
        return self._path.with_suffix(".json")

    def start(self) -> None:
        """Start compiling in the background, unless there is a library."""
        if sys.platform == "win32":
            self.reason = "compiled decoding is not supported on Windows"
        elif not self._compiler:
            self.reason = "no C++ compiler was found (install g++ or clang++, or set CXX)"
        elif self._started_at is None and self.library() is None and not self.reason:
            self._started_at = time.monotonic()
            self._start(self._compiler)

    def wait(self) -> Library | None:
        """Wait for the library; None if there will be none."""
        self.start()
        if self._library is None and not self.reason:
            with Progress("compiling the decoding step for this machine, once"):
                while self.library() is None and not self.reason:
                    time.sleep(0.02)
        return self._library

    def _check_for_failure(self, started_at: float) -> None:
        if self._log_path.exists():
            self._fail(self._log_path.read_text(encoding="utf-8", errors="replace"))
        elif time.monotonic() - started_at > TIMEOUT_S + 10:  # its shell was killed
            self._fail(f"the compiler took more than {TIMEOUT_S:.0f} s")

    def _start(self, compiler: str) -> None:
        try:
            atomic.make_folder(self._folder.parent)
            self._folder.mkdir(mode=0o700, exist_ok=True)  # code is loaded from here: no other user may write
            atomic.make_folder(self._folder)  # checks that it is writable: the shell could not report it
            self._log_path.unlink(missing_ok=True)
            part = self._path.with_suffix(f".{os.getpid()}-{uuid.uuid4().hex[:8]}")
            command = [compiler, *FLAGS, _target_flag(), "-pthread", str(CSRC / SOURCE)]
            files = [str(path) for path in (part, self._path, self._checksum_path, self._log_path)]
            shell = ["sh", "-c", _BACKGROUND_SCRIPT, "sh", *files, f"{TIMEOUT_S:g}", *command]
            subprocess.run(
                shell, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True, check=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            self._fail(str(error))

    def _load(self) -> None:
        _require_own(self._folder)
        _require_own(self._path)
        if not self._is_intact():
            self._path.unlink(missing_ok=True)
            if self._started_at is not None:
                raise OSError(f"{self._path} is damaged")
            return  # compile it again
        try:
            self._library = Library(self._path)
        except WrongProcessorError as error:
            self.reason = str(error)
        except (OSError, AttributeError) as error:
            with contextlib.suppress(OSError):
                self._path.unlink()  # compile it again
            if not isinstance(error, AbiError):
                raise
            if self._started_at is not None:
                self.reason = str(error)

    def _is_intact(self) -> bool:
        """Whether the checksum matches: calling into a truncated library would kill the process."""
        try:
            checksum = self._checksum_path.read_text(encoding="ascii").split()
            return checksum == list(map(str, cksum(self._path.read_bytes())))
        except (OSError, ValueError):
            return False

    def _fail(self, message: str) -> None:
        lines = message.splitlines()
        lines = [line for line in lines if "error" in line] or lines or ["it gave no reason"]
        self.reason = f"the decoding step could not be compiled by {self._compiler}: {lines[0].strip()}"


def cksum(data: bytes) -> tuple[int, int]:
    """The checksum and size that POSIX `cksum` prints: zlib's CRC with reversed bits."""
    n = len(data)
    length = n.to_bytes((n.bit_length() + 7) // 8, "little")
    crc = zlib.crc32((data + length).translate(_REVERSED_BITS), 0xFFFFFFFF)
    return int(f"{crc:032b}"[::-1], 2), n


def _require_own(path: Path) -> None:
    """Check that no other user can have written a file or folder.

    Raises:
        PermissionError: it belongs to another user, or others may write to it.
    """
    state = path.stat()
    if state.st_uid != os.getuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} belongs to another user, or others may write to it; no code is taken from there")


def _cache_key(compiler: str) -> str:
    """A hash of everything that a library depends on."""
    file = Path(shutil.which(compiler) or compiler)
    state = file.stat()
    parts = [_processor_features(), _target_flag(), *FLAGS, str(file), str(state.st_size), str(state.st_mtime_ns)]
    sources = b"".join(path.read_bytes() for path in sorted(CSRC.glob("*.[ch]*")))
    return hashlib.sha256("\n".join(parts).encode() + sources).hexdigest()[:16]


def _processor_features() -> str:
    """The processor's name and features: machines can share a home folder, and processors a name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return processor_name() + next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _target_flag() -> str:
    """The compiler's flag for the target processor: this one, or the older one that GROUNDLING_MARCH names."""
    return f"-m{'arch' if platform.machine().lower() in ('x86_64', 'amd64', 'i686') else 'cpu'}={_target()}"


def _target() -> str:
    return os.environ.get("GROUNDLING_MARCH", "native")
