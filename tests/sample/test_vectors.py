"""The vector arithmetic of compiled code, on the processor here and on others that it can stand for."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from groundling.sample.native import build

SOURCE = Path(__file__).with_name("vectors_check.cpp")
X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC")]


def says(tmp_path: Path, compiler: str, *flags: str, under: tuple[str, ...] = ()) -> str:
    """What the checks print, compiled so; the test fails if anything differs."""
    program = tmp_path / "check"
    headers = f"-I{build.CSRC}"
    subprocess.run([compiler, *FLAGS, "-w", *flags, headers, str(SOURCE), "-o", str(program)], check=True)
    done = subprocess.run([*under, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[:2000] + done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "lanes"),
    [("native", None), *([("haswell", 8), ("ivybridge", 4), ("x86-64", 4)] if X86 else [])],
)
def test_vectors_compute_as_single_numbers_do(tmp_path, target, lanes):
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if X86 else ""
    if target in ("haswell", "ivybridge") and "avx2" not in flags:
        pytest.skip("this processor has no AVX2")
    printed = says(tmp_path, "g++", f"-march={target}" if X86 else "-mcpu=native")
    assert printed.endswith(", 0 wrong")
    assert lanes is None or printed == f"{lanes} lanes, 0 wrong"


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")),
    reason="no compiler or emulator for ARM: install g++-aarch64-linux-gnu and qemu-user",
)
def test_vectors_compute_as_single_numbers_do_on_arm(tmp_path):
    printed = says(tmp_path, "aarch64-linux-gnu-g++", "-static", under=("qemu-aarch64",))
    assert printed == "4 lanes, 0 wrong"
