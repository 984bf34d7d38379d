"""Request bodies: the fields of OpenAI's API that apply here, and a few more.

Other fields are refused by name. Fields that clients always send may be null.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from groundling.sample.sampler import SamplingConfig

MAX_TOKENS = 1_000_000
MAX_CHOICES = 128
MAX_LIKELY = 20


def whole(value: object) -> object:
    """Convert 5.0 to 5: JSON has one number type. For `BeforeValidator`."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=10_000_000)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Id = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(whole)]
Ids = Annotated[list[Id], Field(min_length=1, fail_fast=True)]
"""Unbounded, so it fails fast: an error for each element of a large list would take seconds."""
_EXACT = WithJsonSchema({"type": "integer", "minimum": -(2**53), "maximum": 2**53})
"""Bounds in the schema that floats represent exactly: /openapi.json writes bounds as floats."""
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), BeforeValidator(whole), _EXACT]
Tokens = Annotated[int, Field(ge=0, le=MAX_TOKENS), BeforeValidator(whole)]
Likely = Annotated[int, Field(ge=0, le=MAX_LIKELY), BeforeValidator(whole)]
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES), BeforeValidator(whole)]
TopK = Annotated[int, Field(ge=1, le=MAX_TOKENS), BeforeValidator(whole)]


class Body(BaseModel):
    """A request body: no unknown fields, no NaN or infinity, no type conversion."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    """Options of a streamed response."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Sampling(Body):
    """Fields of both kinds of completions."""

    model: str = Field(min_length=1, max_length=200)
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    n: Choices | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: Seed | None = None
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Annotated[Number, Field(ge=-100, le=100)]], Field(max_length=1000)] | None = None
    max_tokens: Tokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=1000)] | None = None
    top_k: TopK | None = None
    min_p: Number | None = Field(None, ge=0, lt=1)
    typical_p: Number | None = Field(None, gt=0, le=1)
    repetition_penalty: Number | None = Field(None, gt=0, le=10)
    ignore_eos: bool | None = None

    @model_validator(mode="after")
    def _check_stream(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options requires stream: true")
        return self

    def sampling(self, max_new_tokens: int, logprobs: int | None, end_ids: tuple[int, ...]) -> SamplingConfig:
        """The sampling settings.

        Raises:
            ConfigError: a value is invalid.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingConfig(
            max_new_tokens=max_new_tokens,
            temperature=_or(self.temperature, 1.0),
            top_k=self.top_k,
            top_p=_or(self.top_p, 1.0),
            min_p=_or(self.min_p, 0.0),
            typical_p=_or(self.typical_p, 1.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            logit_bias=biases(self.logit_bias or {}),
            logprobs=logprobs,
            stop=stop,
            ignore_eos=bool(self.ignore_eos),
            end_ids=() if self.ignore_eos else end_ids,
        )


class CompletionRequest(Sampling):
    """A request of /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_CHOICES)]
    )
    logprobs: Likely | None = None
    echo: bool | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class TextPart(Body):
    """A text part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """A message. The developer role is the system role."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=1000)]
    name: Annotated[str, Field(max_length=200)] | None = None
    reasoning_content: Text | None = None
    """Accepted and ignored: the reasoning of an earlier response."""
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    def text(self) -> str:
        """The text of all parts."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class TextFormat(Body):
    """The only supported response format."""

    type: Literal["text"]


class TemplateOptions(Body):
    """Options of the chat template, as in vLLM."""

    enable_thinking: bool | None = None


class ChatRequest(Sampling):
    """A request of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Likely | None = None
    response_format: TextFormat | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    chat_template_kwargs: TemplateOptions | None = None

    @property
    def thinking(self) -> bool:
        """Whether the model may think before its reply."""
        options = self.chat_template_kwargs
        return options is None or options.enable_thinking is not False

    @model_validator(mode="after")
    def _check_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs requires logprobs: true")
        return self


def biases(given: dict[str, float]) -> dict[int, float]:
    """Biases by id.

    Raises:
        ValueError: a key is not a token id.
    """
    if wrong := [name for name in given if not (name.isascii() and name.isdecimal() and len(name) < 10)]:
        raise ValueError(f"logit_bias has {wrong[0][:40]!r}; it maps token ids to numbers")
    return {int(name): bias for name, bias in given.items()}


def _or(value: float | None, default: float) -> float:
    """The value, or the default for None."""
    return default if value is None else value
