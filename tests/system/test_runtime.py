"""What is picked to run on, that each choice says its reason, and that a missing compiler stops nothing."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from groundling.errors import ConfigError
from groundling.system import compile, hardware, memory, runtime
from groundling.system.runtime import RuntimeConfig

CPU = torch.device("cpu")


def picked(**fields) -> runtime.Runtime:
    return runtime.pick(RuntimeConfig(**{"device": "cpu", "compile": "off", "tune_allocator": False, **fields}))


def test_each_choice_says_its_reason():
    choice = picked(device="auto", compile="auto")
    assert list(choice.reasons) == ["allocator", "device", "threads", "precision", "compile"]
    assert all(choice.reasons.values())
    assert choice.lines() == [f"{name}: {reason}" for name, reason in choice.reasons.items()]


def test_what_is_asked_for_is_taken_and_said():
    reasons = picked(threads=1, dtype="bfloat16").reasons
    assert reasons["allocator"] == "unchanged, as requested"
    assert reasons["compile"] == "off, as requested"
    assert reasons["threads"] == f"1 of {os.cpu_count()} cores"
    assert reasons["precision"].startswith("bfloat16 products")
    assert reasons["device"].startswith("cpu (")
    assert reasons["device"].endswith("as requested")


@pytest.mark.parametrize(
    ("name", "products", "weights"),
    [
        ("float32", torch.float32, torch.float32),
        ("bfloat16", torch.bfloat16, torch.float32),
        ("float64", torch.float64, torch.float64),
    ],
)
def test_a_precision_that_was_asked_for_is_that_of_the_products(name, products, weights):
    choice = picked(dtype=name)
    assert (choice.compute_dtype, choice.weight_dtype) == (products, weights)
    layer = nn.Linear(2, 2).to(choice.weight_dtype)
    with choice.autocast():
        assert layer(torch.ones(1, 2, dtype=weights)).dtype == products


def test_the_best_precision_is_bfloat16_where_it_is_fast_and_float32_elsewhere():
    choice = picked(dtype="auto")
    support = runtime.bfloat16_support(CPU)
    assert choice.compute_dtype == (torch.bfloat16 if support else torch.float32)
    assert (support or "float32") in choice.reasons["precision"]
    assert runtime.bfloat16_support(torch.device("mps")) == ""


def test_threads_are_set_for_the_process():
    before = torch.get_num_threads()
    try:
        assert picked(threads=2).threads == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_is_not_there_is_refused():
    assert runtime.pick_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"'cuda' is not available; this machine has: .*cpu"):
            runtime.pick_device("cuda")
    with pytest.raises(ConfigError, match="'tpu' is not available"):
        runtime.pick_device("tpu")
    with pytest.raises(ConfigError, match="threads is 0"):
        RuntimeConfig(threads=0)
    with pytest.raises(ConfigError, match="mps has no float64"):
        runtime._pick_dtype(RuntimeConfig(dtype="float64"), torch.device("mps"), {})


def test_a_compiler_is_found_where_it_is(tmp_path, monkeypatch):
    for name in ("g++", "my-compiler"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert runtime.find_compiler() == str(tmp_path / "g++")
    monkeypatch.setenv("CXX", "my-compiler")
    assert runtime.find_compiler() == str(tmp_path / "my-compiler")
    assert picked(compile="auto").reasons["compile"] == f"on ({tmp_path / 'my-compiler'})"
    short = runtime.pick(RuntimeConfig(device="cpu", tune_allocator=False), worth_compiling=False)
    assert (short.compile, short.reasons["compile"]) == (False, "off: the run is too short for compilation to pay off")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    without = picked(compile="on")
    assert not without.compile
    assert "no C++ compiler was found" in without.reasons["compile"]
    reasons: dict[str, str] = {}
    assert not runtime._pick_compile(RuntimeConfig(), torch.device("mps"), None, reasons)
    assert "mps" in reasons["compile"]


COMPILE = """
import logging

