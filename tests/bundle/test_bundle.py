"""A bundle comes back as it was saved, or a line says which file is wrong and how."""

import copy
import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from faultkit import append_a_byte, crash_at, cut_in_half, flip_a_bit
from groundling import cli
from groundling.bundle import load_bundle, save_adapter, save_bundle
from groundling.bundle.adapter import Adapter, base_at
from groundling.bundle.layout import FILES, find_bundle
from groundling.bundle.weights import plain_state_dict, read_weights
from groundling.bundle.writing import write_bundle_files
from groundling.errors import CheckpointError, StorageError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.storage import atomic
from groundling.storage.manifest import MANIFEST, check_manifest, write_manifest
from groundling.text.char import CharTokenizer
from groundling.text.serialize import fingerprint

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=8, block_size=6, vocab_size=5)
LLAMA_LIKE = dataclasses.replace(
    CONFIG, position="rotary", n_kv_head=1, norm="rmsnorm", mlp="swiglu", bias=False, tie_weights=False, qk_norm=True
)
TOKENIZER = CharTokenizer("\n abc")
IDX_BT = torch.tensor([[0, 1, 2, 3, 4, 0]])


def make_gpt(seed: int = 0, config: GPTConfig = CONFIG) -> GPT:
    model = GPT(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return model.eval()


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = plain_state_dict(a), plain_state_dict(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def folder(tmp_path):
    save_bundle(tmp_path / "b", make_gpt(), TOKENIZER, {"step": 3})
    return tmp_path / "b"


@pytest.mark.parametrize("config", [CONFIG, LLAMA_LIKE], ids=["gpt2-like", "llama-like"])
def test_what_is_saved_is_loaded(tmp_path, config):
    model = make_gpt(1, config)
    save_bundle(tmp_path / "deep" / "b", model, TOKENIZER)
    bundle = load_bundle(tmp_path / "deep" / "b")
    assert bundle.config == config
    assert fingerprint(bundle.tokenizer) == fingerprint(TOKENIZER)
    assert not bundle.model.training
    assert same_weights(model, bundle.model)
    assert torch.equal(bundle.model(IDX_BT), model(IDX_BT))
    assert [path.name for path in tmp_path.glob("deep/*")] == ["b"], "nothing temporary is left"


def test_tied_weights_are_stored_once_and_tied_again(folder):
    stored = load_file(folder / "model.safetensors")
    assert "wte.weight" in stored
    assert "lm_head.weight" not in stored
    model = load_bundle(folder).model
    assert model.lm_head.weight is model.wte.weight


def test_the_manifest_holds_the_extra_facts(folder):
    manifest = check_manifest(folder)
    assert manifest["step"] == 3
    assert sorted(manifest["files"]) == sorted(FILES)


def test_dtype_is_that_asked_for(folder):
    assert {p.dtype for p in load_bundle(folder, dtype=torch.float64).model.parameters()} == {torch.float64}


def test_loading_draws_nothing_from_the_global_generator(folder):
    state = torch.random.get_rng_state()
    load_bundle(folder)
    assert torch.equal(torch.random.get_rng_state(), state)


def in_blocks(model: GPT) -> GPT:
    model = copy.deepcopy(model)
    for layer, block in enumerate(model.h):
        model.h[layer] = torch.compile(block)
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        torch.compile,
        DistributedDataParallel,
        lambda model: torch.compile(DistributedDataParallel(model)),
        lambda model: DistributedDataParallel(torch.compile(model)),
        in_blocks,
    ],
    ids=["plain", "compiled", "ddp", "compiled ddp", "ddp of compiled", "compiled blocks"],
)
def test_a_wrapped_model_is_saved_as_the_plain_one(tmp_path, wrap: Callable[[nn.Module], nn.Module]):
    model = make_gpt(2)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        save_bundle(tmp_path / "b", wrap(model), TOKENIZER)
    finally:
        dist.destroy_process_group()
    assert load_file(tmp_path / "b" / "model.safetensors").keys() == plain_state_dict(model).keys()
    assert same_weights(load_bundle(tmp_path / "b").model, model)


# Damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_bit, "content differs"),
        (cut_in_half, r"is truncated: size \d+, expected \d+"),
        (append_a_byte, r"has extra bytes: size \d+, expected \d+"),
        (Path.unlink, "is missing"),
    ],
    ids=["flip", "cut", "append", "delete"],
)
def test_damage_is_named(folder, name, damage, said):
    damage(folder / name)
    with pytest.raises(CheckpointError, match=f"{name} .*{said}") as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [cut_in_half, append_a_byte, Path.unlink], ids=["cut", "append", "delete"])
def test_damage_to_the_manifest_is_named(folder, damage):
    damage(folder / MANIFEST)
    with pytest.raises(CheckpointError, match=MANIFEST):
        load_bundle(folder)


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {"config.json": 3}}',
        '{"files": {"config.json": {"size": "1", "sha256": ""}}}',
        '{"files": {"../outside": {"size": 1, "sha256": ""}}}',
        '{"files": {"/etc/hostname": {"size": 1, "sha256": ""}}}',
        '{"files": {}}',
        "[" * 100_000,
    ],
)
def test_a_manifest_that_vouches_for_nothing_is_refused(folder, manifest):
    (folder / MANIFEST).write_text(manifest)
    with pytest.raises(CheckpointError, match=r"manifest.json"):
        load_bundle(folder)


def vouch(folder: Path) -> None:
    """Write the manifest anew: what comes now is not chance damage, the parts do not fit."""
    write_manifest(folder, {})


