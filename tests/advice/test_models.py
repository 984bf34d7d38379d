"""Advice about bundles, and what is sampled from them, followed."""

import json
import shlex
import shutil

import torch
from advicekit import follows

from groundling.bundle import load_bundle, save_adapter, save_bundle
from groundling.bundle.adapter import Adapter, base_at
from groundling.text.char import CharTokenizer
from groundling.text.chat.role_tokens import RoleTokens

SAY = ("--max-new-tokens", "2")


@follows(
    "there is no {}; give the folder of a bundle, a checkpoint or a run",
    "the path of the model is empty; give the folder of a bundle, a checkpoint or a run",
    "{} is a file; give the folder of a bundle, a checkpoint or a run{}",
    "{} has no checkpoints to choose {} from; leave the choice out",
)
def test_what_a_model_is_named_by(advised, a_run, tmp_path):
    words = ("--prompt", "the", *SAY)
    advised.refused("sample", tmp_path / "nothing", *words)
    advised.refused("sample", "", *words)
    advised.refused("sample", a_run / "bundle" / "model.safetensors", *words)
    for place in (a_run, a_run / "bundle", a_run / "checkpoints" / "step-00000006"):
        advised.works("sample", place, *words)
    advised.refused("sample", a_run / "bundle", "--checkpoint", "last", *words)
    advised.works("sample", a_run / "bundle", *words)


@follows("{} is a model in the layout of transformers; import it: {}", "groundling import hf {} OUT")
def test_a_folder_of_transformers(advised, a_run, tmp_path):
    folder = tmp_path / "a folder"
    advised.works("export", "hf", a_run, folder)
    said = advised.refused("sample", folder, "--prompt", "the", *SAY)
    words = shlex.split(said[said.index("groundling import") :].splitlines()[0].replace("OUT", str(tmp_path / "out")))
    advised.works(*words[1:])
    advised.works("sample", tmp_path / "out", "--prompt", "the", *SAY)


