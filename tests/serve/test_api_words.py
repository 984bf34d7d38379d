"""What a request is told that is refused: the place, what came there, and what was expected."""

import math
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from groundling.serve.completions.conversation import TURNS, conversation
from groundling.serve.completions.schema import ChatMessage, ChatRequest, CompletionRequest
from groundling.serve.http.errors import ApiError
from groundling.serve.http.validation import explain, find_fault
from groundling.serve.ranking.routes import Answer, TrainRequest
from groundling.serve.xray import XrayRequest

USER = {"role": "user", "content": "Who?"}
VALID: dict[type[BaseModel], dict[str, Any]] = {
    CompletionRequest: {"model": "base", "prompt": "a"},
    ChatRequest: {"model": "talker", "messages": [USER]},
    XrayRequest: {"model": "base", "prompt": "a"},
    Answer: {"question": "q", "choice": "tie", "rater": "ann", "key": "12345678"},
    TrainRequest: {},
}
PROMPTS = "a string, an array of strings, an array of integers, or an array of arrays of integers"
ELEMENTS = "a string, an integer from 0 to 2,147,483,647, or an array of integers"
ID = "an integer from 0 to 2,147,483,647"
PARTS = "a string, or an array of objects with type and text"
ROLES = '"system", "developer", "user" or "assistant"'
CHOICES = '"tie" or "skip", an object with best, or an array of arrays of integers'
NO = "is not supported here; leave it out"
NONE = "are not supported here; leave them out"


def said(*content: Any, **more: Any) -> dict[str, Any]:
    """Messages of which the second is an assistant's with this content."""
    return {"messages": [USER, {"role": "assistant", **dict(zip(["content"], content, strict=False)), **more}, USER]}


