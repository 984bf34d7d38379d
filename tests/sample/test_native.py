"""Compiling the native library, falling back to PyTorch, and NativeRunner."""

import itertools
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from groundling.errors import ConfigError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample import auto_runner
from groundling.sample.auto_runner import AutoRunner
from groundling.sample.engine import DecodeConfig, Engine
from groundling.sample.generate import generate_batch
from groundling.sample.native.build import Compilation
from groundling.sample.native.runner import pack
from groundling.sample.runner import TokenSpan
from groundling.sample.sampler import SamplingConfig
from groundling.sample.scheduler import run_all

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=16, vocab_size=11)
SAMPLING = SamplingConfig(max_new_tokens=40, temperature=1.0)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return GPT(CONFIG).eval()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


def set_compiler(tmp_path, monkeypatch, does: str) -> None:
    """Set CXX to a script."""
    script = tmp_path / "compiler"
    script.write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))


def by_pytorch(model: GPT) -> list[list[int]]:
    return generate_batch(Engine(model, DecodeConfig(native="off")), [[1]], SAMPLING)


@pytest.mark.slow
def test_compiles_in_the_background_and_finds_the_library_again(own_cache):
    first = Compilation()
    assert first.library() is None
    assert not own_cache.exists(), "compilation starts only on request"
    first.start()
    assert first.library() is None, "library() does not wait"
    assert first.wait() is not None, first.reason
    while left := {path.suffix for path in own_cache.iterdir()} - {".so", ".sum"}:
        assert left == {".log"}, "the log is removed after success"
    assert Compilation().library() is not None


@pytest.mark.slow
def test_the_compiler_outlives_the_process(own_cache):
    code = "from groundling.sample.native.build import Compilation; Compilation().start()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    compilation = Compilation()
    compilation._started_at = 0.0  # pretend that it was started here: `library` only looks
    waiting = Compilation()
    waiting._start = lambda compiler: None
    assert waiting.wait() is not None, waiting.reason


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("echo 'decode.cpp:1: fatal error: no such thing' >&2; exit 1", "fatal error: no such thing"),
        ("exit 1", "it gave no reason"),
        ('while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"', "file too short"),
    ],
    ids=["error", "silent", "damaged"],
)
def test_a_failed_compilation_is_reported_once_and_pytorch_decodes(
    own_cache, tmp_path, monkeypatch, model, does, said, notes
):
    set_compiler(tmp_path, monkeypatch, does)
    monkeypatch.setattr(auto_runner, "WORTH_COMPILING_S", 0.0)
    engine = Engine(model)
    assert generate_batch(engine, [[1]], SAMPLING) == by_pytorch(model)
    until = time.monotonic() + 60
    while not notes and time.monotonic() < until:  # decoding finished before the compiler
        time.sleep(0.01)
        generate_batch(engine, [[1]], SAMPLING)
    assert len(notes) == 1
    assert said in notes[0]
    assert not engine.is_native
    with pytest.raises(ConfigError, match="leave native at auto"):
        Engine(model, DecodeConfig(native="on"))


def test_pytorch_decodes_without_a_compiler(own_cache, monkeypatch, model, notes):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(own_cache))
    monkeypatch.setattr(auto_runner, "WORTH_COMPILING_S", 0.0)
    assert generate_batch(Engine(model), [[1]], SAMPLING) == by_pytorch(model)
    assert notes == [
        "decoding with PyTorch, which is slower: no C++ compiler was found (install g++ or clang++, or set CXX)"
    ]


def test_pytorch_decodes_if_the_cache_is_not_writable(tmp_path, monkeypatch, model, notes):
    (tmp_path / "cache").write_text("not a folder", encoding="utf-8")
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(auto_runner, "WORTH_COMPILING_S", 0.0)
    assert generate_batch(Engine(model), [[1]], SAMPLING) == by_pytorch(model)
    assert len(notes) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that even root cannot write to")
def test_an_unwritable_cache_folder_fails_at_once(own_cache, monkeypatch, model):
    own_cache.parent.mkdir()
    own_cache.symlink_to("/proc")
    monkeypatch.setattr("groundling.sample.native.build.TIMEOUT_S", 1.0)
    with pytest.raises(ConfigError, match=r"could not be compiled by .*: cannot write .*native"):
        Engine(model, DecodeConfig(native="on"))


@pytest.mark.parametrize("what", ["a folder under its name", "no home", "others may write"])
def test_no_library_is_loaded_from_an_unsafe_place(own_cache, monkeypatch, model, what, notes):
    monkeypatch.setattr(auto_runner, "WORTH_COMPILING_S", 0.0)
    name = Compilation()._path
    if what == "a folder under its name":
        name.mkdir(parents=True)
        (name / "full").touch()
    elif what == "no home":
        monkeypatch.setattr(
            "groundling.storage.atomic.cache_folder", lambda: (_ for _ in ()).throw(RuntimeError("no home"))
        )
    else:
        name.parent.mkdir(parents=True, mode=0o777)
        name.parent.chmod(0o777)
        name.write_bytes(b"another user's code")
    engine = Engine(model)
    assert generate_batch(engine, [[1]], SAMPLING) == by_pytorch(model)
    if what == "a folder under its name":
        return  # the compiler moves the library into that folder, and it is never found
    assert len(notes) == 1
    assert {"no home": "no home", "others may write": "others may write to it"}[what] in notes[0]


