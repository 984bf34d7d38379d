"""The JSON of responses, without a server."""

import json
import math

import pytest

from groundling.safety.stream import Finding
from groundling.sample.sampler import Token
from groundling.serve.completions.output import ChoiceDelta
from groundling.serve.completions.response_format import MIN_LOGPROB, ChatCompletionFormat, CompletionFormat
from groundling.serve.token_text import TokenText
from groundling.text.bpe import train_bpe

TOKENIZER = train_bpe(["the king and the fool, é" * 3], 262)
A, B = TOKENIZER.encode("a")[0], TOKENIZER.encode("b")[0]
HALF = TOKENIZER.encode("é")[0]
"""The first byte of two."""
FINDING = Finding("oath", "an oath", "redact", "reply")
TOKENS = [Token(A, -0.5, ((B, -0.25), (A, -0.5))), Token(HALF, -math.inf, ((B, -0.125),))]


def made(kind, with_logprobs=False):
    return kind("m", "fp_1", TokenText(TOKENIZER), with_logprobs)


@pytest.mark.parametrize(
    ("kind", "prefix", "objects"),
    [
        (ChatCompletionFormat, "chatcmpl-", ("chat.completion", "chat.completion.chunk")),
        (CompletionFormat, "cmpl-", ("text_completion", "text_completion")),
    ],
)
def test_all_chunks_have_the_id_of_the_response(kind, prefix, objects):
    response_format = made(kind)
    whole = response_format.envelope([{"index": 0}], streamed=False)
    chunk = response_format.envelope([], streamed=True)
    assert whole["id"] == chunk["id"]
    assert whole["id"].startswith(prefix)
    assert (whole["object"], chunk["object"]) == objects
    assert (whole["model"], whole["system_fingerprint"]) == ("m", "fp_1")
    assert (whole["choices"], chunk["choices"]) == ([{"index": 0}], [])
    assert made(kind).envelope([], streamed=False)["id"] != whole["id"]


def test_a_chat_choice():
    delta = ChoiceDelta("hello", finish_reason="stop", findings=[FINDING], thoughts="hm")
    assert made(ChatCompletionFormat).choice(2, delta) == {
        "index": 2,
        "message": {"role": "assistant", "content": "hello", "reasoning_content": "hm", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
        "groundling": {
            "safety": [{"rule": "oath", "reason": "an oath", "action": "redact", "where": "reply"}],
        },
    }


def test_chat_chunks_begin_with_the_role_and_hold_what_is_new_only():
    response_format = made(ChatCompletionFormat, with_logprobs=True)
    first = response_format.first_chunk(1)
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert first["logprobs"] is None
    assert response_format.chunk(1, ChoiceDelta("a", TOKENS[:1]))["delta"] == {"content": "a"}
    assert response_format.chunk(1, ChoiceDelta(thoughts="hm"))["delta"] == {"reasoning_content": "hm"}
    last = response_format.chunk(1, ChoiceDelta(finish_reason="length"))
    assert (last["delta"], last["finish_reason"], last["logprobs"]) == ({}, "length", {"content": [], "refusal": None})


def test_chat_logprobs_name_tokens_by_text_and_bytes():
    choice = made(ChatCompletionFormat, with_logprobs=True).choice(0, ChoiceDelta("a", TOKENS))
    first, second = choice["logprobs"]["content"]
    assert first == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "b", "logprob": -0.25, "bytes": [98]},
            {"token": "a", "logprob": -0.5, "bytes": [97]},
        ],
    }
    assert second["token"] == "\N{REPLACEMENT CHARACTER}"
    assert second["bytes"] == [0xC3]
    assert second["logprob"] == MIN_LOGPROB
    json.dumps(choice, allow_nan=False)


def test_a_text_choice_and_its_chunk_are_alike():
    response_format = made(CompletionFormat)
    delta = ChoiceDelta("hello", finish_reason="length")
    expected = {"index": 0, "text": "hello", "logprobs": None, "finish_reason": "length"}
    assert response_format.choice(0, delta) == response_format.chunk(0, delta) == expected
    assert response_format.first_chunk(0) is None


def test_text_logprobs_are_lists_side_by_side():
    """The chosen token is among the alternatives; the first token of an echoed prompt has none."""
    delta = ChoiceDelta("ab", [Token(A), *TOKENS], offsets=[0, 1, 2])
    logprobs = made(CompletionFormat, with_logprobs=True).choice(0, delta)["logprobs"]
    assert logprobs == {
        "tokens": ["a", "a", "bytes:\\xc3"],
        "token_logprobs": [None, -0.5, MIN_LOGPROB],
        "top_logprobs": [None, {"a": -0.5, "b": -0.25}, {"b": -0.125, "bytes:\\xc3": MIN_LOGPROB}],
        "text_offset": [0, 1, 2],
    }
    json.dumps(logprobs, allow_nan=False)
