"""Laws of sampling: a cache, a batch and a stream change how fast text comes, and never which text."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from groundling.bundle import Bundle
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample.engine import Engine
from groundling.sample.generate import generate, generate_batch, generate_ids, stream
from groundling.sample.request import row_generator, window_start
from groundling.sample.sampler import SamplingConfig
from groundling.text.char import CharTokenizer

BASE = GPTConfig(n_layer=2, n_head=4, n_embd=16, block_size=8, vocab_size=11)
CONFIGS = {
    "learned": BASE,
    "rotary": dataclasses.replace(BASE, position="rotary"),
    "learned gqa": dataclasses.replace(BASE, n_kv_head=2),
    "rotary gqa qk_norm": dataclasses.replace(BASE, position="rotary", n_kv_head=1, qk_norm=True, norm="rmsnorm"),
}


class Recorded(GPT):
    """A GPT that remembers the scores it gave, and how much it was asked each time."""

    def forward(self, idx_BT: Tensor, cache=None) -> Tensor:
        logits_BTV = super().forward(idx_BT, cache)
        self.heard.append((idx_BT.size(1), logits_BTV[:, -1].clone()))
        return logits_BTV


class Rung(nn.Module):
    """The oracle: the same weights behind the face of a rung, which has no cache."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt, self.block_size = gpt, gpt.block_size

    def forward(self, idx_BT: Tensor) -> Tensor:
        return self.gpt(idx_BT)


def make_gpt(config: GPTConfig) -> Recorded:
    model = Recorded(config).double().eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    model.heard = []
    return model


def prompt_of(n_tokens: int, vocab_size: int = 11) -> list[int]:
    return torch.randint(vocab_size, (n_tokens,), generator=torch.Generator().manual_seed(n_tokens)).tolist()


