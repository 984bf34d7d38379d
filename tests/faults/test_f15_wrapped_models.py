"""Row 15: whatever wraps a model, its weights are saved under plain names, and go into one wrapped otherwise."""

import copy
import dataclasses

import pytest
import torch
import torch.distributed as td
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from groundling.bundle import load_bundle, save_bundle
from groundling.bundle.weights import plain_state_dict, read_weights
from groundling.errors import CheckpointError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.system.runtime import unwrap
from groundling.text.char import CharTokenizer
from groundling.train.checkpoints.checkpoint import Checkpoints, restore
from groundling.train.optim.optimizers import OptimConfig, Optimizers
from groundling.train.step import Objective, train_step

TIED = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=5)
UNTIED = dataclasses.replace(TIED, tie_weights=False, norm="rmsnorm", mlp="swiglu", position="rotary", bias=False)
TOKENIZER = CharTokenizer("\nabcd")
IDX_BT = torch.tensor([[0, 1, 2, 3, 4, 0, 2]])


@pytest.fixture(autouse=True)
def group(tmp_path):
    """A group of one rank, as torchrun would make it, that meets at a file."""
    td.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    td.destroy_process_group()


def sharded(model):
    mesh = init_device_mesh("cpu", (1,))
    for block in model.h:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPS = {
    "plain": lambda model: model,
    "compiled": torch.compile,
    "ddp": DistributedDataParallel,
    "ddp of compiled": lambda model: DistributedDataParallel(torch.compile(model)),
    "fsdp2": sharded,
}
each_wrap = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
each_config = pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])


def make(config, seed):
    torch.manual_seed(seed)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


@each_config
@each_wrap
def test_saved_from_each_and_loaded_into_a_plain_one(tmp_path, wrap, config):
    model = make(config, 1)
    logits, names = model(IDX_BT).detach(), plain_state_dict(model).keys()
    wrapped = wrap(copy.deepcopy(model))
    save_bundle(tmp_path / "b", wrapped, TOKENIZER)
    stored = load_file(tmp_path / "b" / "model.safetensors")
    assert stored.keys() == names
    assert not [name for name in stored if name.startswith(("_orig_mod.", "module.")) or "_orig_mod" in name]
    assert torch.equal(load_bundle(tmp_path / "b").model(IDX_BT), logits)


@each_config
@each_wrap
def test_saved_from_a_plain_one_and_loaded_into_each(tmp_path, wrap, config):
    """Into a model that is wrapped already and has other weights."""
    model = make(config, 1)
    save_bundle(tmp_path / "b", model, TOKENIZER)
    wrapped = wrap(make(config, 2))
    weights = read_weights(tmp_path / "b" / "model.safetensors", wrapped)
    if isinstance(wrapped, FSDPModule):
        set_model_state_dict(wrapped, weights, options=StateDictOptions(full_state_dict=True, strict=False))
    else:
        unwrap(wrapped).load_state_dict(weights, strict=False)
    found, expected = plain_state_dict(wrapped), plain_state_dict(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(unwrap(wrapped).eval()(IDX_BT), model(IDX_BT))


@each_wrap
def test_loaded_first_and_wrapped_then(tmp_path, wrap):
    model = make(TIED, 1)
    save_bundle(tmp_path / "b", model, TOKENIZER)
    wrapped = wrap(load_bundle(tmp_path / "b").model)
    expected = plain_state_dict(model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in plain_state_dict(wrapped).items())


@each_wrap
def test_a_wrong_name_would_be_seen(tmp_path, wrap):
    """The names are checked against the model's own, so a prefix that stayed would be an error and not ignored."""
    save_bundle(tmp_path / "b", make(TIED, 1), TOKENIZER)
    wrapped = wrap(make(dataclasses.replace(TIED, n_layer=1), 2))
    with pytest.raises(CheckpointError, match="expected no such tensor"):
        read_weights(tmp_path / "b" / "model.safetensors", wrapped)


@pytest.mark.parametrize("wrap", ["plain", "ddp"])
def test_a_checkpoint_of_a_wrapped_run_is_resumed_by_an_unwrapped_one(tiny, tmp_path, wrap):
    """Weights, the optimizer's state by the parameters' names, and the next step."""
    state = tiny.state(5)
    state.objective = WRAPS[wrap](state.objective)
    state.optimizers = Optimizers(state.model, OptimConfig())
    train_step(state.objective, state.batches.next_step(), state.optimizers)
    path = tiny.save(Checkpoints(tmp_path / "checkpoints"), state)
    fresh = tiny.state(6)
    restore(path, fresh)
    for each in (state, fresh):
        torch.manual_seed(3)
        train_step(each.objective, each.batches.next_step(), each.optimizers)
    assert isinstance(fresh.objective, Objective)
    ours, theirs = plain_state_dict(fresh.model), plain_state_dict(state.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