def asked(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


TEXT = {"type": "text", "text": "a"}
TABLE: list[tuple[type[BaseModel], dict[str, Any], str, str]] = [
    # stop: a text or texts
    (CompletionRequest, {"stop": ["x", ""]}, "stop.1", "is empty; it must be a string of 1 to 1,000 characters"),
    (CompletionRequest, {"stop": ""}, "stop", "is empty; it must be a string of 1 to 1,000 characters"),
    (CompletionRequest, {"stop": 5}, "stop", "is 5; it must be a string, or an array of strings"),
    (CompletionRequest, {"stop": {}}, "stop", "is an empty object; it must be a string, or an array of strings"),
    (CompletionRequest, {"stop": ["x", None]}, "stop.1", "is null; it must be a string"),
    (CompletionRequest, {"stop": ["x"] * 17}, "stop", "is an array of 17; it must be an array of at most 16 strings"),
    (ChatRequest, {"stop": ["x", ""]}, "stop.1", "is empty; it must be a string of 1 to 1,000 characters"),
    # prompt: a text, texts, ids, lists of ids
    (CompletionRequest, {"prompt": []}, "prompt", f"is an empty array; it must be {PROMPTS}"),
    (CompletionRequest, {"prompt": None}, "prompt", f"is null; it must be {PROMPTS}"),
    (CompletionRequest, {"prompt": {"a": 1}}, "prompt", f"is an object; it must be {PROMPTS}"),
    (CompletionRequest, {"prompt": True}, "prompt", f"is true; it must be {PROMPTS}"),
    (CompletionRequest, {"prompt": [1, -1]}, "prompt.1", f"is -1; it must be {ID}"),
    (CompletionRequest, {"prompt": [1, True]}, "prompt.1", f"is true; it must be {ID}"),
    (CompletionRequest, {"prompt": [1, "a"]}, "prompt.1", f"is a string; it must be {ID}"),
    (CompletionRequest, {"prompt": ["a", 1]}, "prompt.1", "is 1; it must be a string"),
    (CompletionRequest, {"prompt": [None]}, "prompt.0", f"is null; it must be {ELEMENTS}"),
    (CompletionRequest, {"prompt": [1.5]}, "prompt.0", f"is 1.5; it must be {ELEMENTS}"),
    (CompletionRequest, {"prompt": [[1], []]}, "prompt.1",
     "is an empty array; it must be an array of 1 or more integers"),
    (CompletionRequest, {"prompt": [[1], [2, "a"]]}, "prompt.1.1", f"is a string; it must be {ID}"),
    (CompletionRequest, {"prompt": ["a"] * 129}, "prompt",
     "is an array of 129; it must be an array of 1 to 128 strings"),
    # numbers
    (CompletionRequest, {"temperature": math.nan}, "temperature", "is NaN; it must be a number from 0 to 2"),
    (CompletionRequest, {"temperature": -math.inf}, "temperature", "is -Infinity; it must be a number from 0 to 2"),
    (CompletionRequest, {"temperature": "1"}, "temperature", "is a string; it must be a number from 0 to 2"),
    (CompletionRequest, {"top_p": 0}, "top_p", "is 0; it must be a number above 0 and at most 1"),
    (CompletionRequest, {"min_p": 1}, "min_p", "is 1; it must be a number at least 0 and below 1"),
    (CompletionRequest, {"n": True}, "n", "is true; it must be an integer from 1 to 128"),
    (CompletionRequest, {"n": 1.5}, "n", "is 1.5; it must be an integer from 1 to 128"),
    (CompletionRequest, {"max_tokens": -1}, "max_tokens", "is -1; it must be an integer from 0 to 1,000,000"),
    (CompletionRequest, {"seed": 10**60}, "seed", "is a number of 61 digits; it must be an integer from "
     "-9,007,199,254,740,992 to 9,007,199,254,740,992"),
    (CompletionRequest, {"temperature": 10**400}, "temperature",
     "is a number of 401 digits; it must be a number from 0 to 2"),
    (CompletionRequest, {"prompt": [1, 10**400]}, "prompt.1", f"is a number of 401 digits; it must be {ID}"),
    (CompletionRequest, {"logit_bias": {"1": 101}}, "logit_bias.1", "is 101; it must be a number from -100 to 100"),
    (CompletionRequest, {"logit_bias": {"1": True}}, "logit_bias.1", "is true; it must be a number from -100 to 100"),
    (CompletionRequest, {"logit_bias": [1]}, "logit_bias", "is an array; it must be an object of numbers"),
    (CompletionRequest, {"logit_bias": {str(n): 0 for n in range(1001)}}, "logit_bias",
     "has 1,001 entries; 1,000 are the most"),
    (CompletionRequest, {"best_of": 2}, "best_of", "is 2; it must be 1"),
    # what is not known or not supported
    (CompletionRequest, {"dance": True}, "dance", NO),
    (CompletionRequest, {"suffix": "x"}, "suffix", NO),
    (CompletionRequest, {"tools": []}, "tools", NONE),
    (CompletionRequest, {"stream": True, "stream_options": {"x": 1}}, "stream_options.x", NO),
    (CompletionRequest, {"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage",
     "is 1; it must be true or false"),
    (CompletionRequest, {"stream": True, "stream_options": "x"}, "stream_options",
     "is a string; it must be an object with include_usage and include_obfuscation"),
    (ChatRequest, {"tools": [{"type": "function"}]}, "tools", NONE),
    (ChatRequest, {"tools": "x", "temperature": 9}, "tools", NONE),
    (ChatRequest, {"functions": [{}]}, "functions", NONE),
    (ChatRequest, {"function_call": "auto"}, "function_call", NO),
    (ChatRequest, {"tool_choice": "auto"}, "tool_choice", 'is "auto"; it must be "none"'),
    (ChatRequest, {"tool_choice": {"type": "function"}}, "tool_choice", 'is an object; it must be "none"'),
    (ChatRequest, {"response_format": {"type": "json_object"}}, "response_format.type",
     'is "json_object"; it must be "text"'),
    (ChatRequest, {"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.type",
     'is "json_schema"; it must be "text"'),
    (ChatRequest, {"response_format": "text"}, "response_format", "is a string; it must be an object with type"),
    (ChatRequest, {"response_format": {}}, "response_format.type", 'is missing; it must be "text"'),
    (ChatRequest, {"modalities": ["text", "audio"]}, "modalities.1", 'is "audio"; it must be "text"'),
    (ChatRequest, {"store": True}, "store", "is true; it must be false"),
    (ChatRequest, {"metadata": {"a": 1}}, "metadata.a", "is 1; it must be a string"),
    (ChatRequest, {"logprobs": 5}, "logprobs", "is 5; it must be true or false"),
    (ChatRequest, {"top_logprobs": 21, "logprobs": True}, "top_logprobs",
     "is 21; it must be an integer from 0 to 20"),
    # messages
    (ChatRequest, said(None), "messages.1.content", f"is null; it must be {PARTS}"),
    (ChatRequest, said(), "messages.1.content", f"is missing; it must be {PARTS}"),
    (ChatRequest, said(5), "messages.1.content", f"is 5; it must be {PARTS}"),
    (ChatRequest, said([]), "messages.1.content", f"is an empty array; it must be {PARTS}"),
    (ChatRequest, said(None, tool_calls=[{"id": "c"}]), "messages.1.tool_calls", NONE),
    (ChatRequest, said("a", function_call={"name": "f"}), "messages.1.function_call", NO),
    (ChatRequest, said("a", refusal="no"), "messages.1.refusal", NO),
    (ChatRequest, said("a", audio={"id": "x"}), "messages.1.audio", NO),
    (ChatRequest, said("a", prefix=True), "messages.1.prefix", NO),
    (ChatRequest, said("\ud83d"), "messages.1.content",
     "has a lone surrogate (\\ud83d) at character 0; send whole characters"),
    (ChatRequest, {"messages": [{"role": "tool", "tool_call_id": "c", "content": "4"}]}, "messages.0.role",
     f'is "tool"; it must be {ROLES}'),
    (ChatRequest, {"messages": [{"role": "function", "name": "f", "content": "4"}]}, "messages.0.role",
     f'is "function"; it must be {ROLES}'),
    (ChatRequest, {"messages": [{"role": 1, "content": "4"}]}, "messages.0.role", f"is 1; it must be {ROLES}"),
    (ChatRequest, {"messages": [{}]}, "messages.0.role", f"is missing; it must be {ROLES}"),
    (ChatRequest, {"messages": [[USER]]}, "messages.0", "is an array; it must be an object with role and content"),
    (ChatRequest, {"messages": []}, "messages",
     "is an empty array; it must be an array of 1 to 10,000 objects with role and content"),
    (ChatRequest, {"messages": "hello"}, "messages",
     "is a string; it must be an array of objects with role and content"),
    (ChatRequest, {"messages": None}, "messages", "is null; it must be an array of objects with role and content"),
    (ChatRequest, asked(TEXT, {"type": "image_url", "image_url": {"url": "x"}}), "messages.0.content.1.type",
     'is "image_url"; it must be "text"'),
    (ChatRequest, asked({"type": "input_audio", "input_audio": {}}), "messages.0.content.0.type",
     'is "input_audio"; it must be "text"'),
    (ChatRequest, asked({"type": "file", "file": {}}), "messages.0.content.0.type", 'is "file"; it must be "text"'),
    (ChatRequest, asked({"type": "refusal", "refusal": "no"}), "messages.0.content.0.type",
     'is "refusal"; it must be "text"'),
    (ChatRequest, asked(TEXT, {"type": "text"}), "messages.0.content.1.text", "is missing; it must be a string"),
    (ChatRequest, asked({"text": "a"}), "messages.0.content.0.type", 'is missing; it must be "text"'),
    (ChatRequest, asked({**TEXT, "cache_control": {}}), "messages.0.content.0.cache_control", NO),
    (ChatRequest, asked("a"), "messages.0.content.0", "is a string; it must be an object with type and text"),
    (ChatRequest, asked(*[TEXT] * 1001), "messages.0.content",
     "is an array of 1,001; it must be an array of 1 to 1,000 objects with type and text"),
    # the other routes
    (XrayRequest, {"prompt": 5}, "prompt", "is 5; it must be a string"),
    (XrayRequest, {"checkpoint": "newest"}, "checkpoint", 'is "newest"; it must be "best", "last", or a step'),
    (XrayRequest, {"prompt": None, **said(None)}, "messages.1.content", f"is null; it must be {PARTS}"),
    (Answer, {"choice": "both"}, "choice", 'is "both"; it must be "tie" or "skip"'),
    (Answer, {"choice": None}, "choice", f"is null; it must be {CHOICES}"),
    (Answer, {"choice": 1}, "choice", f"is 1; it must be {CHOICES}"),
    (Answer, {"choice": []}, "choice", f"is an empty array; it must be {CHOICES}"),
    (Answer, {"choice": [1]}, "choice.0", "is 1; it must be an array of integers"),
    (Answer, {"choice": [[1], [9]]}, "choice.1.0", "is 9; it must be an integer from 1 to 4"),
    (Answer, {"choice": {"best": 0}}, "choice.best", "is 0; it must be an integer from 1 to 4"),
    (Answer, {"choice": {"worst": 1}}, "choice.worst", NO),
    (Answer, {"key": "a b"}, "key", 'is "a b"; it must be 8 to 100 letters, digits, dots, underscores or hyphens'),
    (Answer, {"rater": ""}, "rater", "is empty; it must be a string of 1 to 100 characters"),
    (TrainRequest, {"model": ["a"]}, "model", "is an array; it must be a string"),
]  # fmt: skip


def refusal(model: type[BaseModel], body: Any) -> ValidationError | None:
    try:
        model.model_validate(body)
    except ValidationError as error:
        return error
    return None


def error_of(model: type[BaseModel], body: Any) -> ApiError:
    """What the server answers to such a body."""

    def endpoint(body): ...

    endpoint.__annotations__ = {"body": model}
    error = refusal(model, body)
    assert error is not None, "it is taken"
    errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
    return explain(RequestValidationError(errors, body=body), endpoint)


@pytest.mark.parametrize(
    ("model", "changes", "place", "words"), TABLE, ids=[f"{m.__name__} {str(c)[:50]}" for m, c, _, _ in TABLE]
)
def test_a_refusal_names_the_place(model, changes, place, words):
    error = error_of(model, {**VALID[model], **changes})
    assert (error.message, error.param) == (f"{place} {words}", place)
    assert error.status == 400
    assert error.code == ("unsupported_field" if words in (NO, NONE) else "invalid_value")


@pytest.mark.parametrize(
    ("model", "changes", "message", "param"),
    [
        (ChatRequest, {"top_logprobs": 1}, "top_logprobs requires logprobs: true", "top_logprobs"),
        (ChatRequest, {"stream_options": {}}, "stream_options requires stream: true", "stream_options"),
        (XrayRequest, {"prompt": None}, "give either prompt or messages", None),
        (XrayRequest, {"messages": [USER]}, "give either prompt or messages", None),
    ],
)
def test_fields_that_do_not_go_together(model, changes, message, param):
    error = error_of(model, {**VALID[model], **changes})
    assert (error.message, error.param) == (message, param)


@pytest.mark.parametrize(
    ("body", "came"),
    [([], "an empty array"), ([1], "an array"), ("x", "a string"), (5, "5"), (None, "null"), (False, "false")],
)
def test_a_body_that_is_not_an_object(body, came):
    error = error_of(ChatRequest, body)
    assert (error.message, error.param) == (f"the body is {came}; it must be an object with model and messages", None)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (CompletionRequest, {"prompt": [None] * 10_000}),
        (CompletionRequest, {"prompt": [[]] * 10_000}),
        (CompletionRequest, {"prompt": [["a"] * 10_000]}),
        (CompletionRequest, {"stop": [None] * 10_000}),
        (ChatRequest, {"modalities": ["audio"] * 10_000}),
        (ChatRequest, {"tools": [None] * 10_000}),
        (Answer, {"choice": [[None] * 10_000]}),
    ],
)
def test_a_large_list_is_given_up_at_its_first_error(model, changes):
    """All errors of a request are put into words that nobody reads, while the server answers nobody else."""
    error = refusal(model, {**VALID[model], **changes})
    assert error.error_count() < 10
    assert error_of(model, {**VALID[model], **changes}).param.split(".")[0] in changes


def test_names_from_a_client_are_truncated():
    error = error_of(CompletionRequest, {**VALID[CompletionRequest], "x" * 10_000: 1})
    assert len(error.param) == 200
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("roles", "place", "words"),
    [
        (["user", "user"], "messages.1.role", f'is "user"; it must be "assistant": {TURNS}'),
        (["assistant"], "messages.0.role", f'is "assistant"; it must be "user": {TURNS}'),
        (["system", "developer"], "messages.1.role", f'is "developer"; it must be "user": {TURNS}'),
        (["developer"], "messages.1", "is missing; a user message must follow the system message"),
    ],
)
def test_a_message_out_of_turn(roles, place, words):
    with pytest.raises(ApiError) as caught:
        conversation([ChatMessage(role=role, content="a") for role in roles])
    assert (caught.value.message, caught.value.param) == (f"{place} {words}", place)


