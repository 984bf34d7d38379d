"""Parsing of requests, without a server: ids, sampling settings, and what is refused before anything is decoded."""

import asyncio
import math

import pytest
import torch
from pydantic import ValidationError

from groundling.bundle import save_bundle
from groundling.model.config import GPTConfig
from groundling.model.gpt import GPT
from groundling.safety.rules import Rule
from groundling.safety.stream import Safety
from groundling.safety.words import Words
from groundling.sample import slots
from groundling.sample.engine import DecodeConfig, Engine
from groundling.serve.completions import requests
from groundling.serve.completions.requests import parse_chat, parse_completion
from groundling.serve.completions.schema import ChatRequest, CompletionRequest
from groundling.serve.config import ServeConfig
from groundling.serve.http.errors import ApiError
from groundling.serve.state import ServerState, State
from groundling.system.memory import Memory
from groundling.text.char import CharTokenizer
from groundling.text.chat.role_tokens import RoleTokens

LETTERS = CharTokenizer("\n abcdefgh")
N, BLOCK_SIZE = LETTERS.vocab_size, 32
CHAT = RoleTokens.after(N)
USER = {"role": "user", "content": "abc"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": BLOCK_SIZE}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        save_bundle(folder / "base", GPT(GPTConfig(**shape, vocab_size=N)), LETTERS)
        save_bundle(folder / "talker", GPT(GPTConfig(**shape, vocab_size=N + 4)), LETTERS, chat=CHAT)
    return {name: folder / name for name in ("base", "talker")}


@pytest.fixture
def state(folders, monkeypatch):
    """A server's state whose decoding thread does not run: functions for it run here."""
    state = ServerState(ServeConfig(paths=tuple(map(str, folders.values())), slots=4, max_waiting=4, max_tokens=100))
    monkeypatch.setattr(ServerState, "_engine", _engine)

    async def call(function):
        return function()

    monkeypatch.setattr(state.worker, "call", call)
    for name, path in folders.items():
        state.models.add(state.load(name, path))
    state.state = State.READY
    return state


def _engine(state, bundle):
    """Without a compiler: nothing is decoded here."""
    decode = DecodeConfig(native="off")
    return Engine(bundle.model, decode, 4, bundle.n_ids, end_ids=bundle.end_ids, memory=state.memory)


def completion(state, **fields):
    return asyncio.run(parse_completion(state, CompletionRequest(**{"model": "base", "prompt": "abc", **fields})))


def chat(state, **fields):
    return asyncio.run(parse_chat(state, ChatRequest(**{"model": "talker", "messages": [USER], **fields})))


def refused(parse, state, **fields):
    """Status, code and field of the error, and its message."""
    with pytest.raises(ApiError) as caught:
        parse(state, **fields)
    assert state.worker.load == (0, 0), "no place in the queue is lost"
    error = caught.value
    return (error.status, error.code, error.param), error.message


# What a request becomes


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("abc", [[2, 3, 4]]),
        ("", [[0]]),
        ([2, 8], [[2, 8]]),
        (["a", "bc"], [[2], [3, 4]]),
        ([[2], [3, 4]], [[2], [3, 4]]),
    ],
)
def test_prompts_of_all_kinds_become_ids(state, prompt, ids):
    parsed = completion(state, prompt=prompt)
    assert [each.ids for each in parsed.prompts] == ids
    assert not parsed.is_chat
    assert [each.echo for each in parsed.prompts] == [None] * len(ids)


def test_a_conversation_becomes_ids_by_the_chat_template(state):
    messages = [{"role": "developer", "content": "b"}, USER, {"role": "assistant", "content": "d"}, USER]
    parsed = chat(state, messages=messages)
    abc = [CHAT.user, 2, 3, 4, CHAT.end]
    assert parsed.prompts[0].ids == [CHAT.system, 3, CHAT.end, *abc, CHAT.assistant, 5, CHAT.end, *abc, CHAT.assistant]
    assert parsed.is_chat
    assert parsed.config.end_ids == (CHAT.end,)


def test_settings_that_are_not_given_or_null_are_openai_s(state):
    parsed = completion(state, temperature=None, top_p=None, seed=5)
    assert (parsed.n, parsed.seed, parsed.include_usage) == (1, 5, False)
    config = parsed.config
    assert (config.max_new_tokens, config.temperature, config.top_p, config.stop) == (16, 1.0, 1.0, ())
    assert config.logprobs is None
    assert completion(state).seed != completion(state).seed, "a seed of its own for each request"


