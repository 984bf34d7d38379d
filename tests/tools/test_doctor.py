"""`groundling doctor`: it tells what it should, and its speed is measured."""

import re
import time
from types import SimpleNamespace

import pytest
import torch

from groundling.errors import ConfigError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.system import hardware, runtime
from groundling.system.runtime import RuntimeConfig
from groundling.tools import doctor


@pytest.mark.slow
def test_it_tells_what_is_here_and_what_will_be_used(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert doctor.main(["--seconds", "0.1", "--device", "cpu", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in out.splitlines() if "│" in line}
    expected = (
        "Python system PyTorch memory bfloat16 compiler cache allocator device threads precision compile training "
        "decoding"
    )
    assert set(expected.split()) <= rows.keys()
    assert rows["PyTorch"] == torch.__version__
    assert rows["threads"].startswith("1 of ")
    assert rows["extra plot"] in ("installed", "missing: matplotlib")
    assert "GFLOP/s" in rows["matrix products"]
    speed = float(rows["training"].split()[0].replace(",", ""))
    assert speed > 10
    assert float(rows["decoding"].split()[0].replace(",", "")) > 10
    assert "tokens/s of that model, by " in rows["decoding"]
    assert re.fullmatch(r"vectors of \d+ floats; compared with PyTorch on one core:", rows["native decoder"])
    for weights in ("float32", "bfloat16", "int8"):
        speeds = r"1 stream [\d.]+ times as fast, 16 streams [\d.]+ times as fast, prompt of 32 [\d.]+ times as fast"
        assert re.search(rf"{weights}: {speeds}; (PyTorch is )?used", out), out
    assert "10.8 M parameters" in rows["training"] or "10.7 M parameters" in rows["training"]


def test_a_missing_extra_comes_with_its_whole_command(capsys, monkeypatch):
    """Brackets are markup to rich: `pip install -e 'here[serve]'` lost its extra."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    monkeypatch.setattr(doctor, "measure_decoding", lambda *_: 1.0)
    monkeypatch.setattr(doctor, "measure_training", lambda *_: 1.0)
    monkeypatch.setattr(doctor, "describe_native_decoder", lambda _: "none")
    monkeypatch.setattr(doctor, "Engine", lambda *_: SimpleNamespace(is_native=False))
    monkeypatch.setattr(hardware, "measure_matmul_peak", lambda *_: 1e9)
    assert doctor.main(["--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    for extra in doctor.EXTRAS:
        assert doctor.install_command(extra) in shown


def test_training_is_never_more_than_all_of_the_peak(capsys, monkeypatch):
    """Another process was busy while the peak was measured: it is measured again, and what training reached counts."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor, "measure_decoding", lambda *_: 1.0)
    monkeypatch.setattr(doctor, "Engine", lambda *_: SimpleNamespace(is_native=False))
    monkeypatch.setattr(doctor, "measure_training", lambda *_: 1000.0)
    reached = 1000.0 * GPT(GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=256)).flops_per_token()
    for measured, share, peak in (
        ((1e9, 1e9), "100%", reached),
        ((1e9, 2 * reached), "50%", 2 * reached),
        ((4 * reached, 1e9), "25%", 4 * reached),
    ):
        peaks = iter(measured)
        monkeypatch.setattr(hardware, "measure_matmul_peak", lambda *_, peaks=peaks: next(peaks))
        assert doctor.main(["--device", "cpu"]) == 0
        out = capsys.readouterr().out
        assert f"1,000 tokens/s without compilation, {share} of the above" in out
        assert f"{peak / 1e9:,.0f} GFLOP/s" in out


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(seconds):
    with pytest.raises(ConfigError, match=f"seconds is {seconds}; it must be a number of at least 0"):
        doctor.DoctorConfig(seconds=seconds)


def test_it_measures_whole_steps_for_as_long_as_asked():
    picked = runtime.pick(RuntimeConfig(device="cpu", dtype="float32", compile="off", tune_allocator=False))
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=5))
    before = model.wte.weight.detach().clone()
    start = time.perf_counter()
    tokens_per_s = doctor.measure_training(model, picked, seconds=0.2, batch_size=2)
    assert 0.2 <= time.perf_counter() - start < 60
    assert 8 < tokens_per_s < 1e7
    assert not torch.equal(model.wte.weight, before), "a step that updates nothing is not a step"
