"""The C++ kernels, compiled for this processor and for older ones."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from groundling.sample.native import build

SOURCE = Path(__file__).parent / "native" / "kernels_check.cpp"
X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = [flag for flag in build.FLAGS if flag not in ("-shared", "-fPIC")]


def output_of(tmp_path: Path, compiler: str, *flags: str, under: tuple[str, ...] = ()) -> str:
    """Compile and run the checks; return what they print."""
    program = tmp_path / "check"
    include = f"-I{build.CSRC}"
    subprocess.run([compiler, *FLAGS, "-w", *flags, include, str(SOURCE), "-o", str(program)], check=True)
    done = subprocess.run([*under, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[:2000] + done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "lanes"),
    [("native", None), *([("haswell", 8), ("ivybridge", 4), ("x86-64", 4)] if X86 else [])],
)
def test_kernels_match_scalar_arithmetic(tmp_path, target, lanes):
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if X86 else ""
    if target in ("haswell", "ivybridge") and "avx2" not in flags:
        pytest.skip("this processor has no AVX2")
    printed = output_of(tmp_path, "g++", f"-march={target}" if X86 else "-mcpu=native")
    assert printed.endswith(", 0 failures")
    assert lanes is None or printed == f"{lanes} lanes, 0 failures"


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")),
    reason="no compiler or emulator for ARM; install g++-aarch64-linux-gnu and qemu-user",
)
def test_kernels_match_scalar_arithmetic_on_arm(tmp_path):
    printed = output_of(tmp_path, "aarch64-linux-gnu-g++", "-static", under=("qemu-aarch64",))
    assert printed == "4 lanes, 0 failures"
