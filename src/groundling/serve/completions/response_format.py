"""The two forms of an answer: of a chat, and of a plain completion; whole, or in chunks."""

import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from groundling.safety.stream import Finding
from groundling.sample.sampler import Token
from groundling.serve.completions.output import ChoiceDelta
from groundling.serve.token_text import TokenText

MIN_LOGPROB = -9999.0
"""What is said of a token that cannot come: JSON has no infinity."""


class ResponseFormat(Protocol):
    """How answers of one kind look."""

    def whole(self, number: int, delta: ChoiceDelta) -> dict[str, Any]:
        """A choice as a whole."""
        ...

    def begin(self, number: int) -> dict[str, Any] | None:
        """The first chunk of a choice, before it has any text."""
        ...

    def chunk(self, number: int, delta: ChoiceDelta) -> dict[str, Any]:
        """What is new of a choice."""
        ...

    def envelope(self, choices: list[dict[str, Any]], *, streamed: bool) -> dict[str, Any]:
        """What choices are sent in."""
        ...


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, MIN_LOGPROB)


def _thoughts(delta: ChoiceDelta) -> dict[str, str]:
    """What a model thought before its reply, under the name that OpenAI-compatible servers give it."""
    return {"reasoning_content": delta.thoughts} if delta.thoughts else {}


def safety_note(findings: Iterable[Finding]) -> dict[str, Any]:
    """What the safety stage did."""
    notes = [{"rule": f.rule, "reason": f.reason, "action": f.action, "where": f.where} for f in findings]
    return {"groundling": {"safety": notes}} if notes else {}


class _Envelope:
    def __init__(self, prefix: str, names: tuple[str, str], model: str, fingerprint: str) -> None:
        self._id, self._created = f"{prefix}-{uuid.uuid4().hex}", int(time.time())
        self._names, self._model, self._fingerprint = names, model, fingerprint

    def envelope(self, choices: list[dict[str, Any]], *, streamed: bool) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": self._names[streamed],
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
        }


class ChatCompletionFormat(_Envelope):
    """As /v1/chat/completions answers."""

    def __init__(self, model: str, fingerprint: str, token_text: TokenText, with_logprobs: bool) -> None:
        super().__init__("chatcmpl", ("chat.completion", "chat.completion.chunk"), model, fingerprint)
        self._token_text, self._with_logprobs = token_text, with_logprobs

    def whole(self, number: int, delta: ChoiceDelta) -> dict[str, Any]:
        """A choice as a whole."""
        message = {"role": "assistant", "content": delta.text, **_thoughts(delta), "refusal": None}
        return self._choice(number, delta, {"message": message})

    def begin(self, number: int) -> dict[str, Any] | None:
        """The speaker."""
        return self._choice(number, ChoiceDelta(), {"delta": {"role": "assistant", "content": ""}}, empty=True)

    def chunk(self, number: int, delta: ChoiceDelta) -> dict[str, Any]:
        """What is new of a choice."""
        text = {"content": delta.text} if delta.text else {}
        return self._choice(number, delta, {"delta": {**_thoughts(delta), **text}})

    def _choice(self, number: int, delta: ChoiceDelta, said: dict[str, Any], *, empty: bool = False) -> dict[str, Any]:
        logprobs = None
        if self._with_logprobs and not empty:
            logprobs = {"content": [self._entry(token) for token in delta.tokens], "refusal": None}
        return {
            "index": number,
            **said,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
            **safety_note(delta.findings),
        }

    def _entry(self, token: Token) -> dict[str, Any]:
        def one(id: int, logprob: float | None) -> dict[str, Any]:
            text, data = self._token_text.of(id)
            return {"token": text, "logprob": _number(logprob), "bytes": data}

        return {**one(token.id, token.logprob), "top_logprobs": [one(*likely) for likely in token.likely]}


class CompletionFormat(_Envelope):
    """As /v1/completions answers."""

    def __init__(self, model: str, fingerprint: str, token_text: TokenText, with_logprobs: bool) -> None:
        super().__init__("cmpl", ("text_completion", "text_completion"), model, fingerprint)
        self._token_text, self._with_logprobs = token_text, with_logprobs

    def whole(self, number: int, delta: ChoiceDelta) -> dict[str, Any]:
        """A choice as a whole."""
        return {
            "index": number,
            "text": delta.text,
            "logprobs": self._logprobs(delta) if self._with_logprobs else None,
            "finish_reason": delta.finish_reason,
            **safety_note(delta.findings),
        }

    def begin(self, number: int) -> dict[str, Any] | None:
        """Nothing."""
        del number
        return None

    def chunk(self, number: int, delta: ChoiceDelta) -> dict[str, Any]:
        """What is new of a choice."""
        return self.whole(number, delta)

    def _logprobs(self, delta: ChoiceDelta) -> dict[str, Any]:
        return {
            "tokens": [self._name(token.id) for token in delta.tokens],
            "token_logprobs": [_number(token.logprob) for token in delta.tokens],
            "top_logprobs": [self._likely(token) for token in delta.tokens],
            "text_offset": delta.offsets,
        }

    def _likely(self, token: Token) -> dict[str, float | None] | None:
        """The likeliest, and the one that came."""
        if token.logprob is None:  # nothing comes before the first token of a prompt
            return None
        likely = {self._name(id): _number(logprob) for id, logprob in reversed(token.likely)}
        return {**likely, self._name(token.id): _number(token.logprob)}

    def _name(self, id: int) -> str:
        """An id's text; bytes that are none are spelled, for else many would have one name."""
        text, data = self._token_text.of(id)
        if data is None or text.encode() == bytes(data):
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


MakeResponseFormat = Callable[[str, str, TokenText, bool], ResponseFormat]