def test_a_message_is_one_line_whatever_names_and_values_hold():
    error = error_of(CompletionRequest, {**VALID[CompletionRequest], "a\n\x1b[2J": 1})
    assert (error.message, error.param) == (f"a\\n\\u001b[2J {NO}", "a\n\x1b[2J")
    error = error_of(CompletionRequest, {**VALID[CompletionRequest], "": 1})
    assert (error.message, error.param) == (f'"" {NO}', "")
    error = error_of(ChatRequest, {**VALID[ChatRequest], "tool_choice": 'é\n"'})
    assert error.message == 'tool_choice is "é\\n\\""; it must be "none"'


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("text")
USUAL = st.sampled_from([1, 0.5, "a", ["a"], [1], [[1]], {"1": 0.5}, [], USER, [TEXT], 1.0, "user", "tie", 10**400])
JSON = USUAL | st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
RICH = {
    **{name: None for model in VALID for name in model.model_fields},
    "messages": [USER, {"role": "assistant", "content": [TEXT, TEXT]}, USER],
    "stream": True,
    "logprobs": True,
    "stream_options": {"include_usage": True},
    "prompt": [[1, 2], [3]],
    "stop": ["a", "b"],
    "choice": [[1], [2]],
    "logit_bias": {"1": 2.0},
    "response_format": {"type": "text"},
}


def places(value: Any) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key, below in inner for rest in places(below))]


def keys(value: Any) -> Any:
    return value if isinstance(value, dict) else range(len(value))


def with_changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = with_changed(value[place[0]], place[1:], new)
    return copy


@given(st.data(), st.sampled_from(list(VALID)))
def test_a_fault_is_found_exactly_where_pydantic_refuses(data, model):
    """Whatever stands at any place of a body: so no refusal is without its place, and none is made up."""
    rich = {name: value for name, value in {**RICH, **VALID[model]}.items() if name in model.model_fields}
    body = with_changed(rich, data.draw(st.sampled_from(places(rich))), data.draw(JSON))
    error = refusal(model, body)
    fault = find_fault(body, model)
    if error is None or {one["type"] for one in error.errors()} == {"value_error"}:  # of fields that do not go together
        assert fault is None
        return
    assert fault is not None, error
    assert "\n" not in fault.said
    found = body
    for step in fault.place[:-1]:
        found = found[step]
    assert not fault.place or "is missing" in fault.said or fault.place[-1] in keys(found), "the place is there"
