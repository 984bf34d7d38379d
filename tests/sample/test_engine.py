"""The engine: slots, stopping, log-probabilities, speculation; and the scheduler in front of it."""

import dataclasses
import resource

import pytest
import torch

from groundling.bundle import Bundle
from groundling.errors import ConfigError
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.sample import engine as engine_module
from groundling.sample.engine import DecodeConfig, Engine
from groundling.sample.generate import generate_batch, stream_batch, text_engine
from groundling.sample.request import Request, row_generator
from groundling.sample.sampler import SamplingConfig
from groundling.sample.scheduler import run_all
from groundling.sample.speculative import PromptLookup
from groundling.text.char import CharTokenizer

CONFIG = GPTConfig(n_layer=1, n_head=2, n_embd=8, block_size=16, vocab_size=11)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return GPT(CONFIG).eval()


def config(n: int, **fields) -> SamplingConfig:
    return SamplingConfig(max_new_tokens=n, temperature=1.0, **fields)


def added(engine: Engine, prompt: list[int], config: SamplingConfig, row: int = 0) -> Request:
    """A request that has a slot."""
    request = engine.new_request(prompt, config, row_generator(config.seed, row))
    assert engine.try_add(request)
    return request


def step_by_step(engine: Engine, requests: list[Request]) -> list[list[int]]:
    """Decode requests; which of them got tokens in each step."""
    steps: list[list[int]] = []
    for request, _ in run_all(engine, requests):
        if len(steps) < engine.counts.steps:
            steps.append([])
        steps[-1].append(requests.index(request))
    return steps


@pytest.mark.parametrize("n_ids", [3, 65, 1500, 5000])
def test_noise_is_drawn_token_by_token_however_many_are_drawn_at_once(n_ids):
    request = Request([1], config(90), row_generator(7, 0))
    generator = row_generator(7, 0)
    for ahead in (0, 3, 1, 40, 89):
        request.noise(ahead, n_ids)
    for ahead in range(90):
        uniform_V = torch.empty(n_ids, dtype=torch.float64).uniform_(generator=generator)
        assert torch.equal(request.noise(ahead, n_ids), -uniform_V.log().float())


def test_waiting_requests_get_slots_in_order_as_others_finish(model):
    engine = Engine(model, n_slots=2)
    requests = [engine.new_request([i], config(n), row_generator(0, i)) for i, n in enumerate((2, 4, 1, 3))]
    assert step_by_step(engine, requests) == [[0, 1], [0, 1], [1, 2], [1, 3], [3], [3]]
    assert [len(request.tokens) - 1 for request in requests] == [2, 4, 1, 3]
    assert all(request.finished for request in requests)
    assert engine.step() == []


def test_requests_are_made_when_there_is_a_slot_for_them(model):
    """So the input may be endless, and may depend on the output."""
    engine, made, lengths = Engine(model, n_slots=2), [], []

    def requests():
        while True:
            made.append(engine.new_request([len(made)], config(3), row_generator(0, 0)))
            yield made[-1]

    outputs = run_all(engine, requests())
    for _ in range(9):
        next(outputs)
        lengths.append(len(made))
    assert lengths == [3] * 6 + [5] * 3, "two running, and the next in line"
    outputs.close()
    assert not engine.is_busy
    assert [request.finished for request in made] == [True] * 4 + [False]


def test_an_engine_has_slots_and_no_queue(model):
    engine = Engine(model, n_slots=1)
    first, second = (engine.new_request([i], config(2), row_generator(0, i)) for i in range(2))
    assert engine.try_add(first)
    assert not engine.try_add(second)
    engine.step()
    assert not engine.try_add(second)
    engine.step()
    assert engine.try_add(second), "the first one has finished"
    assert (len(first.tokens), len(second.tokens)) == (3, 1)


def test_a_prompt_waits_for_a_prefix_that_is_about_to_be_read(model):
    engine = Engine(model, n_slots=2)
    shared = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    first, second = (engine.new_request([*shared, i], config(2), row_generator(0, i)) for i in range(2))
    assert engine.try_add(first)
    assert not engine.try_add(second)
    engine.step()
    assert engine.try_add(second)
    assert engine.counts.reused == len(shared)


