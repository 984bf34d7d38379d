"""Row 69: what a hostile file asks for is compared with the bytes that are there before anything is built or cast."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from groundling import cli
from groundling.align.lora import LoraConfig, adapt
from groundling.align.reward.model import RewardModel, load_reward_model, save_reward_model
from groundling.bundle import limits, load_bundle, save_adapter, save_bundle
from groundling.bundle.adapter import Adapter, base_at
from groundling.bundle.layout import find_bundle
from groundling.errors import CheckpointError, ConfigError, GroundlingError, legible
from groundling.export.hf_folder import read_model
from groundling.export.hf_speech import read_tokenizer_and_chat
from groundling.export.nanogpt import read_checkpoint
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.model.layers import TABLE_ROWS, Rotary
from groundling.model.uninitialized import count_parameters
from groundling.storage import atomic
from groundling.storage.manifest import MANIFEST, _write_sealed, read_manifest, write_manifest
from groundling.system.memory import Memory
from groundling.system.metrics import read_records
from groundling.text.char import CharTokenizer
from groundling.text.chat.role_tokens import RoleTokens
from groundling.train import estimate
from groundling.train.checkpoints.checkpoint import Checkpoints, restore

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=8, block_size=8, vocab_size=8)
WRONG = {"I64": torch.int64, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64}
MAX_CPU_S = 2.0


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(1)
    save_bundle(tmp_path / "b", GPT(CONFIG), CharTokenizer("abcd"), {}, RoleTokens.after(4))
    return tmp_path / "b"


def sealed(folder: Path, **facts: object) -> None:
    """Let the manifest vouch for what is there now."""
    before = {name: fact for name, fact in read_manifest(folder).items() if name not in ("files", "sha256")}
    write_manifest(folder, {**before, **facts})


def refused(read, *arguments: object) -> str:
    """The one line that says why, after little work."""
    began = time.process_time()
    with pytest.raises(GroundlingError) as error:
        read(*arguments)
    assert time.process_time() - began < MAX_CPU_S
    said = str(error.value)
    assert said.isprintable()
    assert len(said) < 1600
    return said


def cast(file: Path, name: str, dtype: torch.dtype) -> None:
    tensors = load_file(file)
    save_file({**tensors, name: tensors[name].to(dtype)}, file)


def test_weights_of_another_type_are_refused_by_name(folder, tmp_path, tiny):
    base = load_bundle(folder)
    low_rank = {"h.0.attn.c_attn.weight": (torch.ones(1, 8), torch.ones(24, 1))}
    save_adapter(tmp_path / "a", Adapter(low_rank, {}, 0.5), base_at(folder), base)
    save_reward_model(tmp_path / "r", RewardModel(base.model), base, {})
    places = [
        (folder, "model.safetensors", "wte.weight", load_bundle),
        (tmp_path / "a", "adapter.safetensors", "h.0.attn.c_attn.weight|a", load_bundle),
        (tmp_path / "r", "head.safetensors", "weight", load_reward_model),
    ]
    for place, file, name, read in places:
        read(place)
        sound = (place / file).read_bytes()
        for said, dtype in WRONG.items():
            cast(place / file, name, dtype)
            sealed(place)
            assert f"{place / file}: {name} is of type {said}, expected F32" in refused(read, place)
        (place / file).write_bytes(sound)
        sealed(place)
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            cast(place / file, name, dtype)
            sealed(place)
            read(place)
        (place / file).write_bytes(sound)
        sealed(place)


def test_what_a_run_goes_on_from_is_of_its_type_and_shape(tiny, tmp_path):
    run = tmp_path / "run"
    tiny.pretrain(run, steps=5)
    newest = Checkpoints(run / "checkpoints").finished()[-1]
    file = newest / "training.safetensors"
    sound, tensors = file.read_bytes(), load_file(file)
    moment = next(name for name in tensors if name.endswith("|exp_avg") and tensors[name].dim() == 2)
    generator = next(name for name in tensors if name.startswith("generator|"))
    count = moment.replace("|exp_avg", "|step")
    attacks = [
        ({moment: None}, "the optimizer's state of"),
        ({count: None}, "the optimizer's state of"),
        ({moment.replace("exp_avg", "momentum"): tensors[moment].clone()}, "the optimizer's state of"),
        ({moment: tensors[moment].to(torch.float64)}, "the optimizer's exp_avg of"),
        ({moment: tensors[moment].to(torch.int32)}, f"{moment} is of type I32, expected F32"),
        ({moment: tensors[moment].to(torch.complex64)}, f"{moment} is of type C64"),
        ({generator: tensors[generator].float()}, f"{generator} is of type F32, expected U8"),
        ({moment: tensors[moment].T.contiguous()[:1]}, "the optimizer's exp_avg of"),
    ]
    for change, said in attacks:
        changed = {**tensors, **change}
        save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, file)
        sealed(newest)
        with pytest.raises(CheckpointError) as error:
            tiny.pretrain(run, resume=True, steps=8)
        assert said in str(error.value)
    file.write_bytes(sound)
    sealed(newest)
    tiny.pretrain(run, resume=True, steps=8)


def test_learned_weights_beside_their_average_are_not_spread(tiny, tmp_path):
    """A checkpoint of a run with an average holds both."""
    newest = tiny.save(Checkpoints(tmp_path / "checkpoints"), tiny.state(5, decay=0.9))
    restore(newest, tiny.state(1, decay=0.9))
    file, name = newest / "training.safetensors", "weights|ln_f.weight"
    tensors = load_file(file)
    for change in ({name: tensors[name][:1].clone()}, {"weights|another": tensors[name].clone()}):
        save_file({**tensors, **change}, file)
        sealed(newest)
        assert "does not fit the model" in refused(restore, newest, tiny.state(1, decay=0.9))


def test_a_loss_that_no_float_holds_ranks_last(tiny, tmp_path, capsys):
    folder = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    steps = [tiny.save(folder, tiny.state(step, val_loss=2.0)) for step in (5, 6)]
    for loss in (10**400, -(10**400), float("nan"), True, "2"):
        sealed(steps[0], val_loss=loss)
        assert find_bundle(tmp_path / "run") == steps[1] / "bundle"
        assert folder.by_loss("ours") == [steps[1], steps[0]]
        assert cli.main(["verify-checkpoint", str(tmp_path / "run")]) == 0
        assert f"good  {steps[0]}: 5 files\n" in capsys.readouterr().out
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": {10**400}}}\n{{"step": 2, "loss": 1}}\n')
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [2]


HUGE = [
    {"n_layer": 10_000},
    {"n_layer": 10**6},
    {"n_embd": 2**40, "n_head": 1},
    {"n_embd": 10**6, "n_head": 1},
    {"vocab_size": 10**9},
    {"block_size": 10**9},
    {"n_hidden": 10**9},
    {"n_hidden": 2**62},
    {"head_size": 10**9, "n_head": 1},
]


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_sizes_that_are_not_there_are_refused_before_anything_is_built(folder, position):
    sound = json.loads((folder / "config.json").read_text())
    for sizes in HUGE:
        (folder / "config.json").write_text(json.dumps({**sound, "position": position, **sizes}))
        sealed(folder)
        refused(load_bundle, folder)


def test_tables_that_no_file_holds_are_refused_and_a_shorter_context_is_not(tmp_path):
    rotary = dataclasses.replace(CONFIG, position="rotary", n_head=1, head_size=256)
    save_bundle(tmp_path / "b", GPT(rotary), CharTokenizer("abcd"))
    values = json.loads((tmp_path / "b" / "config.json").read_text())
    (tmp_path / "b" / "config.json").write_text(json.dumps({**values, "block_size": 2**22}))
    sealed(tmp_path / "b")
    said = refused(load_bundle, tmp_path / "b")
    assert "a context of 4,194,304 tokens takes tables of 4,295.0 MB; give a shorter one with --context" in said
    assert load_bundle(tmp_path / "b", context=1000).config.block_size == 1000


def test_tables_made_in_pieces_have_the_same_bits():
    n = 2 * TABLE_ROWS + 5
    rates = 500.0 ** (-torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    angles = torch.outer(torch.arange(n, dtype=torch.float64), rates)
    found = Rotary(n, 6, 500.0)
    assert torch.equal(found.cos_TP, angles.cos().float())
    assert torch.equal(found.sin_TP, angles.sin().float())


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_weights": False, "n_layer": 5}, {"position": "rotary", "mlp": "swiglu", "bias": False, "qk_norm": True}],
)
def test_parameters_are_counted_without_building_the_layers(changes):
    config = dataclasses.replace(CONFIG, **changes)
    assert count_parameters(config) == GPT(config).n_parameters()


def test_a_preset_asks_for_what_no_machine_has(tiny, tmp_path, monkeypatch):
    for sizes, said in (
        ({"n_embd": 10**6, "n_head": 1}, "take a smaller model"),
        ({"n_layer": 10**6}, "n_layer is 1,000,000; it must be at most 10,000"),
        ({"n_hidden": 2**62}, "sizes that no machine can hold"),
    ):
        with pytest.raises(ConfigError, match=said):
            tiny.pretrain(tmp_path / "run", model=dataclasses.replace(tiny.config(tmp_path).model, **sizes))
    monkeypatch.setattr(estimate, "memory_of", lambda: Memory(10**9, 10))
    with pytest.raises(ConfigError, match="GB of memory are free; take a smaller model"):
        tiny.pretrain(tmp_path / "run")
    monkeypatch.undo()
    assert tiny.pretrain(tmp_path / "run", steps=1, save_every=None, eval_every=None).figures["steps"] == 1


def test_a_rank_that_no_matrix_has_is_refused():
    with pytest.raises(ConfigError, match=r"lora.rank is 1000000000; the model's matrices have at most a rank of 8"):
        adapt(GPT(CONFIG), LoraConfig(rank=10**9), 4, seed=0)


def test_an_adapter_does_not_fit_by_being_spread(folder, tmp_path):
    """One row is added to all of a weight's by PyTorch's rules; no fine-tuning gives it."""
    base = load_bundle(folder)
    name = "h.0.attn.c_attn.weight"
    for a, b in (
        (torch.ones(1, 8), torch.ones(1, 1)),
        (torch.ones(1, 1), torch.ones(24, 1)),
        (torch.ones(8), torch.ones(8)),
    ):
        save_adapter(tmp_path / "a", Adapter({name: (a, b)}, {}, 0.5), base_at(folder), base)
        assert "adapter" in refused(load_bundle, tmp_path / "a")
    save_adapter(tmp_path / "a", Adapter({}, {"wte.weight": torch.tensor(1.0)}, 0.5), base_at(folder), base)
    assert "each must be a matrix" in refused(load_bundle, tmp_path / "a")
    sealed(tmp_path / "a", scale=float("inf"))
    assert "has the scale inf" in refused(load_bundle, tmp_path / "a")


def test_a_long_chain_of_adapters_is_refused(folder, tmp_path, monkeypatch):
    base = load_bundle(folder)
    monkeypatch.setattr(limits, "MAX_ADAPTERS", 2)
    before = folder
    for number in range(4):
        save_adapter(tmp_path / f"a{number}", Adapter({}, {}, 1.0), base_at(before), base)
        before = tmp_path / f"a{number}"
    load_bundle(tmp_path / "a1")
    assert "an adapter of an adapter, and so on for more than 2" in refused(load_bundle, before)


@pytest.mark.slow
def test_json_of_any_size_and_depth_is_one_line(folder):
    many = {f"key {n}": n for n in range(200_000)}
    deep: object = 0
    for _ in range(400):
        deep = [deep]
    for name in ("config.json", "tokenizer.json", "chat.json"):
        sound = (folder / name).read_text()
        values = json.loads(sound)
        attacks = [
            {**values, next(iter(values)): many},
            {**values, **dict.fromkeys(values, deep)},
            {"kind": "bpe", "tokenizers": deep},
            {**values, "symbols": list("abcd")},
            {**values, "symbols": [["abcd"]]},
        ]
        for attack in attacks:
            (folder / name).write_text(json.dumps(attack))
            sealed(folder)
            refused(load_bundle, folder)
        (folder / name).write_text(json.dumps({**values, **many}))
        sealed(folder)
        if name == "tokenizer.json":
            load_bundle(folder)
        else:
            refused(load_bundle, folder)
        (folder / name).write_text(sound)
    sealed(folder)
    load_bundle(folder)


def test_a_manifest_lists_few_files_and_each_once(folder):
    facts = {name: fact for name, fact in read_manifest(folder).items() if name != "sha256"}
    entry = facts["files"]["config.json"]
    for extra in (
        {f"{'./' * n}config.json": entry for n in range(1, 500)},
        {f"missing {n}": entry for n in range(1000)},
    ):
        _write_sealed(folder, {**facts, "files": {**facts["files"], **extra}})
        assert f"{folder / MANIFEST} is damaged: it does not list files" in refused(load_bundle, folder)
    (folder / MANIFEST).write_text("{}" + " " * (16 << 20))
    assert "and 16,777,216 are read at most" in refused(load_bundle, folder)


@pytest.mark.slow
def test_a_state_of_many_settings_is_one_line(tiny, tmp_path):
    run = tmp_path / "run"
    tiny.pretrain(run, steps=5)
    newest = Checkpoints(run / "checkpoints").finished()[-1]
    state = json.loads((newest / "state.json").read_text())
    state["config"] |= {f"key {n}": n for n in range(200_000)}
    atomic.write_json(newest / "state.json", state)
    sealed(newest)
    assert "and 199,980 more" in refused(lambda: tiny.pretrain(run, resume=True, steps=8))


def test_a_long_message_is_cut_before_it_is_made_readable():
    began = time.process_time()
    said = legible("\n" * 30_000_000)
    assert time.process_time() - began < 0.2
    assert len(said) < 1600
    assert "characters left out" in said


LLAMA = {
    **{"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 4},
    **{"intermediate_size": 4, "max_position_embeddings": 16, "vocab_size": 8},
}


@pytest.fixture
def foreign(tmp_path):
    """A Llama in the layout of the hub's cache: links to files in another folder."""
    shapes = {
        **{"embed_tokens": (8, 4), "norm": (4,), "layers.0.input_layernorm": (4,)},
        **{f"layers.0.self_attn.{part}_proj": (4, 4) for part in "qkvo"},
        **{f"layers.0.mlp.{part}_proj": (4, 4) for part in ("gate", "up", "down")},
        "layers.0.post_attention_layernorm": (4,),
    }
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    tensors = {f"model.{name}.weight": torch.rand(shape) for name, shape in shapes.items()}
    save_file({**tensors, "lm_head.weight": torch.rand(8, 4)}, blobs / "1")
    (blobs / "2").write_text(json.dumps(LLAMA))
    (blobs / "3").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "BPE"}}))
    names = ("model.safetensors", "config.json", "tokenizer.json")
    for blob, name in zip("123", names, strict=True):
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_the_weights_of_nanogpt_are_in_its_file(tmp_path):
    """One number that stands for all of a matrix, or one matrix for those of all layers, would fill the memory."""
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 64, "block_size": 8, "vocab_size": 5000, "bias": False}
    shapes = {
        **{"wte": (5000, 64), "wpe": (8, 64), "ln_f": (64,), "h.0.ln_1": (64,), "h.0.ln_2": (64,)},
        **{"h.0.attn.c_attn": (192, 64), "h.0.attn.c_proj": (64, 64)},
        **{"h.0.mlp.c_fc": (256, 64), "h.0.mlp.c_proj": (64, 256)},
    }
    model = {f"transformer.{name}.weight": torch.rand(shape) for name, shape in shapes.items()}
    tied = {**model, "lm_head.weight": model["transformer.wte.weight"]}
    torch.save({"model_args": sizes, "model": tied}, tmp_path / "ckpt.pt")
    assert read_checkpoint(tmp_path / "ckpt.pt")[0].tie_weights
    spread = {**model, "transformer.wte.weight": torch.rand(1, 1).expand(5000, 64)}
    torch.save({"model_args": sizes, "model": spread}, tmp_path / "ckpt.pt")
    assert "bytes, and says that its weights have 1," in refused(read_checkpoint, tmp_path / "ckpt.pt")
    layers = {name.replace("h.0", f"h.{n}"): tensor for n in range(50) for name, tensor in model.items()}
    torch.save({"model_args": {**sizes, "n_layer": 50}, "model": layers}, tmp_path / "ckpt.pt")
    assert "bytes, and says that its weights have 11," in refused(read_checkpoint, tmp_path / "ckpt.pt")