@follows(
    "{} exists and is not a bundle; it was left alone, choose another name",
    "{} is an adapter of {}, which does not exist; restore that model",
    "{} is a reward model: it scores replies and does not generate any; give the model whose replies it scores",
)
def test_bundles(advised, a_run, tmp_path):
    bundle = load_bundle(a_run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    advised.raises(lambda: save_bundle(tmp_path / "mine", bundle.model, bundle.tokenizer))
    save_bundle(tmp_path / "another", bundle.model, bundle.tokenizer)
    advised.done(load_bundle(tmp_path / "another"))
    wte = bundle.model.wte.weight.shape
    change = {"wte.weight|a": torch.zeros(1, wte[1]), "wte.weight|b": torch.zeros(wte[0], 1)}
    adapter = Adapter.from_tensors(change, 1.0)
    save_adapter(tmp_path / "adapter", adapter, base_at(tmp_path / "another"), bundle)
    shutil.move(tmp_path / "another", tmp_path / "away")
    advised.raises(lambda: load_bundle(tmp_path / "adapter"))
    shutil.move(tmp_path / "away", tmp_path / "another")
    advised.done(load_bundle(tmp_path / "adapter"))
    head = {"weight": torch.zeros(1, bundle.config.n_embd)}
    save_bundle(tmp_path / "judge", bundle.model, bundle.tokenizer, head=head)
    advised.refused("sample", tmp_path / "judge", "--prompt", "the", *SAY)
    advised.works("sample", a_run, "--prompt", "the", *SAY)


@follows("{} is a base model, not a chat model; fine-tune it with `groundling sft {}`")
def test_a_model_that_does_not_answer(advised, a_run, tmp_path, monkeypatch):
    import io

    said = advised.refused("dpo", a_run, "--preferences", tmp_path / "p.jsonl", "--out-dir", tmp_path / "dpo")
    rows = [{"messages": [{"role": "user", "content": "the king"}, {"role": "assistant", "content": "did speak"}]}] * 8
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = shlex.split(said[said.index("`groundling ") + 1 :].partition("`")[0])[1:]
    fast = ["--data.path", tmp_path / "c.jsonl", "--out-dir", tmp_path / "sft", "--n-replies", "0"]
    fast += ["--runtime.device", "cpu", "--epochs", "1", "--batch-size", "4"]
    advised.works(*words, *fast)
    assert load_bundle(tmp_path / "sft").chat == RoleTokens.after(load_bundle(a_run).tokenizer.vocab_size)
    monkeypatch.setattr("sys.stdin", io.StringIO("the king\n"))
    advised.works("chat", tmp_path / "sft", "--max-new-tokens", "2")


@follows("the draft has another tokenizer than the model; train it with the same one")
def test_a_draft_with_another_tokenizer(advised, a_run, tmp_path):
    bundle = load_bundle(a_run)
    other = CharTokenizer("".join(sorted({*bundle.tokenizer.symbols[1:], "Z"})))
    save_bundle(tmp_path / "draft", bundle.model, other)
    words = ("--prompt", "the", *SAY, "--speculate", "1", "--draft")
    advised.refused("sample", a_run, *words, tmp_path / "draft")
    save_bundle(tmp_path / "draft", bundle.model, bundle.tokenizer)
    advised.works("sample", a_run, *words, tmp_path / "draft")


@follows(
    "the model's best score is {} (sample {}): its weights are damaged, or its training diverged; "
    "use an earlier checkpoint"
)
def test_scores_that_are_not_finite(advised, a_run):
    from groundling.bundle.layout import WEIGHTS
    from groundling.storage.manifest import read_manifest, write_manifest

    newest = sorted((a_run / "checkpoints").glob("step-*"))[-1]
    bundle = load_bundle(a_run)
    with torch.no_grad():
        bundle.model.ln_f.weight.fill_(float("nan"))
    import safetensors.torch

    from groundling.bundle.weights import plain_state_dict

    (newest / "bundle" / WEIGHTS).write_bytes(safetensors.torch.save(plain_state_dict(bundle.model)))
    facts = read_manifest(newest)
    write_manifest(newest, {name: facts[name] for name in ("run_id", "step", "val_loss")})
    words = ("--prompt", "the", *SAY, "--checkpoint")
    advised.refused("sample", a_run, *words, "6")
    advised.works("sample", a_run, *words, "3")


@follows("the prompt on stdin is not UTF-8: byte {}; convert it first")
def test_a_prompt_that_is_not_utf_8(advised, a_run, monkeypatch):
    import io

    class Piped:
        def __init__(self, data):
            self.buffer = io.BytesIO(data)

        def isatty(self):
            return False

    monkeypatch.setattr("sys.stdin", Piped("the \N{LATIN SMALL LETTER E WITH ACUTE}".encode("latin-1")))
    advised.refused("sample", a_run, "--prompt", "-", *SAY)
    monkeypatch.setattr("sys.stdin", Piped(b"the"))
    advised.works("sample", a_run, "--prompt", "-", *SAY)


@follows(
    "{}; leave native at auto, and PyTorch decodes", "no C++ compiler was found (install g++ or clang++, or set CXX)"
)
def test_no_compiler(advised, a_run, monkeypatch):
    from groundling.sample.native import build

    monkeypatch.setattr(build, "find_compiler", lambda: "")
    words = ("--prompt", "the", *SAY)
    advised.refused("sample", a_run, *words, "--native", "on")
    advised.works("sample", a_run, *words)
    advised.works("sample", a_run, *words, "--native", "auto")


@follows("off: no C++ compiler was found (install g++ or clang++, or set CXX); training is slower")
def test_a_compiler_by_its_variable(advised, monkeypatch, tmp_path):
    from groundling.system import runtime

    reasons: dict[str, str] = {}
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    picked = runtime.RuntimeConfig(compile="on", device="cpu")
    assert not runtime._pick_compile(picked, torch.device("cpu"), True, reasons)
    advised.hears(reasons["compile"])
    for name in ("g++", "clang++", "my-c++"):
        (tmp_path / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("CXX", "my-c++" if name == "my-c++" else "")
        advised.done(runtime._pick_compile(picked, torch.device("cpu"), True, reasons))
        (tmp_path / name).unlink()


@follows("a draft model guesses tokens ahead; say how many with speculate")
def test_a_draft_in_python(advised, a_run):
    from groundling.sample.engine import DecodeConfig, Engine

    model = load_bundle(a_run).model
    advised.raises(lambda: Engine(model, DecodeConfig(), draft=model))
    advised.done(Engine(model, DecodeConfig(speculate=2), draft=model))