@pytest.mark.parametrize("how", ["on", "off"])
def test_a_long_prompt_is_read_between_the_steps_of_others(monkeypatch, how):
    """One chunk per step; no token changes, and nothing is read twice."""
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 20)
    long = GPT(dataclasses.replace(CONFIG, block_size=200, position="rotary")).eval()
    prompts = [
        [1],
        *(torch.randint(11, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (90, 70, 20)),
    ]
    alone = [
        generate_batch(Engine(long, DecodeConfig(native=how)), [p], config(9), i)[0] for i, p in enumerate(prompts)
    ]
    engine = Engine(long, DecodeConfig(native=how), n_slots=4)
    requests = [engine.new_request(p, config(9), row_generator(config(9).seed, i)) for i, p in enumerate(prompts)]
    steps = step_by_step(engine, requests)
    assert steps[:8] == [[0, 3]] * 4 + [[0, 1, 3]] * 3 + [[0, 1, 2, 3]], "four parts of 90 tokens, then three of 70"
    assert [request.tokens[request.n_prompt :] for request in requests] == alone
    assert engine.counts.read == sum(map(len, prompts)) + 4 * 8


def test_a_stopped_request_frees_its_slot_for_the_next(model):
    engine = Engine(model)
    first, second, third = requests = [engine.new_request([i], config(5), row_generator(0, i)) for i in range(3)]
    outputs = run_all(engine, requests)
    assert next(outputs).request is first
    engine.stop(first)
    engine.stop(second)  # it has never run
    assert [(output.request, len(output.tokens)) for output in outputs] == [(second, 0), *[(third, 1)] * 5]
    assert (len(first.tokens), len(second.tokens)) == (2, 1)
    engine.stop(third)  # it has finished already
    assert not engine.is_busy


def test_a_request_of_no_tokens_is_finished_at_once(model):
    engine = Engine(model)
    request = added(engine, [1], config(0))
    assert request.finished
    assert not engine.is_busy
    assert list(run_all(engine, [request])) == [(request, [])]


@pytest.mark.parametrize("prompt", [[11], [-1], [3, 400]])
def test_ids_that_the_model_does_not_know_never_reach_it(model, prompt):
    with pytest.raises(ValueError, match="the model knows 0 to 10"):
        Engine(model).new_request(prompt, config(1), row_generator(0, 0))


def test_log_probabilities_are_the_model_s_own(model):
    """Before the filters, also where these leave one token only."""
    engine = Engine(model, DecodeConfig(native="off"))
    request = engine.new_request([1, 2], config(5, top_k=1, logit_bias={3: 2.0}, logprobs=3), row_generator(0, 0))
    tokens = [token for output in run_all(engine, [request]) for token in output.tokens]
    with torch.inference_mode():
        expected = model(torch.tensor([request.tokens]))[0].log_softmax(-1)[1:-1]
    for token, logprobs_V in zip(tokens, expected, strict=True):
        assert token.logprob == pytest.approx(logprobs_V[token.id].item(), abs=1e-5)
        best = logprobs_V.topk(3)
        assert [id for id, _ in token.likely] == best.indices.tolist()
        assert [logprob for _, logprob in token.likely] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_log_probabilities_are_computed_for_the_requests_that_want_them(model):
    engine = Engine(model, n_slots=2)
    added(engine, [1], config(1))
    added(engine, [2], config(1, logprobs=99))
    (without,), (with_logprobs,) = (output.tokens for output in engine.step())
    assert without == (without.id, None, ())
    assert len(with_logprobs.likely) == 11, "the vocabulary has no more"


def test_requests_of_different_settings_share_a_step(model):
    settings = [
        config(8),
        config(8, top_k=2),
        config(8, repetition_penalty=1.5),
        SamplingConfig(max_new_tokens=8, temperature=0),
    ]
    engine = Engine(model, n_slots=4)
    requests = [engine.new_request([1], how, row_generator(0, 0)) for how in settings]
    list(run_all(engine, requests))
    assert engine.counts.steps == 8
    for request, how in zip(requests, settings, strict=True):
        alone = Engine(model)
        expected = alone.new_request([1], how, row_generator(0, 0))
        list(run_all(alone, [expected]))
        assert request.tokens == expected.tokens


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("how", ["on", "off"])
def test_after_a_step_that_failed_requests_continue_as_if_it_had_not(model, how, draft, monkeypatch):
    """Also as the beginning of another: what was not read must not be reused."""
    prompt = [1, 2, 3, 4, 5, 6]
    expected = [generate_batch(Engine(model, DecodeConfig(native=how)), [prompt], config(12), row)[0] for row in (0, 1)]
    engine = Engine(model, DecodeConfig(native=how, speculate=2), 2, draft=model if draft else None)
    read, n_reads = engine._runner.read, 0

    def failing_at_times(pieces):
        nonlocal n_reads
        n_reads += 1
        if n_reads % 3 == 1:
            raise KeyboardInterrupt
        return read(pieces)

    monkeypatch.setattr(engine._runner, "read", failing_at_times)
    requests = [engine.new_request(prompt, config(12), row_generator(1337, row)) for row in (0, 1)]
    waiting, n_failed = list(requests), 0
    while waiting or engine.is_busy:
        if waiting and engine.try_add(waiting[0]):
            del waiting[0]
        try:
            engine.step()
        except KeyboardInterrupt:
            n_failed += 1
    assert n_failed > 1
    assert [request.tokens[6:] for request in requests] == expected
    n_reads = 0  # the next one fails
    with pytest.raises(KeyboardInterrupt):
        generate_batch(engine, [prompt], config(12))
    assert not engine.is_busy, "all requests are stopped"
    monkeypatch.setattr(engine._runner, "read", read)
    assert generate_batch(engine, [prompt], config(12)) == expected[:1]


def test_a_bad_request_does_not_spoil_its_neighbours(model):
    engine = Engine(model, n_slots=2)
    good, bad = added(engine, [1], config(6), 0), added(engine, [2], config(6), 1)
    bad.config = SamplingConfig(top_k=3)
    object.__setattr__(bad.config, "top_k", "three")
    bad.sampling_key = ("bad",)
    with pytest.raises(TypeError):
        engine.step()
    engine.stop(bad)
    list(run_all(engine, []))
    assert good.tokens[1:] == generate_batch(Engine(model), [[1]], config(6))[0]


def test_an_abandoned_stream_leaves_the_engine_free(model):
    tokenizer = CharTokenizer("abcdefghijk")
    engine = Engine(model, n_slots=2)
    stream = stream_batch(engine, tokenizer, "ab", config(20), 3)
    next(stream)
    assert engine.is_busy
    stream.close()
    assert not engine.is_busy
    stream_batch(engine, tokenizer, "ab", config(20), 3)  # never begun
    assert not engine.is_busy
    texts = ["", ""]
    for number, text, _ in stream_batch(engine, tokenizer, "ab", config(5), 2):
        texts[number] += text
    assert texts == [tokenizer.decode(ids) for ids in generate_batch(Engine(model), [[0, 1]] * 2, config(5))]


def test_prompts_of_other_beginnings_leave_what_may_be_wanted_again(model):
    """Four conversations in four slots: each finds its own beginning when it goes on."""
    engine = Engine(model, n_slots=4)
    conversations = [[i, *([i + 4] * 5)] for i in range(4)]
    for prompt in conversations:
        generate_batch(engine, [prompt], config(2))
    assert engine.counts.reused == 0
    for prompt in conversations:
        generate_batch(engine, [[*prompt, 9, 9]], config(2))
    assert engine.counts.reused >= 4 * 6
    generate_batch(engine, [[*conversations[0][:2], 3, 3, 3]], config(2))
    assert engine.counts.reused >= 4 * 6 + 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"n_slots": 0}, "n_slots is 0"),
        ({"n_ids": 0}, "n_ids is 0; the model has 11 ids"),
        ({"n_ids": 12}, "n_ids is 12; the model has 11 ids"),
        (
            {"config": DecodeConfig(speculate=1), "draft": GPT(dataclasses.replace(CONFIG, vocab_size=10))},
            "it knows 10",
        ),
        ({"config": DecodeConfig(speculate=1), "draft": torch.nn.Linear(1, 1)}, "it knows none"),
    ],
)
def test_an_engine_that_cannot_work_is_refused(model, arguments, said):
    with pytest.raises(ConfigError, match=said):
        Engine(model, **arguments)