def test_a_folder_of_transformers_is_checked_before_it_is_built(foreign):
    read_model(foreign)
    config, weights = foreign / "config.json", foreign / "model.safetensors"
    for name, value in (
        *(("num_hidden_layers", n) for n in (0, 2, 10_000, 10**9)),
        *((name, 10**7) for name in ("hidden_size", "intermediate_size", "vocab_size", "head_dim")),
        *(("max_position_embeddings", n) for n in (10**7, 10**9)),
    ):
        config.write_text(json.dumps({**LLAMA, name: value}))
        refused(read_model, foreign)
    config.write_text(json.dumps({**LLAMA, **{f"key {n}": n for n in range(200_000)}}))
    read_model(foreign)
    config.write_text(json.dumps({**LLAMA, "hidden_act": ["x" * 10**6] * 20}))
    refused(read_model, foreign)
    config.write_text(json.dumps(LLAMA))
    sound = weights.read_bytes()
    for said, dtype in (("int64", torch.int64), ("bool", torch.bool), ("complex64", torch.complex64)):
        cast(weights, "model.norm.weight", dtype)
        assert f"model.norm.weight is of type torch.{said}" in refused(read_model, foreign)
    weights.write_bytes(sound)
    read_model(foreign)
    deep = "[" * 5000 + "]" * 5000
    for name, text in (("tokenizer.json", deep), ("tokenizer.json", f'{{"model": {deep}}}'), ("config.json", deep)):
        kept = (foreign / name).read_bytes()
        (foreign / name).write_text(text)
        refused(
            read_tokenizer_and_chat if name == "tokenizer.json" else read_model,
            foreign,
            *([False] * (name == "tokenizer.json")),
        )
        (foreign / name).write_bytes(kept)
    bpe = {"type": "BPE", "vocab": {"a": 0, "b": 2**31}, "merges": []}
    (foreign / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": bpe}))
    assert "it has the id 2,147,483,648" in refused(read_tokenizer_and_chat, foreign, False)
    for name in ("config.json", "model.safetensors"):
        kept = (foreign / name).read_bytes()
        for target in ("/dev/zero", name):
            (foreign / name).unlink()
            (foreign / name).symlink_to(target)
            refused(read_model, foreign)
        (foreign / name).unlink()
        (foreign / name).write_bytes(kept)