def test_settings_are_taken_over(state):
    parsed = completion(
        state,
        max_tokens=7, temperature=0, top_p=0.5, top_k=3, min_p=0.1, typical_p=0.9, presence_penalty=-1,
        frequency_penalty=2, repetition_penalty=1.5, logit_bias={"3": -100}, stop="d", n=3, logprobs=2, seed=-1,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    config = parsed.config
    assert (config.max_new_tokens, config.temperature, config.top_p, config.top_k) == (7, 0, 0.5, 3)
    assert (config.min_p, config.typical_p, config.presence_penalty, config.frequency_penalty) == (0.1, 0.9, -1, 2)
    assert (config.repetition_penalty, config.logit_bias, config.stop, config.logprobs) == (1.5, {3: -100}, ("d",), 2)
    assert (parsed.n, parsed.seed, parsed.include_usage) == (3, -1, True)


def test_the_length_of_a_reply(state):
    assert chat(state).config.max_new_tokens == BLOCK_SIZE - 6, "the rest of the context"
    assert chat(state, max_tokens=100).config.max_new_tokens == 100
    assert chat(state, max_tokens=3).config.max_new_tokens == 3
    assert chat(state, max_tokens=3, max_completion_tokens=4).config.max_new_tokens == 4
    assert chat(state, logprobs=True).config.logprobs == 0
    assert chat(state, logprobs=True, top_logprobs=2).config.logprobs == 2
    assert chat(state, ignore_eos=True).config.end_ids == ()


def test_an_echo_has_the_prompt_s_tokens_and_the_model_s_log_probabilities(state):
    echo = completion(state, prompt="abc", echo=True).prompts[0].echo
    assert (echo.text, [token.id for token in echo.tokens], echo.offsets) == ("abc", [2, 3, 4], [0, 1, 2])
    assert [token.logprob for token in echo.tokens] == [None] * 3, "not requested"
    first, *others = completion(state, prompt="abc", echo=True, logprobs=2).prompts[0].echo.tokens
    assert (first.id, first.logprob) == (2, None)
    model = state.models.get("base").bundle.model
    with torch.inference_mode():
        expected = model(torch.tensor([[2, 3, 4]]))[0].log_softmax(-1)
    for token, logprobs in zip(others, expected, strict=False):
        assert token.logprob == pytest.approx(logprobs[token.id].item(), abs=1e-5)
        assert [id for id, _ in token.likely] == logprobs.topk(2).indices.tolist()


def test_a_prompt_is_scored_in_parts_with_the_same_result(state, monkeypatch):
    whole = completion(state, prompt="abcdefgh", echo=True, logprobs=3).prompts[0].echo.tokens
    monkeypatch.setattr(requests, "SCORED_AT_ONCE", 3)
    parts = completion(state, prompt="abcdefgh", echo=True, logprobs=3).prompts[0].echo.tokens
    for one, other in zip(whole, parts, strict=True):
        assert one.id == other.id
        assert one.logprob == (None if other.logprob is None else pytest.approx(other.logprob, abs=1e-5))


def test_the_safety_stage_changes_or_blocks_prompts(state):
    state.safety = Safety(
        [
            Rule("name", "a name", "redact", ("prompt",), "hh", lambda: Words(["fed"])),
            Rule("oath", "an oath", "block", ("prompt",), "", lambda: Words(["bad"])),
        ]
    )
    changed, blocked = completion(state, prompt=["a fed", "a bad"], echo=True).prompts
    assert (LETTERS.decode(changed.ids), changed.echo.text, changed.blocked) == ("a hh", "a hh", False)
    assert (blocked.blocked, blocked.echo) == (True, None)
    assert [finding.rule for finding in (*changed.findings, *blocked.findings)] == ["name", "oath"]
    said = chat(state, messages=[{"role": "user", "content": "a fed"}]).prompts[0]
    assert LETTERS.decode(id for id in said.ids if id < N) == "a hh"
    kept = chat(state, messages=[USER, {"role": "assistant", "content": "fed"}, USER]).prompts[0]
    assert "fed" in LETTERS.decode(id for id in kept.ids if id < N), "the model's own words are not checked again"


# What is refused


def test_an_unknown_model_or_a_base_model(state):
    assert refused(completion, state, model="nobody")[0] == (404, "model_not_found", "model")
    assert refused(chat, state, model="base")[0] == (400, "not_a_chat_model", "model")


@pytest.mark.parametrize("where", [State.LOADING, State.DRAINING])
def test_a_server_that_is_not_ready(state, where):
    state.state = where
    for parse in (completion, chat):
        assert refused(parse, state)[0][0] == 503


def test_a_prompt_that_does_not_fit_the_model(state):
    where, message = refused(completion, state, prompt=["a", "b" * (BLOCK_SIZE + 1)])
    assert where == (400, "context_length_exceeded", "prompt.1")
    assert f"prompt.1 has {BLOCK_SIZE + 1} tokens, and base reads {BLOCK_SIZE} at most" in message
    completion(state, prompt="b" * BLOCK_SIZE)
    long = [{"role": "user", "content": "a" * BLOCK_SIZE}]
    assert refused(chat, state, messages=long)[0] == (400, "context_length_exceeded", "messages")


def test_ids_and_characters_that_the_model_does_not_know(state):
    where, message = refused(completion, state, prompt=[[2], [3, N]])
    assert where == (400, "invalid_value", "prompt.1.1")
    assert f"is {N}; the model's tokens are 0 to {N - 1}" in message
    assert refused(completion, state, prompt="xyz")[0] == (400, "invalid_value", "prompt")
    unknown = [USER, {"role": "assistant", "content": "x"}, USER]
    assert refused(chat, state, messages=unknown)[0] == (400, "invalid_value", "messages.1.content")


def test_messages_out_of_turn(state):
    assistant = {"role": "assistant", "content": "a"}
    assert refused(chat, state, messages=[USER, USER])[0] == (400, "invalid_value", "messages.1.role")
    where, message = refused(chat, state, messages=[USER, assistant])
    assert where == (400, "invalid_value", "messages.1.role")
    assert "the last message must be the user's" in message


def test_more_tokens_than_the_server_allows(state):
    assert refused(completion, state, max_tokens=101)[0] == (400, "invalid_value", "max_tokens")
    assert refused(chat, state, max_completion_tokens=101)[0] == (400, "invalid_value", "max_completion_tokens")
    assert refused(completion, state, n=9)[0] == (400, "too_many_texts", "n")
    assert refused(completion, state, prompt=["a"] * 9)[0] == (400, "too_many_texts", "prompt")
    assert len(completion(state, prompt=["a"] * 4, n=2).prompts) == 4, "eight are as many as run and wait"


def test_a_full_queue(state):
    with state.worker.places(8), pytest.raises(ApiError) as caught:
        completion(state)
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    completion(state)


def test_too_many_log_probabilities(state, monkeypatch):
    monkeypatch.setattr(requests, "MAX_LOGPROBS", 2 * 10 * 6)
    completion(state, n=2, max_tokens=10, logprobs=5)
    assert refused(completion, state, n=2, max_tokens=11, logprobs=5)[0] == (400, "too_many_logprobs", "logprobs")
    where, _ = refused(chat, state, n=2, max_tokens=11, logprobs=True, top_logprobs=5)
    assert where == (400, "too_many_logprobs", "top_logprobs")
    where, _ = refused(completion, state, max_tokens=10, echo=True, logprobs=5)
    assert where == (400, "too_many_logprobs", "logprobs"), "an echo counts with the whole context"


def test_biases_that_leave_nothing_or_name_no_token(state):
    assert refused(completion, state, logit_bias={str(N): 1.0})[0] == (400, "invalid_value", "logit_bias")
    assert refused(completion, state, logit_bias={"a": 1.0})[0] == (400, "invalid_value", "logit_bias")


def test_a_request_without_enough_memory(state, monkeypatch):
    monkeypatch.setattr(slots, "UNASKED_BYTES", 0)
    monkeypatch.setattr(state.memory, "_memory", lambda _: Memory(0, 16 * 2 * 8 * 4))
    completion(state, prompt="abc", max_tokens=10)
    assert refused(completion, state, prompt="abc", max_tokens=20)[0] == (400, "insufficient_memory", "max_tokens")
    assert chat(state, max_tokens=None).config.max_new_tokens == 16 - 6, "without max_tokens, what fits"
    where, _ = refused(completion, state, prompt="abc", max_tokens=1, echo=True, logprobs=0)
    assert where == (400, "insufficient_memory", "prompt")


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "1"])
def test_invalid_numbers_are_refused_earlier(state, value):
    with pytest.raises(ValidationError):
        completion(state, temperature=value)