@pytest.mark.parametrize(("field", "value"), [("weights", "int4"), ("native", "yes")])
def test_words_that_are_not_known_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field} is '{value}'; it must be one of: "):
        DecodeConfig(**{field: value})


def test_more_slots_than_there_can_be_are_refused(model):
    with pytest.raises(ConfigError, match=r"n_slots is 1099511627776; it must be from 1 to 65536"):
        Engine(model, n_slots=1 << 40)


@pytest.mark.slow
def test_slots_that_are_never_used_take_no_memory():
    """8 GB of keys and values, of which some kB are written."""
    wide = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=1024, block_size=256, vocab_size=11)).eval()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(generate_batch(Engine(wide, n_slots=4000), [[1]], config(3))[0]) == 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000, "kB"


def test_what_cannot_guess_is_refused(model):
    with pytest.raises(ConfigError, match="say how many with speculate"):
        Engine(model, draft=model)
    with pytest.raises(ConfigError, match="speculate is -1"):
        DecodeConfig(speculate=-1)
    bundle, other = Bundle(CONFIG, model, CharTokenizer("abc")), Bundle(CONFIG, model, CharTokenizer("abd"))
    with pytest.raises(ConfigError, match="another tokenizer"):
        text_engine(bundle, DecodeConfig(speculate=2), draft=other)
    text_engine(bundle, DecodeConfig(speculate=2), draft=bundle)


