"""Row 42: numbers that are none, or are far too large, are a 400 in OpenAI's shape."""

import pytest

from servekit import Served

pytestmark = pytest.mark.slow

NUMBERS = {
    "max_tokens": ["1000000000", "-1", "1e9", "true", "1.5", "NaN", '"5"', "1" + "0" * 5000],
    "n": ["1000000", "0", "-1", "true"],
    "temperature": ["NaN", "Infinity", "-Infinity", "-1", "1e400", "true", '"1"', "2.1"],
    "top_p": ["0", "2", "NaN", "-0.5"],
    "logprobs": ["65", "-1", "true", "NaN"],
    "top_k": ["0", "-1", "NaN"],
    "min_p": ["1", "NaN"],
    "repetition_penalty": ["0", "-1", "Infinity"],
    "presence_penalty": ["-2.5", "NaN"],
    "seed": ["1.5", "99999999999999999999", "true"],
    "logit_bias": ['{"1": NaN}', '{"1": 101}', '{"-1": 1}', '{"1": true}', '{"1e1": 1}', "[]"],
    "prompt": ["[1.5]", "[-1]", "[99999999999]", "[true]", "[[]]", "[]", "{}", "5", "[1e3]", "[70000]"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in NUMBERS.items() for value in values])
def test_it_is_refused(server: Served, field: str, value: str) -> None:
    others = {"model": '"base"', "prompt": '"a"', "max_tokens": "2"} | {field: value}
    body = "{" + ", ".join(f'"{name}": {text}' for name, text in others.items()) + "}"
    status, answer, _ = server.ask("POST", "/v1/completions", raw=body.encode())
    assert status == 400
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    if len(value) < 100:  # a number of thousands of digits is no JSON for us
        assert answer["error"]["param"].split(".")[0] == field


@pytest.mark.parametrize("absent", ["max_tokens", "temperature", "top_p", "n", "stop", "seed", "logit_bias", "suffix"])
def test_null_means_the_default(server: Served, absent: str) -> None:
    status, answer, _ = server.ask("POST", "/v1/completions", {"model": "base", "prompt": "a", absent: None})
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("n", {"n": 81}),
        ("n", {"n": 81, "max_tokens": 0}),
        ("n", {"n": 128, "prompt": ["a"] * 80}),
        ("prompt", {"prompt": ["a"] * 81, "echo": True, "logprobs": 1, "max_tokens": 0}),
        ("prompt", {"prompt": ["a"] * 128, "n": 128}),
        ("logprobs", {"n": 80, "max_tokens": 4096, "logprobs": 5}),
        ("logprobs", {"n": 80, "max_tokens": 290, "logprobs": 20, "echo": True}),
    ],
)
def test_requests_that_can_never_be_served_are_refused(server: Served, field: str, changes: dict) -> None:
    """A 429 would have it come again for ever."""
    status, answer, _ = server.ask("POST", "/v1/completions", {"model": "base", "prompt": "a", **changes})
    assert (status, answer["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    ("field", "said"),
    [("suffix", "is not supported here; leave it out"), ("tools", "are not supported here; leave them out")],
)
def test_unsupported_fields_are_named(server: Served, field: str, said: str) -> None:
    status, answer, _ = server.ask("POST", "/v1/completions", {"model": "base", "prompt": "a", field: "x"})
    assert status == 400
    assert answer["error"]["message"] == f"{field} {said}"
    assert (answer["error"]["param"], answer["error"]["code"]) == (field, "unsupported_field")
