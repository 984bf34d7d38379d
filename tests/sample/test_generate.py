"""Generation: its settings, its ends, and what may never come out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from groundling.bundle import Bundle
from groundling.errors import CheckpointError, ConfigError, DataError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample.detokenize import TextStream
from groundling.sample.engine import Engine
from groundling.sample.generate import generate, generate_batch, generate_ids, stream, stream_batch, text_engine
from groundling.sample.request import row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.text.byte_pieces import BytePieces
from groundling.text.char import CharTokenizer

SYMBOLS = "\n !abcdefgh"
CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=6, vocab_size=len(SYMBOLS) + 3)


@pytest.fixture
def bundle():
    """Its model has three more ids than its tokenizer, and likes them best."""
    model = GPT(CONFIG)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return Bundle(CONFIG, model.eval(), CharTokenizer(SYMBOLS))


class Recites(nn.Module):
    """Says one text, whatever it is asked: the id after position t of the text is that at t + 1."""

    def __init__(self, ids: list[int], vocab_size: int) -> None:
        super().__init__()
        self.block_size = len(ids) + 1
        self.n_asked = 0
        self.logits_TV = nn.Parameter(20.0 * nn.functional.one_hot(torch.tensor(ids), vocab_size).float())

    def forward(self, idx_BT: Tensor) -> Tensor:
        self.n_asked += 1
        return self.logits_TV[: idx_BT.size(1)].expand(idx_BT.size(0), -1, -1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": 1.0}, "min_p is 1.0"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": math.nan}, "min_p is nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty is inf"),
        ({"typical_p": 0.0}, "typical_p is 0.0"),
        ({"presence_penalty": math.nan}, "presence_penalty is nan"),
        ({"frequency_penalty": math.inf}, "frequency_penalty is inf"),
        ({"logit_bias": {1: math.nan}}, "logit_bias is "),
        ({"logit_bias": {1: math.inf}}, "logit_bias is "),
        ({"logit_bias": {11: 1.0}}, r"logit_bias has ids \[11\]; there are only 0 to 10"),
        ({"logit_bias": dict.fromkeys(range(11), -math.inf)}, "logit_bias forbids all of the 11 ids"),
        ({"logit_bias": {"1": 2.0}}, "logit_bias is "),
        ({"logit_bias": {1: 1e38}}, "logit_bias is "),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"temperature": 1e38}, "temperature is 1e"),
        ({"presence_penalty": -1e38}, "presence_penalty is -1e"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"stop": ("a", "")}, "stop is "),
        ({"stop": "a"}, "stop is 'a'"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(bundle, fields, said):
    with pytest.raises(ConfigError, match=said):
        generate(bundle, "a", **fields)


def test_generate_says_as_many_tokens_as_it_is_asked_for(bundle):
    for n in (0, 1, 13):
        assert len(generate(bundle, "a", max_new_tokens=n)) == n


def test_fields_replace_those_of_the_config(bundle):
    config = SamplingConfig(max_new_tokens=20, temperature=1.5, seed=3)
    assert generate(bundle, "a", config, seed=4) == generate(bundle, "a", max_new_tokens=20, temperature=1.5, seed=4)


def test_an_id_outside_the_tokenizer_cannot_come_out(bundle):
    n_known = len(SYMBOLS)
    with torch.no_grad():
        bundle.model.lm_head.weight[n_known:] = 50 * bundle.model.ln_f.weight  # far above all others
    free = list(generate_ids(bundle.model, [3], SamplingConfig(max_new_tokens=20), row_generator(1, 0)))
    assert max(free) >= n_known, "without a bound they do come out"
    for temperature in (0.0, 5.0):
        assert len(generate(bundle, "ab", max_new_tokens=200, temperature=temperature)) == 200


def test_a_model_whose_logits_are_its_weights_keeps_them():
    model = Recites([0, 1, 2], vocab_size=5)
    before = model.logits_TV.detach().clone()
    sampling = SamplingConfig(max_new_tokens=3, repetition_penalty=1.5, top_k=2, top_p=0.9)
    list(generate_ids(model, [0], sampling, row_generator(1, 0), n_ids=3))
    assert torch.equal(model.logits_TV, before)


def test_a_prompt_may_hold_ids_that_cannot_come_out(bundle):
    sampling = SamplingConfig(max_new_tokens=50, temperature=5.0, repetition_penalty=1.5)
    ids = list(generate_ids(bundle.model, [len(SYMBOLS) + 1, 2], sampling, row_generator(1, 0), len(SYMBOLS)))
    assert max(ids) < len(SYMBOLS)


def test_an_unseen_character_in_the_prompt_is_named_at_once(bundle):
    with pytest.raises(DataError, match="'z'"):
        stream(bundle, "abz")  # before a first piece is asked for


@given(prompt=st.text(max_size=5))
def test_any_prompt_is_answered_or_refused_by_name(prompt):
    bundle = Bundle(CONFIG, GPT(CONFIG), CharTokenizer(SYMBOLS))
    if set(prompt) <= set(SYMBOLS):
        assert len(generate(bundle, prompt, max_new_tokens=2)) == 2
    else:
        with pytest.raises(DataError):
            generate(bundle, prompt)


def test_an_empty_prompt_stands_for_a_newline_or_for_token_0(bundle):
    assert generate(bundle, "") == generate(bundle, "\n")
    without_newline = Bundle(CONFIG, bundle.model, CharTokenizer("abcdefgh"))
    assert generate(without_newline, "") == generate(without_newline, "a")


def test_no_ids_at_all_are_refused_before_the_first_is_asked_for(bundle):
    with pytest.raises(ValueError, match="at least one"):
        generate_ids(bundle.model, [], SamplingConfig(), row_generator(1, 0))


def test_a_model_with_nan_weights_says_so(bundle):
    with torch.no_grad():
        bundle.model.ln_f.bias[0] = math.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(CheckpointError, match="nan"):
            generate(bundle, "a", temperature=temperature)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_sample_too(bundle, dtype):
    model = bundle.model.to(dtype)
    assert len(generate(Bundle(CONFIG, model, bundle.tokenizer), "ab", max_new_tokens=15)) == 15


def test_wrappers_are_looked_through(bundle):
    expected = list(generate_ids(bundle.model, [3], SamplingConfig(max_new_tokens=9), row_generator(1, 0)))
    compiled = torch.compile(bundle.model)  # nothing is compiled before the first call, and it is never called
    assert list(generate_ids(compiled, [3], SamplingConfig(max_new_tokens=9), row_generator(1, 0))) == expected


def test_the_penalty_keeps_a_model_from_repeating_itself():
    """A model that would say 0 for ever has six other things to say, and says them."""
    model = Recites([0] * 30, vocab_size=7)
    with torch.no_grad():
        model.logits_TV[:, 1:] = torch.arange(6, 0, -1) * 0.1 + 15
    steady = SamplingConfig(max_new_tokens=10, temperature=0)
    assert set(generate_ids(model, [0], steady, row_generator(1, 0))) == {0}
    varied = SamplingConfig(max_new_tokens=6, temperature=0, repetition_penalty=2.0)
    assert list(generate_ids(model, [0], varied, row_generator(1, 0))) == [1, 2, 3, 4, 5, 6]


def test_draws_follow_the_probabilities():
    """Chi-squared with 3 degrees of freedom is below 16.3 in 999 of 1,000 cases."""
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    model = Recites([0], vocab_size=4)
    with torch.no_grad():
        model.logits_TV.copy_(probs.log())
    sampling = SamplingConfig(max_new_tokens=1, temperature=1.0)
    drawn = generate_batch(Engine(model, n_slots=100), [[0]] * 4000, sampling)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=4)
    assert ((counts - 4000 * probs) ** 2 / (4000 * probs)).sum() < 16.3


# Stop strings


class Cut:
    """A decoder whose ids are whole pieces of text."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def push(self, token: int) -> str:
        return self.pieces[token]

    def finish(self) -> str:
        return ""


