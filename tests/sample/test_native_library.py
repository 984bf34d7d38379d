"""Which compiled libraries are loaded: intact ones with the binary interface that Python expects."""

import ctypes
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from groundling.sample.native import abi, build
from groundling.sample.native.abi import AbiError
from groundling.sample.native.build import Compilation, Library
from groundling.system.runtime import find_compiler


def copied_library(tmp_path) -> Compilation:
    """A compilation in another folder, with a copy of this machine's library."""
    original, copy = Compilation(), Compilation(tmp_path / "native")
    assert original.wait() is not None
    copy._folder.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(original._path, copy._path)
    shutil.copy(original._checksum_path, copy._checksum_path)
    return copy


@pytest.mark.parametrize("damage", ["cut", "overwritten", "no sum"])
def test_a_damaged_library_is_deleted_and_not_loaded(tmp_path, damage):
    """Calling into a truncated library kills the process."""
    copies = copied_library(tmp_path)
    code = bytearray(copies._path.read_bytes())
    if damage == "no sum":
        copies._checksum_path.unlink()
    elif damage == "cut":
        copies._path.write_bytes(code[:60_000])
    else:
        code[8_192:70_000] = bytes(70_000 - 8_192)
        copies._path.write_bytes(code)
    assert copies.library() is None
    assert not copies.reason, "it can be compiled again"
    assert not copies._path.exists()
    assert copied_library(tmp_path).library() is not None


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ("ABI_VERSION = 1;", "ABI_VERSION = 2;", "ABI_VERSION = 2, expected 1"),
        ("n_slots;", "n_slots, unused;", "Cache = 40, expected 32"),
        ("{ LAYERNORM, RMSNORM }", "{ RMSNORM, LAYERNORM }", "Norm.LAYERNORM = 1, expected 0"),
        ("*ids, *slots,", "*slots, *ids,", "Batch.ids = 24, expected 16"),
        ("FIELD(Model, wpe),", "", "Model.wpe = None, expected"),
        ('{"ABI_VERSION"', '{"Unknown", 3}, {"ABI_VERSION"', "Unknown = 3, expected None"),
    ],
    ids=["version", "size", "enumerator", "swapped", "unlisted", "additional"],
)
def test_a_library_with_another_binary_interface_is_refused(tmp_path, before, after, difference):
    """Compiles only the header and its table."""
    header = (build.CSRC / "abi.h").read_text("utf-8")
    assert before in header
    (tmp_path / "abi.h").write_text(header.replace(before, after), encoding="utf-8")
    source = '#include "abi.h"\nconst AbiEntry* abi_layout() { return ABI_LAYOUT; }\n'
    (tmp_path / "layout.cpp").write_text(source, encoding="utf-8")
    library = tmp_path / "layout.so"
    command = [find_compiler(), "-std=c++20", "-shared", "-fPIC", "layout.cpp", "-o", str(library)]
    subprocess.run(command, cwd=tmp_path, check=True)
    with pytest.raises(AbiError, match=f"library has {difference}.*; csrc/abi.h and abi.py do not match"):
        Library(library)


@pytest.mark.parametrize("change", ["a version", "a size"])
def test_after_a_mismatch_it_is_compiled_again_once(tmp_path, monkeypatch, change):
    copy = copied_library(tmp_path)
    code = copy._path.read_bytes()
    with monkeypatch.context() as patch:
        if change == "a version":
            patch.setattr(abi, "ABI_VERSION", 2)
        else:
            fields = {"_fields_": [*abi.Batch._fields_, ("unused", abi.Int)]}
            patch.setattr(abi, "STRUCTURES", (*abi.STRUCTURES[:-1], type("Batch", (ctypes.Structure,), fields)))
        assert copy.library() is None
        assert not copy.reason, "it can be compiled again"
        assert not copy._path.exists()
        copy._path.write_bytes(code)
        copy._started_at = time.monotonic()  # pretend that it was just compiled
        assert copy.wait() is None
        assert not copy._path.exists()
    if sys.platform == "linux":
        assert str(copy._path) not in Path("/proc/self/maps").read_text("utf-8"), "the next one has the same path"
    difference = "ABI_VERSION = 1, expected 2" if change == "a version" else "Batch = 48, expected 56"
    assert copy.reason == f"the compiled library has {difference}; csrc/abi.h and abi.py do not match"
    copy._path.write_bytes(code)
    assert Compilation(tmp_path / "native").library() is not None


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 only")
def test_a_library_for_another_processor_is_refused_before_its_instructions_kill_the_process(tmp_path, monkeypatch):
    """No processor has both AMD's FMA4 and AVX-512."""
    copy = copied_library(tmp_path)
    command = [find_compiler(), "-std=c++20", "-shared", "-fPIC", "-pthread", "-march=x86-64", "-D__FMA4__"]
    source = (build.CSRC / "decode.cpp").read_text("utf-8")
    function = source[source.index("const char* missing_feature()") : source.index("int panel_lanes()")]
    code = '#include "abi.h"\n#define __AVX512BF16__\n'
    code += 'extern "C" { const AbiEntry* abi_layout() { return ABI_LAYOUT; }\n'
    (tmp_path / "other.cpp").write_text(f"{code}{function}}}\n", encoding="utf-8")
    monkeypatch.setenv("GROUNDLING_MARCH", "other")
    paths = ["-I", str(build.CSRC), str(tmp_path / "other.cpp"), "-o", str(copy._path)]
    subprocess.run([*command, *paths], check=True)
    copy._checksum_path.write_text(" ".join(map(str, build.cksum(copy._path.read_bytes()))), encoding="ascii")
    assert copy.library() is None
    expected = (
        r"this processor has no (fma4|avx512bf16), which GROUNDLING_MARCH=other uses; set it to an older processor"
    )
    assert re.match(expected, copy.reason)
    assert copy._path.exists(), "compiling it again would not help"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX shell")
def test_a_compiler_that_hangs_is_killed_with_its_children(tmp_path, monkeypatch):
    """Even when the process that started it has ended."""
    compiler, noted = tmp_path / "c++", tmp_path / "pids"
    compiler.write_text(f"#!/bin/sh\nsleep 600 &\necho $$ $! > {noted}.part; mv {noted}.part {noted}; wait\n", "utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build, "TIMEOUT_S", 1.0)
    hanging = Compilation(tmp_path / "native")
    assert hanging.wait() is None
    assert hanging.reason.endswith("the compiler took more than 1 s")
    pids = noted.read_text("utf-8").split()
    until = time.monotonic() + 30
    while any(is_running(int(pid)) for pid in pids):
        assert time.monotonic() < until, "the compiler still runs"
        time.sleep(0.02)
    assert [path.suffix for path in (tmp_path / "native").iterdir()] == [".log"]


def is_running(pid: int) -> bool:
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(found.strip()) and not found.startswith("Z")


def test_windows_decodes_with_pytorch(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    compilation = Compilation()
    assert compilation.wait() is None
    assert compilation.reason == "compiled decoding is not supported on Windows"
