"""Compiled code is used where it is the faster reader, which is measured once and kept."""

import dataclasses
import json
import math
import os
import stat

import pytest
import torch

from groundling.errors import ConfigError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample import auto_runner
from groundling.sample.auto_runner import AutoRunner, compare, native_is_faster
from groundling.sample.engine import DecodeConfig, Engine, deterministic_decode
from groundling.sample.generate import generate_batch
from groundling.sample.native import comparison
from groundling.sample.native.build import Compilation
from groundling.sample.native.comparison import Comparison, cases, shape_key
from groundling.sample.sampler import SamplingConfig

CONFIG = GPTConfig(n_layer=1, n_head=4, n_embd=256, block_size=48, vocab_size=33)
SAMPLING = SamplingConfig(max_new_tokens=3, temperature=1.0)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return GPT(CONFIG).eval()


@pytest.fixture
def timings(tmp_path, monkeypatch):
    """Where the measurements of the machine's library are kept, in this test."""
    path = tmp_path / "timings.json"
    monkeypatch.setattr(Compilation, "timings", path)
    assert Compilation().wait() is not None
    return path


@pytest.mark.slow
def test_a_library_that_is_slower_than_pytorch_is_not_used(tmp_path, monkeypatch, model, notes):
    """Really slower: compiled without any optimisation."""
    script = tmp_path / "compiler"
    script.write_text('#!/bin/sh\nexec g++ "$@" -O0\n', encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path / "cache"))
    compilation = Compilation()
    library = compilation.wait()
    assert library is not None, compilation.reason
    engine = Engine(model)
    assert not engine.is_native
    assert len(notes) == 1
    assert notes[0].startswith("decoding with PyTorch, ")
    expected = generate_batch(Engine(model, DecodeConfig(native="off")), [[1]], SAMPLING)
    assert generate_batch(engine, [[1]], SAMPLING) == expected
    assert not native_is_faster(model, "float32", 16)
    assert deterministic_decode(model, DecodeConfig()).native == "off"
    assert Engine(model, DecodeConfig(native="on")).is_native, "who demands it gets it"
    found = compare(model, 16, "float32", compilation, library)
    assert all(speedup < 1 for speedup in found.speedups().values()), found


def test_the_machine_s_library_is_measured_and_used(timings, model):
    assert Engine(model).is_native
    assert deterministic_decode(model, DecodeConfig(weights="int8")).native == "on"
    kept = json.loads(timings.read_text("utf-8"))
    assert kept.keys() == {shape_key(CONFIG, "float32", 1), shape_key(CONFIG, "int8", 16)}
    for entry in kept.values():
        assert entry["native_s"].keys() == entry["torch_s"].keys()
        assert all(0 < seconds < math.inf for seconds in (*entry["native_s"].values(), *entry["torch_s"].values()))


def test_what_was_measured_once_is_believed(timings, monkeypatch, model, notes):
    monkeypatch.setattr(auto_runner, "measure", lambda *_: pytest.fail("measured again"))
    slower = {"native_s": {"1 stream": 0.3}, "torch_s": {"1 stream": 0.1}}
    faster = {"native_s": {"1 stream": 0.1}, "torch_s": {"1 stream": 0.3}}
    kept = {shape_key(CONFIG, "float32", 1): slower, shape_key(CONFIG, "bfloat16", 1): faster}
    timings.write_text(json.dumps(kept), encoding="utf-8")
    assert not Engine(model).is_native
    assert notes == ["decoding with PyTorch, 3.0 times as fast here as the native decoder"]
    assert Engine(model, DecodeConfig(weights="bfloat16")).is_native
    assert len(notes) == 1