def told(pieces: list[str], stop: tuple[str, ...]) -> str:
    text = TextStream(Cut(pieces), stop)
    return "".join([text.push(i) for i in range(len(pieces))] + [text.finish()])


def ended(text: str, stop: tuple[str, ...]) -> str:
    """The oracle: read one character more at a time, until what was read ends with a stop string."""
    for end in range(1, len(text) + 1):
        met = [s for s in stop if text[:end].endswith(s)]
        if met:
            return text[: end - max(map(len, met))]
    return text


@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple),
)
def test_text_ends_before_the_first_whole_stop_string_however_it_is_cut(pieces, stop):
    text = "".join(pieces)
    assert told(pieces, stop) == told(list(text), stop) == ended(text, stop)


def test_what_cannot_be_a_stop_string_is_told_at_once():
    text = TextStream(Cut(["x", "a", "b", "y", "a", "b", "c", "z"]), ("abc",))
    assert [text.push(i) for i in range(8)] == ["x", "", "", "aby", "", "", "", ""]
    assert text.stopped
    assert text.finish() == ""


def test_generation_ends_with_the_stop_string():
    tokenizer = CharTokenizer(SYMBOLS)
    model = Recites(tokenizer.encode("abc abd!"), vocab_size=len(SYMBOLS))
    bundle = Bundle(CONFIG, model, tokenizer)
    recite = {"max_new_tokens": 8, "temperature": 0.0}
    assert generate(bundle, "a", **recite) == "abc abd!"
    assert generate(bundle, "a", **recite, stop=("d!?",)) == "abc abd!", "what was held back is told in the end"
    model.n_asked = 0
    assert list(stream(bundle, "a", SamplingConfig(**recite, stop=("abd",)))) == ["abc", " "]
    assert model.n_asked == len("abc abd"), "after the stop string the model is not asked again"


def test_each_sample_stops_for_itself_and_the_next_takes_its_place(bundle):
    sampling = SamplingConfig(max_new_tokens=300, temperature=1.5, stop=("a",), seed=11)
    alone = [list(generate_ids(bundle.model, [4], sampling, row_generator(11, row), 11)) for row in range(5)]
    for n_slots in (1, 2, 5):
        engine = text_engine(bundle, n_slots=n_slots)
        texts = [""] * 5
        for number, piece, _ in stream_batch(engine, bundle.tokenizer, "b", sampling, 5):
            texts[number] += piece
        assert texts == [told([SYMBOLS[i] for i in ids], ("a",)) for ids in alone]
        assert engine.counts.generated == sum(map(len, texts)) + 5, "nobody goes on after its stop string"


def test_half_a_character_is_held_back_until_its_other_half_comes():
    """Also at the end: then it is U+FFFD, as in `decode`."""

    class Bytes(BytePieces):
        kind = "test"

        def encode(self, text: str) -> list[int]:
            return list(text.encode())

    tokenizer = Bytes([bytes([i]) for i in range(256)])
    said = [*"é€!".encode(), 0xE2, 0x82]
    bundle = Bundle(CONFIG, Recites(said, vocab_size=256), tokenizer)
    sampling = SamplingConfig(max_new_tokens=len(said), temperature=0)
    assert list(stream(bundle, "x", sampling)) == ["é", "€", "!", "\N{REPLACEMENT CHARACTER}"]
    assert generate(bundle, "x", sampling) == tokenizer.decode(said)
