"""What is compiled in training: the blocks, once for all; and it computes what plain code does."""

import copy

import pytest
import torch
import torch._dynamo.utils as dynamo
import torch._inductor.config as inductor_config

from groundling.data.batches import Batch
from groundling.model.attention import attention_in_products, fused_attention
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.system import runtime
from groundling.system.runtime import RuntimeConfig
from groundling.train.compiled import compile_objective
from groundling.train.optim.optimizers import OptimConfig, Optimizers
from groundling.train.step import Objective, train_step

SIZES = {"n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 13, "position": "rotary", "qk_norm": True}
compiled_only = pytest.mark.skipif(not runtime.find_compiler(), reason="no C++ compiler")


def picked(**changes):
    return runtime.pick(
        RuntimeConfig(**{"device": "cpu", "dtype": "float32", "compile": "on", "tune_allocator": False} | changes)
    )


def make(n_layer: int = 2, **changes) -> GPT:
    torch.manual_seed(1)
    return GPT(GPTConfig(n_layer=n_layer, norm="rmsnorm", mlp="swiglu", bias=False, **{**SIZES, **changes})).train()


def batch() -> Batch:
    ids = torch.randint(13, (4, 17), generator=torch.Generator().manual_seed(2))
    return Batch(ids[:, :-1], ids[:, 1:], 64)


@pytest.fixture(autouse=True)
def _compiles(notes):
    """A test that expects a failure takes its note away."""
    yield
    assert not notes


@pytest.fixture
def fresh_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    dynamo.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@compiled_only
@pytest.mark.parametrize("n_layer", [2, 12])
def test_blocks_share_one_compilation_and_train_as_uncompiled(n_layer, fresh_compiler):
    """Twelve are more than the compiler would compile one by one before it gives up."""
    plain, model = make(n_layer), make(n_layer)
    objective = Objective(model)
    compile_objective(objective, picked())
    for net, goal in ((plain, Objective(plain)), (model, objective)):
        optimizers = Optimizers(net, OptimConfig(kind="muon"))
        for _ in range(3):
            train_step(goal, [batch()], optimizers)
    assert dynamo.counters["stats"]["unique_graphs"] == 1
    for ours, reference in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, reference, rtol=0, atol=2e-4)


@pytest.mark.slow
@compiled_only
@pytest.mark.parametrize("changes", [{"n_kv_head": 1}, {"position": "learned", "head_size": 9}], ids=str)
def test_a_window_of_several_blocks_of_rows_compiles_to_the_same(changes, fresh_compiler):
    """150 positions are a block of 128 rows and the 22 that are left; keys are shared, or of an odd width."""
    plain, model = (make(1, **changes, block_size=150) for _ in range(2))
    objective = Objective(model)
    compile_objective(objective, picked())
    ids = torch.randint(13, (2, 151), generator=torch.Generator().manual_seed(3))
    for goal in (objective, Objective(plain)):
        goal(Batch(ids[:, :-1], ids[:, 1:], 300)).backward()
    for ours, reference in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@compiled_only
def test_evaluation_and_sampling_stay_uncompiled(fresh_compiler):
    model = make(dropout=0.3)
    objective = Objective(model)
    compile_objective(objective, picked())
    objective(batch())
    n_graphs = dynamo.counters["stats"]["unique_graphs"]
    with torch.no_grad():
        for T in (1, 3, 7):
            again = model.eval()(batch().idx_BT[:, :T])
            torch.testing.assert_close(again, make(dropout=0.3).eval()(batch().idx_BT[:, :T]))
    assert dynamo.counters["stats"]["unique_graphs"] == n_graphs


@pytest.mark.slow
@compiled_only
def test_compiled_dropout_repeats_with_its_seed_and_differs_between_blocks_and_steps(fresh_compiler):
    objective = Objective(make(dropout=0.5, attention_dropout=0.5))
    compile_objective(objective, picked())

    def losses(seed: int) -> list[float]:
        torch.manual_seed(seed)
        return [objective(batch()).item() for _ in range(3)]

    first = losses(7)
    assert losses(7) == first
    assert len(set(first) | set(losses(8))) == 6


@pytest.mark.slow
@inductor_config.patch({"cpp.cxx": ("/nowhere/g++",), "force_disable_caches": True})
def test_where_compilation_fails_the_blocks_go_on_with_the_fused_kernel(fresh_compiler, notes):
    model = make()
    objective = Objective(model)
    compile_objective(objective, picked())
    assert model.h[0].attn.attend is attention_in_products
    loss = objective(batch())
    torch.testing.assert_close(loss, Objective(make())(batch()))
    assert [block.attn.attend for block in model.h] == [fused_attention] * 2
    assert len(notes) == 1
    notes.clear()


def test_nothing_changes_without_compilation():
    model = make()
    before = copy.copy(model.h[0].__dict__)
    compile_objective(Objective(model), picked(compile="off"))
    assert model.h[0].__dict__ == before
    assert model.h[0].attn.attend is fused_attention