@pytest.mark.parametrize(
    "content",
    ["", "nonsense", "[]", "{}", '{"KEY": 3}', '{"KEY": {"native_s": {}, "torch_s": {}}}',
     '{"KEY": {"native_s": {"1 stream": 0.1}, "torch_s": {"2 streams": 0.1}}}',
     '{"KEY": {"native_s": {"1 stream": -1.0}, "torch_s": {"1 stream": NaN}}}'],
)  # fmt: skip
def test_a_damaged_file_of_measurements_is_made_anew(timings, model, content):
    key = shape_key(CONFIG, "float32", 1)
    timings.write_text(content.replace("KEY", key), encoding="utf-8")
    assert Engine(model).is_native
    assert json.loads(timings.read_text("utf-8"))[key]["native_s"].keys() == cases(CONFIG, 1).keys()


@pytest.mark.skipif(os.name == "nt", reason="there is no compiled code")
def test_a_place_that_cannot_be_written_is_no_hindrance(tmp_path, monkeypatch, model):
    (tmp_path / "file").touch()
    monkeypatch.setattr(Compilation, "timings", tmp_path / "file" / "timings.json")
    assert Compilation().wait() is not None
    assert Engine(model).is_native


def test_a_measurement_is_of_a_shape_and_a_precision(model):
    key = shape_key(CONFIG, "float32", 1)
    for changed in ({"n_layer": 2}, {"n_embd": 128}, {"vocab_size": 34}, {"n_kv_head": 1}, {"mlp": "swiglu"}):
        assert shape_key(dataclasses.replace(CONFIG, **changed), "float32", 1) != key
    for same in ({"block_size": 96}, {"dropout": 0.1}):
        assert shape_key(dataclasses.replace(CONFIG, **same), "float32", 1) == key
    assert shape_key(CONFIG, "int8", 1) != key
    assert shape_key(CONFIG, "float32", 16) != key
    assert shape_key(CONFIG, "float32", 16) == shape_key(CONFIG, "float32", 64)


def test_measuring_leaves_threads_and_slots_as_they_were(timings, model):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        reader = AutoRunner(model, 3)
        assert torch.get_num_threads() == 2
        assert reader.cache is not None
        assert all(reader.cache.capacity(slot) == 0 for slot in range(3))
    finally:
        torch.set_num_threads(threads)


def test_measuring_takes_memory_for_a_prompt_of_each_slot_and_no_more(timings, monkeypatch, model):
    """Of a window of some ten thousand positions, what a slot gets at first is too much for sixteen."""
    capacities = []

    def measure(native, by_torch, *words):
        found = comparison.measure(native, by_torch, *words)
        assert native.cache is by_torch.cache
        capacities.extend(native.cache.capacity(slot) for slot in range(native.cache.n_slots))
        return found

    monkeypatch.setattr(auto_runner, "measure", measure)
    deterministic_decode(model, DecodeConfig())
    assert capacities == [comparison.PROMPT] * 16


@pytest.mark.parametrize(
    "error",
    [MemoryError("Cannot allocate memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")],
    ids=["Python's", "PyTorch's"],
)
def test_too_little_memory_to_measure_is_said_in_one_line(timings, monkeypatch, model, error):
    def measure(*_):
        raise error

    monkeypatch.setattr(auto_runner, "measure", measure)
    for decode in (lambda: deterministic_decode(model, DecodeConfig()), lambda: Engine(model)):
        with pytest.raises(ConfigError, match=f"not enough memory to continue: .*{str(error)[-20:]}"):
            decode()
    monkeypatch.setattr(auto_runner, "measure", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        Engine(model)


def test_the_mean_decides():
    mixed = Comparison({"1 stream": 1.0, "16 streams": 4.0}, {"1 stream": 3.0, "16 streams": 2.0})
    assert mixed.speedups() == {"1 stream": 3.0, "16 streams": 0.5}
    assert mixed.speedup == pytest.approx(1.5**0.5)
    assert mixed.prefers_native
    assert not Comparison({"1 stream": 1.0}, {"1 stream": 0.9}).prefers_native
    assert comparison.STREAMS == 16