import torch
from groundling.system import runtime
from groundling.system.compile import Compiler
from groundling.system.runtime import RuntimeConfig
said = []
picked = runtime.pick(RuntimeConfig(device="cpu", dtype="float32", compile="on", tune_allocator=False, threads=1))


class Notes(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())


logging.getLogger("groundling").addHandler(Notes())
compiler = Compiler(picked, on_failure=lambda: said.append("given up"))
double = compiler(lambda x: (x.sin() * 2 + x).cos())
halve = compiler(lambda x: x / 2)
x = torch.linspace(0, 1, 64)
for _ in range(3):
    torch.testing.assert_close(double(x), (x.sin() * 2 + x).cos())
    torch.testing.assert_close(halve(x), x / 2)
print(picked.compile, len(said), *said, picked.reasons["compile"], sep="|")
"""


def compiled_with(tmp_path, code: str = COMPILE, **environment: str) -> str:
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels")} | environment
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_a_compiler_that_does_not_work_is_gone_on_without_and_said_once(tmp_path):
    """g++ is in the PATH, but PyTorch takes CXX, which points nowhere."""
    compiles, n_said, first, said, _ = compiled_with(tmp_path, CXX="/nowhere/g++").split("|")
    assert (compiles, n_said, first) == ("True", "2", "given up")
    assert said.startswith("compilation failed, going on without it (training is slower): ")


@pytest.mark.slow
def test_without_any_compiler_nothing_is_compiled(tmp_path):
    (tmp_path / "empty").mkdir()
    answer = compiled_with(tmp_path, PATH=str(tmp_path / "empty"), CXX="")
    assert answer.startswith("False|0|off: no C++ compiler was found")


MISTAKE = """
shout = compiler(lambda x: x.sine())
try:
    shout(x)
except AttributeError as error:
    print(error, len(said), sep="|")
"""


@pytest.mark.slow
@pytest.mark.skipif(not runtime.find_compiler(), reason="no C++ compiler")
def test_with_a_compiler_it_is_compiled_and_a_mistake_in_the_function_stays_one(tmp_path):
    good, mistake = compiled_with(tmp_path, COMPILE + MISTAKE).splitlines()
    assert good.startswith("True|0|on (")
    assert list((tmp_path / "kernels").rglob("*.so")), "something must have been compiled"
    assert mistake.startswith("'Tensor' object has no attribute 'sine'|")


def test_nothing_is_wrapped_where_nothing_is_compiled():
    function = lambda x: x  # noqa: E731
    assert compile.Compiler(picked())(function) is function


@pytest.mark.slow
def test_the_allocator_is_tuned_by_what_is_there(monkeypatch):
    code = "from groundling.system import runtime; print(runtime.tune_allocator())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.strip() in ("glibc, keeps freed memory (mallopt)", "unchanged: only glibc's is tuned")
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert runtime.tune_allocator() == "unchanged: LD_PRELOAD loads /usr/lib/libjemalloc.so.2"


def test_the_plain_module_is_found_in_what_is_around_it():
    plain = nn.Linear(1, 1)
    around = nn.Module()
    around.module = torch.compile(plain)
    assert runtime.unwrap(around) is plain
    assert runtime.unwrap(plain) is plain


def test_what_was_reached_raises_a_peak():
    peak = hardware.Peak(100.0)
    assert [peak.share(speed) for speed in (50.0, 100.0, 200.0, 100.0)] == [0.5, 1.0, 1.0, 0.5]
    assert peak.per_s == 200.0
    assert hardware.Peak(0.0).share(0.0) == 0.0


def test_figures_of_this_machine():
    peak = hardware.measure_matmul_peak(CPU, torch.float32, seconds=0.05)
    assert 1e8 < peak < 1e15
    assert memory.peak_memory_bytes(CPU) > 50e6
    assert memory.memory_total_bytes() > 1e8
    about = hardware.environment()
    assert list(about) == ["python", "torch", "system", "processor", "cores", "memory_gb"]
    assert all(about.values())
    hardware.synchronize(CPU)
