"""The compiled decoding step: how it comes to be, and what happens when it cannot."""

import itertools
import os
import shutil
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

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=16, vocab_size=11)
SAMPLING = SamplingConfig(max_new_tokens=40, temperature=1.0)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return GPT(CONFIG).eval()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache folder in which nothing was compiled yet."""
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "native"


def compiler_that(tmp_path, monkeypatch, does: str) -> None:
    """Let CXX be a script."""
    script = tmp_path / "compiler"
    script.write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))


def by_pytorch(model: GPT) -> list[list[int]]:
    return generate_batch(Engine(model, DecodeConfig(native="off")), [[1]], SAMPLING)


@pytest.mark.slow
def test_it_is_compiled_in_the_background_and_found_again(own_cache):
    first = Compilation()
    assert first.library() is None
    assert not own_cache.exists(), "nothing begins before it is asked for"
    first.start()
    assert first.library() is None, "nobody waits"
    assert first.wait() is not None, first.reason
    while left := {path.suffix for path in own_cache.iterdir()} - {".so", ".sum"}:
        assert left == {".log"}, "the compiler's last words go when the library is there"
    assert Compilation().library() is not None


@pytest.mark.slow
def test_the_compiler_goes_on_when_the_process_has_ended(own_cache):
    code = "from groundling.sample.native.build import Compilation; Compilation().start()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    compilation = Compilation()
    compilation._started_at = 0.0  # as if it had been started here: `library` only looks
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
def test_where_it_cannot_be_compiled_pytorch_goes_on_and_it_is_said_once(
    own_cache, tmp_path, monkeypatch, model, does, said, notes
):
    compiler_that(tmp_path, monkeypatch, does)
    monkeypatch.setattr(auto_runner, "WORTH_COMPILING_S", 0.0)
    engine = Engine(model)
    assert generate_batch(engine, [[1]], SAMPLING) == by_pytorch(model)
    until = time.monotonic() + 60
    while not notes and time.monotonic() < until:  # the compiler was slower than the tokens
        time.sleep(0.01)
        generate_batch(engine, [[1]], SAMPLING)
    assert len(notes) == 1
    assert said in notes[0]
    assert not engine.is_native
    with pytest.raises(ConfigError, match="leave native at auto"):
        Engine(model, DecodeConfig(native="on"))


def test_without_a_compiler_pytorch_goes_on(own_cache, monkeypatch, model, notes):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(own_cache))
    monkeypatch.setattr(auto_runner, "WORTH_COMPILING_S", 0.0)
    assert generate_batch(Engine(model), [[1]], SAMPLING) == by_pytorch(model)
    assert notes == [
        "decoding with PyTorch, which is slower: no C++ compiler was found (install g++ or clang++, or set CXX)"
    ]


def test_a_cache_that_cannot_be_written_is_no_hindrance(tmp_path, monkeypatch, model, notes):
    (tmp_path / "cache").write_text("a file is in the way", encoding="utf-8")
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(auto_runner, "WORTH_COMPILING_S", 0.0)
    assert generate_batch(Engine(model), [[1]], SAMPLING) == by_pytorch(model)
    assert len(notes) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="a folder that not even root can write to")
def test_a_folder_that_the_compiler_cannot_write_to_is_not_waited_for(own_cache, monkeypatch, model):
    own_cache.parent.mkdir()
    own_cache.symlink_to("/proc")
    monkeypatch.setattr("groundling.sample.native.build.LONGEST_S", 1.0)
    with pytest.raises(ConfigError, match=r"could not be compiled by .*: cannot write .*native"):
        Engine(model, DecodeConfig(native="on"))


@pytest.mark.parametrize("damage", ["cut", "overwritten", "no sum"])
def test_a_damaged_library_is_never_called_and_is_compiled_again(tmp_path, damage):
    """A process that calls into a part that is missing is killed by the system."""
    machines, copies = Compilation(), Compilation(tmp_path / "native")
    assert machines.wait() is not None
    copies._folder.mkdir(mode=0o700)

    def copy() -> None:
        shutil.copy(machines._whole, copies._whole)
        shutil.copy(machines._sum, copies._sum)

    copy()
    code = bytearray(copies._whole.read_bytes())
    if damage == "no sum":
        copies._sum.unlink()
    elif damage == "cut":
        copies._whole.write_bytes(code[:60_000])
    else:
        code[8_192:70_000] = bytes(70_000 - 8_192)
        copies._whole.write_bytes(code)
    assert copies.library() is None
    assert not copies.reason, "it is not given up"
    assert not copies._whole.exists()
    copy()
    assert copies.library() is not None


@pytest.mark.parametrize("what", ["a folder under its name", "no home", "others may write"])
def test_no_library_is_taken_from_a_bad_place(own_cache, monkeypatch, model, what, notes):
    monkeypatch.setattr(auto_runner, "WORTH_COMPILING_S", 0.0)
    name = Compilation()._whole
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
        name.write_bytes(b"code of somebody else")
    engine = Engine(model)
    assert generate_batch(engine, [[1]], SAMPLING) == by_pytorch(model)
    if what == "a folder under its name":
        return  # the compiler puts the library into it, and it is never found
    assert len(notes) == 1
    assert {"no home": "no home", "others may write": "others may write to it"}[what] in notes[0]


def test_pieces_that_cannot_be_read_never_reach_the_library(model):
    reader = AutoRunner(model, 2, native="on")
    for piece in (
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
            reader.read([piece])


def test_a_fork_gets_threads_of_its_own(model):
    torch.set_num_threads(2)
    try:
        reader = AutoRunner(model, 1, native="on")
        expected = reader.read([TokenSpan(0, 0, [1, 2], 1)])
        child = os.fork()
        if child == 0:
            same = torch.equal(reader.read([TokenSpan(0, 0, [1, 2], 1)]), expected)
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(reader.read([TokenSpan(0, 0, [1, 2], 1)]), expected)
    finally:
        torch.set_num_threads(1)


def test_bfloat16_weights_do_not_change_hands_in_the_middle_of_a_text(monkeypatch, model):
    """Compiled code may round more there, and the text would depend on when it was ready."""
    library = Compilation().wait()
    looks = iter([None])
    monkeypatch.setattr(Compilation, "library", lambda self: next(looks, library))
    monkeypatch.setattr(Compilation, "start", lambda self: None)
    monkeypatch.setattr(auto_runner, "WORTH_COMPILING_S", 0.0)
    engine = Engine(model, DecodeConfig(weights="bfloat16"))
    generate_batch(engine, [[1]], SAMPLING)
    assert not engine.is_native
    assert Engine(model, DecodeConfig(weights="bfloat16")).is_native, "the next one begins with it"


def test_a_short_job_does_not_start_a_compiler(own_cache, model):
    engine = Engine(model)
    generate_batch(engine, [[1]], SAMPLING)
    assert not engine.is_native
    assert not own_cache.exists()


def test_compiled_code_takes_over_in_the_middle_of_a_text(monkeypatch, model):
    """The cache goes over: the text is the one that PyTorch or compiled code would give alone."""
    library = Compilation().wait()
    looks = iter([None, *[None] * 3])  # as if it were ready only some tokens later
    monkeypatch.setattr(Compilation, "library", lambda self: next(looks, library))
    monkeypatch.setattr(Compilation, "start", lambda self: None)
    monkeypatch.setattr(auto_runner, "WORTH_COMPILING_S", 0.0)
    engine = Engine(model)
    sample = engine.add([1], SAMPLING, torch.Generator().manual_seed(0))
    was_native = []
    for _ in engine.run():
        was_native.append(engine.is_native)
    assert was_native == [False, False, False, *[True] * 37]
    alone = Engine(model, DecodeConfig(native="off"))
    other = alone.add([1], SAMPLING, torch.Generator().manual_seed(0))
    list(alone.run())
    assert sample.tokens == other.tokens


def test_what_cannot_be_compiled_is_refused_only_when_it_was_demanded(model):
    assert not AutoRunner(model.double(), 1).is_native
    with pytest.raises(ConfigError, match=r"only float32 on a CPU is compiled, not torch.float64 on cpu"):
        AutoRunner(model.double(), 1, native="on")

    class Other(torch.nn.Linear):
        block_size = 4

    with pytest.raises(ConfigError, match="a Other is read as it is"):
        AutoRunner(Other(1, 1), 1, weights="int8")


def test_the_training_mode_is_left_alone(model):
    model.train()
    engine = Engine(model, DecodeConfig(native="on"))
    generate_batch(engine, [[1]], SAMPLING)
    assert model.training
    assert engine.is_native


@pytest.mark.parametrize(("lanes", "n_woven"), [(16, 1), (16, 3), (8, 2), (8, 3), (4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize(("n_out", "n_in"), [(16, 4), (64, 6), (5, 3), (49, 1), (70, 8)])
def test_packing_puts_a_panel_s_outputs_side_by_side_and_fills_up_with_zeros(n_out, n_in, dtype, lanes, n_woven):
    weight_NK = torch.arange(1, n_out * n_in + 1).view(n_out, n_in).remainder(100).to(dtype)
    together = 2 if dtype == torch.bfloat16 else 1
    n_panels, n_steps = -(-n_out // lanes), -(-n_in // together)
    n_full = n_panels // n_woven * n_woven
    expected = []
    for first, n_side in [(p, n_woven) for p in range(0, n_full, n_woven)] + [(p, 1) for p in range(n_full, n_panels)]:
        for step, panel, lane, part in itertools.product(range(n_steps), range(n_side), range(lanes), range(together)):
            n, k = (first + panel) * lanes + lane, step * together + part
            expected.append(weight_NK[n, k].item() if n < n_out and k < n_in else 0)
    assert pack(weight_NK, lanes, n_woven).tolist() == expected


def test_threads_do_not_outlive_their_runner(model):
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    torch.set_num_threads(3)
    try:
        reader = AutoRunner(model, 1, native="on")
        reader.read([TokenSpan(0, 0, [1, 2], 1)])
        before = threads()
        del reader
        assert threads() == before - 2
    finally:
        torch.set_num_threads(1)