@given(block_size=st.integers(1, 40), n_tokens=st.integers(1, 200))
def test_the_window_is_what_one_gets_by_dropping_the_older_half_of_a_full_one(block_size, n_tokens):
    start, seen = 0, 0
    for _ in range(n_tokens):
        if seen == block_size:
            start, seen = start + max(1, block_size // 2), seen - max(1, block_size // 2)
        seen += 1
    assert window_start(n_tokens, block_size) == start
    assert 1 <= n_tokens - start <= block_size


@pytest.mark.parametrize("block_size", [1, 2, 7, 8])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_cached_is_uncached_far_past_block_size(config, block_size):
    """Ids and scores, for prompts of one token, of a full window, and of more than two."""
    gpt = make_gpt(dataclasses.replace(config, block_size=block_size))
    sampling = SamplingConfig(max_new_tokens=2 * block_size + 3, temperature=1.3, repetition_penalty=1.2)
    for n_prompt in {1, block_size, block_size + 1, 2 * block_size + 3}:
        answers = []
        for model in (gpt, Rung(gpt)):
            gpt.heard = []
            ids = list(generate_ids(model, prompt_of(n_prompt), sampling, row_generator(1, 0)))
            answers.append((ids, torch.cat([logits for _, logits in gpt.heard])))
        (cached_ids, cached), (oracle_ids, oracle) = answers
        assert cached_ids == oracle_ids
        assert len(cached_ids) == sampling.max_new_tokens
        torch.testing.assert_close(cached, oracle, rtol=0, atol=1e-10)


def test_the_cache_is_used_and_is_rebuilt_only_when_the_window_moves():
    """Otherwise the law above would hold for a cache that is never read."""
    gpt = make_gpt(BASE)
    list(generate_ids(gpt, prompt_of(6), SamplingConfig(max_new_tokens=12), row_generator(1, 0)))
    assert [n_new for n_new, _ in gpt.heard] == [6, 1, 1, 5, 1, 1, 1, 5, 1, 1, 1, 5]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_top_k_1_is_greedy(config):
    gpt = make_gpt(config)
    of_one = SamplingConfig(max_new_tokens=30, top_k=1, temperature=1.7)
    greedy = SamplingConfig(max_new_tokens=30, temperature=0)
    assert list(generate_ids(gpt, [1, 2], of_one, row_generator(1, 0))) == list(
        generate_ids(gpt, [1, 2], greedy, row_generator(2, 0))
    )


def test_greedy_is_the_argmax_of_the_whole_window():
    gpt = make_gpt(BASE)
    tokens = [1, 2]
    ids = list(generate_ids(gpt, tokens, SamplingConfig(max_new_tokens=20, temperature=0), row_generator(1, 0)))
    for token in ids:
        window = tokens[window_start(len(tokens), 8) :]
        assert token == gpt(torch.tensor([window]))[0, -1].argmax().item()
        tokens.append(token)


@pytest.mark.parametrize("n_slots", [1, 3, 6])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_sample_in_a_crowd_is_the_same_sample_alone(config, n_slots):
    """Prompts of different lengths, which start and end at different times, in fewer slots than they are."""
    gpt = make_gpt(config)
    sampling = SamplingConfig(max_new_tokens=25, temperature=1.5, top_k=7, top_p=0.95, min_p=0.01, seed=5)
    prompts = [prompt_of(n) for n in (1, 8, 13, 13, 3, 20)]
    together = generate_batch(Engine(gpt, n_slots=n_slots), prompts, sampling)
    alone = [list(generate_ids(gpt, prompt, sampling, row_generator(5, row))) for row, prompt in enumerate(prompts)]
    assert together == alone
    assert len(set(map(tuple, together))) == 6, "samples that are all alike would prove nothing"


def test_rows_and_seeds_have_generators_of_their_own():
    states = [row_generator(seed, row).get_state().numpy().tobytes() for seed in (-1, 0, 1) for row in range(5)]
    assert len(set(states)) == 15
    assert torch.equal(row_generator(7, 3).get_state(), row_generator(7, 3).get_state())


@pytest.fixture
def bundle():
    tokenizer = CharTokenizer("\n !abcdefgh")
    return Bundle(BASE, make_gpt(BASE), tokenizer)


def test_streamed_is_not_streamed(bundle):
    for seed, stop in itertools.product(range(5), [(), ("ab",), ("b", "ca!"), ("\n\n", " a", "dd")]):
        sampling = SamplingConfig(max_new_tokens=60, temperature=1.5, seed=seed, stop=stop)
        pieces = list(stream(bundle, "abc", sampling))
        assert "".join(pieces) == generate(bundle, "abc", sampling)
        assert all(pieces), "an empty piece says nothing"


def test_the_same_seed_says_the_same_and_another_does_not(bundle):
    assert generate(bundle, "a", seed=1, temperature=1.5) == generate(bundle, "a", seed=1, temperature=1.5)
    assert generate(bundle, "a", seed=1, temperature=1.5) != generate(bundle, "a", seed=2, temperature=1.5)


def test_nothing_is_drawn_from_the_global_generator_or_left_behind(bundle):
    """Also while a stream is half read: a training loop may go on in between."""
    bundle.model.train()
    bundle.model.h[1].eval()
    modes = [module.training for module in bundle.model.modules()]
    state = torch.random.get_rng_state()
    pieces = stream(bundle, "a", SamplingConfig(max_new_tokens=20))
    next(pieces)
    assert [module.training for module in bundle.model.modules()] == modes
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    list(pieces)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_dropout_is_off_while_sampling():
    gpt = make_gpt(dataclasses.replace(BASE, dropout=0.9, attention_dropout=0.9))
    sampling = SamplingConfig(max_new_tokens=20, temperature=1.5)
    quiet = list(generate_ids(gpt.eval(), [1], sampling, row_generator(1, 0)))
    assert list(generate_ids(gpt.train(), [1], sampling, row_generator(1, 0))) == quiet