def test_no_guess_goes_beyond_the_last_token_or_the_window(model):
    """Of a text that repeats itself, everything is guessed rightly."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    engine = Engine(model, DecodeConfig(speculate=6))
    ids = generate_batch(engine, [[0] * 10], SamplingConfig(max_new_tokens=40, temperature=0))
    assert ids == [[0] * 40], "the lowest of equals"
    assert engine.counts.generated == 40
    assert engine.counts.right == engine.counts.guessed
    assert engine.counts.steps < 15


def test_looking_up_finds_what_followed_the_longest_known_ending():
    def guess(tokens: list[int], limit: int = 3) -> list[int]:
        return PromptLookup().guess([Request(tokens, config(9), row_generator(0, 0))], [limit])[0]

    assert guess([1, 2, 3]) == [], "nothing was there before"
    assert guess([1, 2, 3, 7, 8, 9, 1, 2, 3]) == [7, 8, 9]
    assert guess([1, 2, 3, 7, 8, 9, 1, 2, 3], limit=2) == [7, 8]
    assert guess([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], limit=5) == [8, 1, 2, 3, 8], "the last time counts"
    a = [1, 2, 3, 4, 5, 6]
    assert guess([*a, 7, 4, 5, 6, 8, *a]) == [7, 4, 5], "a longer ending says more than a later one"
    assert guess([5, 5, 5, 5]) == [5, 5, 5]


def test_looking_up_goes_on_with_a_growing_request():
    request = Request([1, 2, 3, 4], config(99), row_generator(0, 0))
    lookup = PromptLookup()
    assert lookup.guess([request], [5]) == [[]]
    request.append([1, 2, 3])
    assert lookup.guess([request], [5]) == [[4, 1, 2, 3, 4]]
    request.append([9])
    assert lookup.guess([request], [5]) == [[]]
    request.append([1, 2, 3])
    assert lookup.guess([request], [1]) == [[9]]