def change_config(folder: Path, **fields: object) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **fields}))
    vouch(folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n_embd": 16}, r"h.0.attn.c_attn.bias is \(24,\), expected \(48,\); .*; and \d+ more"),
        ({"n_layer": 3}, r"has the weights of 2 layers, and .*config.json says 3"),
        ({"n_layer": 1}, r"has the weights of 2 layers, and .*config.json says 1"),
        ({"n_heads": 2}, "n.heads"),
        ({"n_layer": "many"}, "many"),
        ({"n_head": 3}, "n_embd 8 is not a multiple of n_head 3"),
        ({"n_embd": 2**20}, r"expected \(3145728,\)"),
        ({"n_embd": 2**40}, r"config.json has sizes that no machine can hold"),
        ({"vocab_size": 4}, "5 tokens and the model 4"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, fields, said):
    change_config(folder, **fields)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_bundle(folder)
    assert str(folder) in str(caught.value)


def test_swapped_weights_are_refused(folder, tmp_path):
    save_bundle(tmp_path / "other", make_gpt(0, LLAMA_LIKE), TOKENIZER)
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    vouch(folder)
    with pytest.raises(CheckpointError, match=r"does not fit the model: .*; and \d+ more"):
        load_bundle(folder)


def test_a_broken_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text('{"kind": "char"}')
    vouch(folder)
    with pytest.raises(CheckpointError, match=r"tokenizer.json"):
        load_bundle(folder)


def test_missing_things_are_named(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"there is no .*nowhere"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="empty is not a bundle"):
        load_bundle(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"model.safetensors is a file; give the folder"):
        load_bundle(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoints to choose 'last' from"):
        load_bundle(folder, checkpoint="last")


# Pickles


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.fixture
def pickled(tmp_path):
    """A pickle as `torch.save` would make it, and the file that appears when somebody reads it."""
    canary = tmp_path / "canary"
    torch.save({"weights": Payload(canary)}, tmp_path / "evil.pt")
    yield tmp_path / "evil.pt", canary
    assert not canary.exists(), "a pickle was read"
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert canary.exists(), "the payload works, so the line above proves something"


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin", ".ckpt"])
def test_a_pickle_is_refused_by_its_name(pickled, suffix):
    evil, _ = pickled
    renamed = evil.with_name(f"model{suffix}")
    shutil.copy(evil, renamed)
    with pytest.raises(CheckpointError, match="pickles are never opened"):
        load_bundle(renamed)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("raw", [False, True], ids=["torch.save", "pickle.dump"])
def test_a_pickle_in_place_of_any_file_is_never_unpickled(pickled, folder, name, raw):
    evil, canary = pickled
    shutil.copy(evil, folder / name)
    if raw:
        (folder / name).write_bytes(pickle.dumps(Payload(canary)))
    vouch(folder)
    with pytest.raises(CheckpointError, match=name):
        load_bundle(folder)


def test_pickles_that_lie_around_are_not_looked_at(pickled, folder):
    evil, _ = pickled
    for name in ("model.pt", "tokenizer.pkl", "meta.pkl", "pytorch_model.bin"):
        shutil.copy(evil, folder / name)
    assert same_weights(load_bundle(folder).model, make_gpt())
    for name in FILES:
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match="is not a bundle"):
        load_bundle(folder)


# Replacing


@pytest.mark.slow
def test_a_crash_at_any_operation_leaves_the_old_bundle_or_the_new(tmp_path):
    old, new = make_gpt(1), make_gpt(2)
    seen = set()
    k = 0
    crashed = True
    while crashed:
        k += 1
        where = tmp_path / str(k) / "b"
        save_bundle(where, old, TOKENIZER)
        crashed = crash_at(k, lambda where=where: save_bundle(where, new, TOKENIZER))
        found = load_bundle(where).model
        assert same_weights(found, old) or same_weights(found, new)
        seen.add(same_weights(found, new))
        save_bundle(where, old, TOKENIZER)  # and the next save is not disturbed by what was left
        assert same_weights(load_bundle(where).model, old)
        assert not (where.parent / "b.previous").exists()
    assert k > 15
    assert seen == {False, True}


def test_a_first_save_that_crashes_leaves_no_bundle(tmp_path):
    assert crash_at(9, lambda: save_bundle(tmp_path / "b", make_gpt(), TOKENIZER))
    with pytest.raises(CheckpointError, match="there is no"):
        load_bundle(tmp_path / "b")


def test_a_failed_save_leaves_the_old_bundle_and_nothing_else(folder):
    def full(operation: str, path: Path) -> None:
        if operation == "write" and "safetensors" in path.name:
            raise OSError(28, "No space left on device")

    atomic.observers.append(full)
    try:
        with pytest.raises(StorageError, match="the disk is full"):
            save_bundle(folder, make_gpt(7), TOKENIZER)
    finally:
        atomic.observers.clear()
    assert same_weights(load_bundle(folder).model, make_gpt())
    assert [path.name for path in folder.parent.iterdir()] == ["b"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("mine")
    (tmp_path / "note").write_text("mine")
    for name in ("thesis", "note"):
        with pytest.raises(CheckpointError, match="is not a bundle; it was left alone"):
            save_bundle(tmp_path / name, make_gpt(), TOKENIZER)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save_bundle(tmp_path / "empty", make_gpt(), TOKENIZER)
    assert same_weights(load_bundle(tmp_path / "empty").model, make_gpt())


def test_only_a_gpt_makes_a_bundle(tmp_path):
    with pytest.raises(TypeError, match="not a Linear"):
        save_bundle(tmp_path / "b", nn.Linear(2, 2), TOKENIZER)


# Runs


def make_checkpoint(run: Path, step: int, val_loss: float | None) -> Path:
    """A checkpoint whose weights are those of `make_gpt(step)`."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    (folder / "bundle").mkdir(parents=True)
    write_bundle_files(folder / "bundle", plain_state_dict(make_gpt(step)), CONFIG, TOKENIZER)
    save_file({"m": torch.zeros(3)}, folder / "training.safetensors")
    write_manifest(folder, {"step": step, "val_loss": val_loss, "run_id": "r"})
    return folder


def loaded_step(path: Path, checkpoint: str | int = "best") -> int:
    model = load_bundle(path, checkpoint=checkpoint).model
    return next(step for step in range(0, 3001, 250) if same_weights(model, make_gpt(step)))


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "run"
    for step, val_loss in ((1000, 1.7), (250, 2.0), (500, 1.5), (750, 1.6)):
        make_checkpoint(run, step, val_loss)
    return run


def test_of_a_run_without_a_bundle_the_best_checkpoint_is_taken(run):
    assert loaded_step(run) == 500


def test_a_checkpoint_can_be_chosen(run):
    assert loaded_step(run, "last") == 1000
    assert loaded_step(run, "750") == loaded_step(run, 750) == 750
    assert loaded_step(run / "checkpoints" / "step-00000250") == 250
    assert loaded_step(run / "checkpoints" / "step-00000250" / "bundle") == 250
    for wrong in ("999", "worst", "-1", "²"):
        with pytest.raises(CheckpointError, match=r"has: best, last, 250, 500, 750, 1000"):
            load_bundle(run, checkpoint=wrong)


def test_the_bundle_of_a_finished_run_is_its_best(run):
    save_bundle(run / "bundle", make_gpt(2000), TOKENIZER)
    assert loaded_step(run) == 2000
    assert loaded_step(run, "last") == 1000
    assert loaded_step(run, 500) == 500


def test_without_any_loss_the_newest_is_the_best(tmp_path):
    for step, val_loss in ((500, None), (1000, float("nan")), (250, None)):
        make_checkpoint(tmp_path, step, val_loss)
    assert loaded_step(tmp_path) == 1000


def test_unfinished_checkpoints_are_not_seen(run):
    shutil.copytree(run / "checkpoints" / "step-00000250", run / "checkpoints" / ".tmp-step-00003000-abc")
    shutil.copytree(run / "checkpoints" / "step-00000250", run / "checkpoints" / "step-00003000")
    (run / "checkpoints" / "step-00003000" / MANIFEST).unlink()
    assert loaded_step(run, "last") == 1000


def test_the_bundle_of_a_checkpoint_is_checked_by_the_checkpoints_manifest(run):
    best = run / "checkpoints" / "step-00000500"
    (best / "training.safetensors").unlink()  # sampling does not need it
    assert loaded_step(run) == 500
    flip_a_bit(best / "bundle" / "model.safetensors")
    for path in (run, best, best / "bundle"):
        with pytest.raises(CheckpointError, match=r"step-00000500/bundle/model.safetensors is damaged"):
            load_bundle(path)


def test_a_run_that_has_saved_nothing_says_so(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="has saved one"):
        find_bundle(tmp_path)


def test_weights_can_be_read_for_a_model_that_stands_already(folder):
    model = make_gpt(9)
    model.load_state_dict(read_weights(folder / "model.safetensors", torch.compile(model)), strict=False)
    assert same_weights(model, make_gpt())


def test_layers_are_counted_before_any_is_built(folder):
    """Ten thousand of them take a minute to build, also where they take no memory."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 10_000}), encoding="utf-8")
    write_manifest(folder, {})
    with pytest.raises(CheckpointError, match=r"has the weights of 2 layers, and .*config\.json says 10000$"):
        load_bundle(folder)


def test_an_adapter_of_itself_is_refused(tmp_path, folder):
    base = load_bundle(folder)
    for name, other in (("one", "b"), ("two", "one")):
        save_adapter(tmp_path / name, Adapter({}, {}, 1.0), base_at(tmp_path / other), base)
    assert same_weights(load_bundle(tmp_path / "two").model, base.model), "a chain that ends is one"
    for name, other in (("one", "two"), ("two", "two")):
        facts = json.loads((tmp_path / name / MANIFEST).read_text("utf-8"))
        write_manifest(tmp_path / name, {**facts, "base": f"../{other}"})
        with pytest.raises(CheckpointError, match=r"is an adapter of .*, which is itself an adapter of it"):
            load_bundle(tmp_path / name)


def test_a_bundle_is_not_exported_over_itself(folder, tmp_path, capsys):
    """Nor under another name for it: an adapter would be replaced by the whole model."""
    (tmp_path / "link").symlink_to(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for out in (folder, tmp_path / "link"):
        assert cli.main(["export", "bundle", str(folder), str(out), "--overwrite"]) == 1
        assert f"{out} is the input; choose another name for the output" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
