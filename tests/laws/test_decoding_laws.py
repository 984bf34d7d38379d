"""Laws of decoding: compiled code, precision, batching, guessing and shared prompts change the cost of a text only."""

import dataclasses
import itertools
import math
import platform
from collections import Counter, deque
from pathlib import Path

import pytest
import torch
from torch import nn

from groundling.errors import CheckpointError
from groundling.model.cache import KVCache
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample import auto_runner, filters
from groundling.sample.auto_runner import AutoRunner
from groundling.sample.engine import DecodeConfig, Engine
from groundling.sample.generate import generate_batch
from groundling.sample.native.build import Compilation
from groundling.sample.native.runner import NativeRunner
from groundling.sample.quantize import with_rounded_weights
from groundling.sample.request import row_generator
from groundling.sample.runner import TokenSpan, TorchRunner, WindowRunner
from groundling.sample.sampler import SamplingConfig, adjust
from groundling.sample.scheduler import run_all

BASE = GPTConfig(n_layer=2, n_head=4, n_embd=32, block_size=24, vocab_size=21)
CONFIGS = {
    "gpt2": BASE,
    "relu, no bias, untied": dataclasses.replace(BASE, mlp="relu", bias=False, tie_weights=False),
    "relu2, 3 heads of 17": dataclasses.replace(BASE, mlp="relu2", n_head=3, n_embd=51, n_hidden=101),
    "llama, 6 heads on 2": dataclasses.replace(
        BASE, norm="rmsnorm", mlp="swiglu", position="rotary", bias=False, n_head=6, n_kv_head=2, n_embd=36
    ),
    "qwen3, heads of 80": dataclasses.replace(
        BASE, norm="rmsnorm", mlp="swiglu", position="rotary", bias=False, qk_norm=True, n_kv_head=1, head_size=80
    ),
}  # fmt: skip
BOUNDS = {"float32": 1e-6, "bfloat16": 0.03, "int8": 0.05}
"""Of the difference of scores from the float32 model's, as a part of the scores: each in the root mean square."""