def test_invalid_spans_do_not_reach_the_library(model):
    runner = AutoRunner(model, 2, native="on")
    for span in (
        TokenSpan(2, 0, [1], 1),
        TokenSpan(-1, 0, [1], 1),
        TokenSpan(0, 14, [1, 1, 1], 1),
        TokenSpan(0, -1, [1], 1),
        TokenSpan(0, 0, [1], 2),
        TokenSpan(0, 0, [11], 1),
        TokenSpan(0, 0, [-1], 1),
        TokenSpan(0, 0, [], 0),
    ):
        with pytest.raises(AssertionError):
            runner.read([span])


def test_a_forked_process_creates_its_own_threads(model):
    torch.set_num_threads(2)
    try:
        runner = AutoRunner(model, 1, native="on")
        expected = runner.read([TokenSpan(0, 0, [1, 2], 1)])
        child = os.fork()
        if child == 0:
            same = torch.equal(runner.read([TokenSpan(0, 0, [1, 2], 1)]), expected)
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(runner.read([TokenSpan(0, 0, [1, 2], 1)]), expected)
    finally:
        torch.set_num_threads(1)


def test_with_bfloat16_weights_compiled_code_does_not_take_over_mid_text(monkeypatch, model):
    """It may round differently, and the text would depend on when the library was ready."""
    library = Compilation().wait()
    looks = iter([None])
    monkeypatch.setattr(Compilation, "library", lambda self: next(looks, library))
    monkeypatch.setattr(Compilation, "start", lambda self: None)
    monkeypatch.setattr(auto_runner, "WORTH_COMPILING_S", 0.0)
    engine = Engine(model, DecodeConfig(weights="bfloat16"))
    generate_batch(engine, [[1]], SAMPLING)
    assert not engine.is_native
    assert Engine(model, DecodeConfig(weights="bfloat16")).is_native, "the next engine starts with it"


def test_a_short_job_does_not_start_the_compiler(own_cache, model):
    engine = Engine(model)
    generate_batch(engine, [[1]], SAMPLING)
    assert not engine.is_native
    assert not own_cache.exists()


def test_compiled_code_takes_over_mid_text(monkeypatch, model):
    """Both share the KV cache: the text is the same as with PyTorch alone."""
    library = Compilation().wait()
    looks = iter([None, *[None] * 3])  # ready after a few tokens
    monkeypatch.setattr(Compilation, "library", lambda self: next(looks, library))
    monkeypatch.setattr(Compilation, "start", lambda self: None)
    monkeypatch.setattr(auto_runner, "WORTH_COMPILING_S", 0.0)
    engine = Engine(model)
    request = engine.new_request([1], SAMPLING, torch.Generator().manual_seed(0))
    was_native = []
    for _ in run_all(engine, [request]):
        was_native.append(engine.is_native)
    assert was_native == [False, False, False, *[True] * 37]
    alone = Engine(model, DecodeConfig(native="off"))
    expected = alone.new_request([1], SAMPLING, torch.Generator().manual_seed(0))
    list(run_all(alone, [expected]))
    assert request.tokens == expected.tokens


def test_an_unsupported_model_is_refused_only_with_native_on(model):
    assert not AutoRunner(model.double(), 1).is_native
    with pytest.raises(ConfigError, match=r"only float32 on a CPU is compiled, not torch.float64 on cpu"):
        AutoRunner(model.double(), 1, native="on")

    class Other(torch.nn.Linear):
        block_size = 4

    with pytest.raises(ConfigError, match="a Other runs only with"):
        AutoRunner(Other(1, 1), 1, weights="int8")


def test_decoding_leaves_the_training_mode_unchanged(model):
    model.train()
    engine = Engine(model, DecodeConfig(native="on"))
    generate_batch(engine, [[1]], SAMPLING)
    assert model.training
    assert engine.is_native


@pytest.mark.parametrize(("lanes", "panels_per_group"), [(16, 1), (16, 3), (8, 2), (8, 3), (4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("n_out", "n_in"), [(16, 4), (64, 6), (5, 3), (49, 1), (70, 8)])
def test_pack_interleaves_outputs_and_pads_with_zeros(n_out, n_in, dtype, lanes, panels_per_group):
    weight_NK = torch.arange(1, n_out * n_in + 1).view(n_out, n_in).remainder(100).to(dtype)
    per_step = 2 if dtype == torch.bfloat16 else 1
    n_panels, n_steps = -(-n_out // lanes), -(-n_in // per_step)
    n_full = n_panels // panels_per_group * panels_per_group
    expected = []
    groups = [(p, panels_per_group) for p in range(0, n_full, panels_per_group)]
    for first, n_side in groups + [(p, 1) for p in range(n_full, n_panels)]:
        for step, panel, lane, part in itertools.product(range(n_steps), range(n_side), range(lanes), range(per_step)):
            n, k = (first + panel) * lanes + lane, step * per_step + part
            expected.append(weight_NK[n, k].item() if n < n_out and k < n_in else 0)
    assert pack(weight_NK, lanes, panels_per_group).tolist() == expected


def test_threads_do_not_outlive_their_runner(model):
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    torch.set_num_threads(3)
    try:
        runner = AutoRunner(model, 1, native="on")
        runner.read([TokenSpan(0, 0, [1, 2], 1)])
        before = threads()
        del runner
        assert threads() == before - 2
    finally:
        torch.set_num_threads(1)