def make_gpt(config: GPTConfig, seed: int = 3) -> GPT:
    model = GPT(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        gain = parameter.dim() == 1 and name.endswith("weight")
        nn.init.normal_(parameter, mean=float(gain), std=0.25, generator=generator)
    return model


def ids_of(n: int, vocab_size: int, seed: int = 0) -> list[int]:
    return torch.randint(vocab_size, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def library():
    return compiled_for("native")


X86 = platform.machine().lower() in ("x86_64", "amd64")
OLDER = {"haswell": 8, "x86-64": 4} if X86 else {}
"""Processors that the one here can stand for, with the floats in a vector: AVX2, and SSE2 without fused products."""


@pytest.fixture(scope="module", params=["native", *(pytest.param(name, marks=pytest.mark.slow) for name in OLDER)])
def any_library(request):
    """Compiled for this processor, and for older ones."""
    if request.param == "haswell" and "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("this processor has no AVX2")
    library = compiled_for(request.param)
    assert library.lanes == OLDER.get(request.param, library.lanes)
    return library


def compiled_for(processor: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDLING_MARCH", processor)
        compilation = Compilation()
        library = compilation.wait()
    assert library is not None, compilation.reason
    return library


def native(model: GPT, library, weights="float32", n_slots=3, n_threads=1) -> NativeRunner:
    dtype = torch.float32 if weights == "float32" else torch.bfloat16
    return NativeRunner(model, KVCache(model.config, n_slots, dtype), weights, library, n_threads)


def whole(reader, ids: list[int], slot: int = 0) -> torch.Tensor:
    return reader.read([TokenSpan(slot, 0, ids, len(ids))])


@pytest.mark.parametrize("weights", BOUNDS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_compiled_code_gives_the_model_s_scores(any_library, config, weights):
    model = make_gpt(config)
    ids = ids_of(24, config.vocab_size)
    with torch.inference_mode():
        expected_TV = model(torch.tensor([ids]))[0]
    difference_TV = whole(native(model, any_library, weights), ids) - expected_TV
    relative = (difference_TV.square().mean() / expected_TV.square().mean()).sqrt().item()
    assert relative <= BOUNDS[weights]
    if weights == "float32":
        assert difference_TV.abs().max() <= 1e-5 * expected_TV.abs().max()
    else:
        assert relative > 1e-4, "it would be no rounding"


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_compiled_code_rounds_as_the_rounded_model_does(any_library, weights):
    """Tighter than the bounds above: the weights are the same ones, only inputs, keys and values are rounded too."""
    model = make_gpt(CONFIGS["qwen3, heads of 80"])
    ids = ids_of(24, 21)
    with torch.inference_mode():
        expected_TV = with_rounded_weights(model, weights)(torch.tensor([ids]))[0]
    single = NativeRunner(model, KVCache(model.config, 1), weights, any_library, 1)  # keys and values in float32
    bound = 1e-5 if weights == "int8" else 0.02
    torch.testing.assert_close(whole(single, ids), expected_TV, rtol=0, atol=bound * expected_TV.abs().max().item())


@pytest.mark.parametrize("weights", BOUNDS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_row_s_bits_depend_on_nothing_but_its_sequence(any_library, config, weights):
    """Read at once, one by one, in ragged pieces, in a crowd, by three threads, in another slot: the same bits."""
    model = make_gpt(config)
    ids, other = ids_of(24, config.vocab_size), ids_of(24, config.vocab_size, seed=1)
    expected_TV = whole(native(model, any_library, weights), ids)
    assert torch.equal(whole(native(model, any_library, weights, n_threads=3), ids, slot=2), expected_TV)
    alone, crowd = native(model, any_library, weights), native(model, any_library, weights, n_threads=2)
    place = 0
    for n_new in (1, 1, 5, 1, 9, 7):
        piece = TokenSpan(1, place, ids[place : place + n_new], n_new)
        part_TV = expected_TV[place : place + n_new]
        assert torch.equal(alone.read([piece]), part_TV)
        beside = [
            TokenSpan(0, place, other[place : place + n_new], 1),
            piece,
            TokenSpan(2, place, other[place : place + 1], 1),
        ]
        assert torch.equal(crowd.read(beside)[1 : 1 + n_new], part_TV)
        place += n_new
    copied = native(model, any_library, weights)
    whole(copied, ids)
    copied.copy(0, 2, 11)
    assert torch.equal(copied.read([TokenSpan(2, 11, ids[11:], 13)]), expected_TV[11:])


@pytest.mark.parametrize("weights", BOUNDS)
def test_memory_that_grows_changes_no_bit(library, weights):
    """A slot's memory moves twice while its sequence is read id by id, and those beside it are short, or copies."""
    model = make_gpt(dataclasses.replace(CONFIGS["llama, 6 heads on 2"], block_size=700))
    ids, other = ids_of(600, 21), ids_of(600, 21, seed=1)
    expected_TV = whole(native(model, library, weights), ids)
    reader = native(model, library, weights, n_threads=2)
    reader.read([TokenSpan(0, 0, ids[:250], 1), TokenSpan(2, 0, other[:3], 1)])
    for place in range(250, 600):
        beside = TokenSpan(2, place - 247, other[place - 247 : place - 246], 1)
        assert torch.equal(reader.read([TokenSpan(0, place, ids[place : place + 1], 1), beside])[0], expected_TV[place])
    assert [reader.cache.capacity(slot) for slot in range(3)] == [704, 0, 512]
    reader.copy(0, 1, 400)
    assert torch.equal(reader.read([TokenSpan(1, 400, ids[400:], 200)]), expected_TV[400:])


@pytest.mark.slow
@pytest.mark.parametrize("few_scores", [0, 1 << 24])
def test_pytorch_reads_long_and_short_sequences_together(monkeypatch, few_scores):
    """Of lengths for which slots have memory of different sizes, scoring all positions or only the last ones."""
    monkeypatch.setattr(TorchRunner, "FEW_SCORES", few_scores)
    config = dataclasses.replace(CONFIGS["llama, 6 heads on 2"], block_size=2500)
    model = make_gpt(config).double()
    reader, oracle = TorchRunner(model, KVCache(config, 4, torch.float64)), WindowRunner(model, 4)
    ids, lengths = [ids_of(2500, 21, seed) for seed in range(4)], [2300, 254, 700, 1023]
    first = [TokenSpan(slot, 0, ids[slot][:n], 2) for slot, n in enumerate(lengths)]
    torch.testing.assert_close(reader.read(first), oracle.read(first), rtol=0, atol=1e-10)
    for step in range(3):
        pieces = [TokenSpan(slot, n + step, ids[slot][n + step : n + step + 1], 1) for slot, n in enumerate(lengths)]
        torch.testing.assert_close(reader.read(pieces), oracle.read(pieces), rtol=0, atol=1e-10)
    assert len({reader.cache.capacity(slot) for slot in range(4)}) > 2


@pytest.mark.parametrize("how", ["on", "off"])
def test_prompts_are_read_in_parts_with_the_same_result(library, how, monkeypatch):
    """Each position that is read at once takes memory for all that is computed of it."""
    model = make_gpt(dataclasses.replace(BASE, block_size=200))
    n_read = []
    reader = AutoRunner(model, 3, native=how)
    plain, inner = AutoRunner(model, 3, native=how), reader._runner.read
    monkeypatch.setattr(
        reader._runner, "read", lambda pieces: n_read.append(sum(len(p.ids) for p in pieces)) or inner(pieces)
    )
    pieces = [
        TokenSpan(0, 0, ids_of(150, 21), 3),
        TokenSpan(1, 0, ids_of(9, 21), 9),
        TokenSpan(2, 0, ids_of(70, 21, seed=2), 1),
    ]
    expected_RV = plain.read(pieces)
    monkeypatch.setattr(auto_runner, "READ_AT_ONCE", 32)
    read_RV = reader.read(pieces)
    assert (len(n_read), max(n_read), sum(n_read)) == (9, 32, 229)
    if how == "on":
        assert torch.equal(read_RV, expected_RV)
    torch.testing.assert_close(read_RV, expected_RV, rtol=0, atol=1e-5 * expected_RV.abs().max().item())


def test_many_rows_are_read_in_blocks(any_library):
    """More rows than a block has, of a vocabulary that fills several panels and not the last one."""
    model = make_gpt(dataclasses.replace(BASE, block_size=150, vocab_size=75))
    ids = ids_of(150, 75)
    with torch.inference_mode():
        expected_TV = model(torch.tensor([ids]))[0]
    read_TV = whole(native(model, any_library, n_threads=2), ids)
    torch.testing.assert_close(read_TV, expected_TV, rtol=0, atol=1e-5 * expected_TV.abs().max().item())
    one_by_one = native(model, any_library)
    for place in range(150):
        assert torch.equal(one_by_one.read([TokenSpan(0, place, ids[place : place + 1], 1)])[0], read_TV[place])


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_size", [17, 32, 64, 128])
def test_rows_that_read_a_long_past_together_have_the_bits_of_each_alone(any_library, head_size, weights):
    """Together they read keys and values in parts that stay in the processor's caches."""
    model = make_gpt(dataclasses.replace(BASE, n_layer=1, n_head=2, head_size=head_size, block_size=500))
    ids = ids_of(500, 21)
    together_TV = whole(native(model, any_library, weights, n_threads=2), ids)
    alone = native(model, any_library, weights)
    for place in range(500):
        assert torch.equal(alone.read([TokenSpan(0, place, ids[place : place + 1], 1)])[0], together_TV[place])
    if weights == "float32":
        with torch.inference_mode():
            expected_TV = model(torch.tensor([ids]))[0]
        torch.testing.assert_close(together_TV, expected_TV, rtol=0, atol=1e-5 * expected_TV.abs().max().item())


@pytest.mark.parametrize("weights", BOUNDS)
@pytest.mark.parametrize("head_size", [32, 48, 64, 128])
def test_a_long_past_and_a_large_crowd_change_no_bit(any_library, head_size, weights):
    """Many positions are looked at sixteen at a time, and many rows computed eight at a time, by code for the size."""
    sizes = {"n_head": 2, "n_kv_head": 1, "head_size": head_size, "n_embd": 48, "block_size": 90}
    model = make_gpt(dataclasses.replace(CONFIGS["llama, 6 heads on 2"], **sizes))
    texts = [ids_of(90, 21, seed) for seed in range(21)]
    crowd = native(model, any_library, weights, n_slots=21, n_threads=2)
    crowd.read([TokenSpan(slot, 0, ids[: 60 + slot], 1) for slot, ids in enumerate(texts)])
    after_RV = crowd.read([TokenSpan(slot, 60 + slot, ids[60 + slot :][:3], 2) for slot, ids in enumerate(texts)])
    for slot, ids in enumerate(texts):
        n_read = 63 + slot
        alone_TV = whole(native(model, any_library, weights), ids[:n_read])
        assert torch.equal(after_RV[2 * slot : 2 * slot + 2], alone_TV[-2:])
    if weights == "float32":
        with torch.inference_mode():
            expected_TV = model(torch.tensor(texts[:1]))[0, :63]
        torch.testing.assert_close(
            whole(native(model, any_library), texts[0][:63]),
            expected_TV,
            rtol=0,
            atol=1e-5 * expected_TV.abs().max().item(),
        )


def test_tiny_numbers_count_as_zero_in_compiled_code_alone(library):
    whole(native(make_gpt(BASE), library, n_threads=2), [1, 2, 3])
    assert torch.tensor(1e-39) * 0.5 > 0


def test_scores_that_are_no_numbers_come_through(library):
    model = make_gpt(BASE)
    with torch.no_grad():
        model.h[1].mlp.c_fc.bias[3] = float("nan")
    assert whole(native(model, library), [1, 2, 3]).isnan().all()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_pytorch_reads_sequences_of_different_lengths_as_if_alone(config):
    model = make_gpt(config).double()
    reader, oracle = TorchRunner(model, KVCache(config, 3, torch.float64)), WindowRunner(model, 3)
    ids = [ids_of(24, config.vocab_size, seed) for seed in range(3)]
    places = [0, 0, 0]
    for counts in ((7, 3, 7), (1, 1, 1), (2, 1, 0), (1, 5, 2), (1, 1, 1)):
        pieces = []
        for slot, n_new in enumerate(counts):
            if n_new:
                new = ids[slot][places[slot] : places[slot] + n_new]
                pieces.append(TokenSpan(slot, places[slot], new, min(n_new, 2)))
                places[slot] += n_new
        torch.testing.assert_close(reader.read(pieces), oracle.read(pieces), rtol=0, atol=1e-10)


SETTINGS = {
    "greedy": SamplingConfig(max_new_tokens=70, temperature=0),
    "sampled": SamplingConfig(max_new_tokens=70, temperature=0.9, seed=4),
    "filtered": SamplingConfig(
        max_new_tokens=70, temperature=1.2, top_k=9, top_p=0.9, typical_p=0.9, min_p=0.01, repetition_penalty=1.2,
        presence_penalty=0.1, frequency_penalty=0.05, logit_bias={3: -1.0, 4: 0.5}, seed=4,
    ),
}  # fmt: skip
PROMPTS = [[1, 2, 3] * 9, [4], [5, 6] * 3, [1, 2, 3] * 9]


@pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("how", ["on", "off"])
def test_guessing_changes_the_cost_and_never_the_text(library, how, sampling):
    """Far past `block_size`, with a draft that is often wrong, one that is never, and by looking up the text."""
    model = make_gpt(BASE)
    near = make_gpt(BASE)
    with torch.no_grad():
        for parameter in near.parameters():
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    expected = generate_batch(Engine(model, DecodeConfig(native=how), 3), PROMPTS, sampling)
    for speculate, draft, least in ((1, near, 0.3), (4, near, 0.1), (4, model, 0.999), (5, None, 0.0)):
        engine = Engine(model, DecodeConfig(native=how, speculate=speculate), 3, draft=draft)
        assert generate_batch(engine, PROMPTS, sampling) == expected
        assert engine.counts.guessed > 0
        assert engine.counts.right >= least * engine.counts.guessed
        if draft is near:
            assert engine.counts.right < engine.counts.guessed, "a draft that is never wrong would prove little"


def test_a_draft_may_see_less_than_the_model(library):
    model, draft = make_gpt(BASE), make_gpt(dataclasses.replace(BASE, n_layer=1, block_size=7))
    sampling = SETTINGS["sampled"]
    engine = Engine(model, DecodeConfig(speculate=3), 2, draft=draft)
    assert generate_batch(engine, PROMPTS, sampling) == generate_batch(Engine(model, n_slots=2), PROMPTS, sampling)


@pytest.mark.slow
def test_the_distribution_of_guessed_text_is_the_model_s_by_enumeration():
    """All noise of a grid, three tokens of a vocabulary of two: each text comes out exactly as often with guessing as
    without, and about as often as the chain rule says (the grid is what makes it "about").
    """
    config = dataclasses.replace(BASE, n_layer=1, n_head=1, n_embd=4, block_size=8, vocab_size=2)
    model, draft = make_gpt(config, seed=1), make_gpt(config, seed=2)
    n_grid = 5
    grid = -torch.log1p(-(torch.arange(n_grid) + 0.5) / n_grid)  # quantiles of the exponential distribution
    sampling = SamplingConfig(max_new_tokens=3, temperature=1.0)
    plain, guessed = (
        Engine(model, DecodeConfig(native="off")),
        Engine(model, DecodeConfig(native="off", speculate=2), draft=draft),
    )
    counts = {plain: Counter(), guessed: Counter()}
    cells = list(itertools.product(range(n_grid), repeat=4))
    for *first, a, b in [(*cell, a, b) for cell in cells for a, b in ((0, 3), (4, 1), (2, 2))]:
        noise = grid[[*first, a, b]].view(3, 2)
        for engine, texts in counts.items():
            request = engine.new_request([1], sampling, row_generator(0, 0))
            request._noise = deque(noise)
            for _ in run_all(engine, [request]):
                pass
            texts[tuple(request.tokens[1:])] += 1
    assert counts[plain] == counts[guessed]
    assert 0 < guessed.counts.right < guessed.counts.guessed
    total = sum(counts[plain].values())
    for text in itertools.product(range(2), repeat=2):
        ids = torch.tensor([[1, *text]])
        with torch.inference_mode():
            logprobs = adjust(model(ids)[0], sampling, []).log_softmax(-1)
        expected = sum(logprobs[i, token].item() for i, token in enumerate(text))
        measured = sum(n for key, n in counts[plain].items() if key[:2] == text) / total
        assert measured == pytest.approx(torch.tensor(expected).exp().item(), abs=0.06)


@pytest.mark.parametrize("how", ["on", "off"])
def test_what_prompts_share_is_read_once(library, how):
    model = make_gpt(BASE)
    shared = ids_of(15, 21)
    prompts = [[*shared, 1], [*shared, 2], [*shared, 1, 3], [*shared, 2]]
    sampling = SamplingConfig(max_new_tokens=4, temperature=1.0)
    engine = Engine(model, DecodeConfig(native=how), 4)
    together = generate_batch(engine, prompts, sampling)
    assert engine.counts.reused == 15 + 16 + 15
    assert engine.counts.read == sum(map(len, prompts)) - engine.counts.reused + 4 * 3
    assert generate_batch(engine, prompts[:1], sampling) == together[:1], "a later request finds it in a free slot"
    assert engine.counts.reused == 15 + 16 + 15 + 15
    alone = [
        generate_batch(Engine(model, DecodeConfig(native=how)), [p], sampling, i)[0] for i, p in enumerate(prompts)
    ]
    assert together == alone


@pytest.mark.slow
def test_past_block_size_a_token_costs_the_same_however_long_the_text_is():
    model = make_gpt(BASE)
    reads = []
    for n in (200, 400, 800):
        engine = Engine(model, DecodeConfig(native="off"))
        generate_batch(engine, [[1]], SamplingConfig(max_new_tokens=n))
        reads.append(engine.counts.read / n)
    assert max(reads) <= 2.0 + 1e-9, "one for the token, and one for its part in the readings of kept halves"
    assert max(reads) - min(reads) < 0.1


@pytest.mark.parametrize("n_ids", [1, 7, 16, 65, 130])
@pytest.mark.parametrize("t", [1e-42, 1e-3, 0.5, 1.0, 1e4])
def test_compiled_code_draws_as_numpy_does(any_library, n_ids, t):
    """But for ties that rounding decides; also from the first columns of padded scores, and where some are -inf."""
    reader = native(make_gpt(BASE), any_library)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        logits_RV = 4 * torch.randn(3, n_ids + 5, generator=generator)
        if seed % 2:
            logits_RV[:, : n_ids // 2] = -math.inf
        logits_RV = logits_RV[:, :n_ids]
        noises = list(torch.empty(3, n_ids).exponential_(generator=generator) + 1e-12)
        drawn = torch.tensor(reader.exponential_race(logits_RV, t, noises))
        expected = filters.exponential_race_of_few(logits_RV, t, torch.stack(noises))
        speeds_RV = filters.temperature(logits_RV.double(), t).exp() / torch.stack(noises)
        for ids in (drawn, expected):
            mine_R = speeds_RV.gather(1, ids[:, None])[:, 0]
            torch.testing.assert_close(mine_R, speeds_RV.amax(-1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_compiled_code_draws_from_no_damaged_scores(any_library, bad):
    reader = native(make_gpt(BASE), any_library)
    logits_RV = torch.zeros(2, 9)
    logits_RV[1, 4] = bad
    with pytest.raises(CheckpointError, match=r"best score is (nan|inf) \(sample 1\)"):
        reader.exponential_race(logits_RV, 1.0, [torch.ones(9), torch.ones(9)])
    with pytest.raises(CheckpointError, match="sample 0"):
        reader.exponential_race(torch.full((1, 9), -math.inf), 1.0, [torch.ones(9)])
