"""The JSON of responses: chat completions and text completions, complete or in chunks."""

import time
import uuid
from collections.abc import Iterable
from typing import Any, Protocol

from groundling.safety.stream import Finding
from groundling.sample.sampler import Token
from groundling.serve.completions.output import ChoiceDelta
from groundling.serve.token_text import TokenText

MIN_LOGPROB = -9999.0
"""Stands for the log-probability -inf: JSON has no infinity."""


class ResponseFormat(Protocol):
    """Builds the JSON of one kind of response."""

    def choice(self, number: int, delta: ChoiceDelta) -> dict[str, Any]:
        """A complete choice."""
        ...

    def first_chunk(self, number: int) -> dict[str, Any] | None:
        """A chunk to send before a choice has any text, or None."""
        ...

    def chunk(self, number: int, delta: ChoiceDelta) -> dict[str, Any]:
        """The new part of a choice."""
        ...

    def envelope(self, choices: list[dict[str, Any]], *, streamed: bool) -> dict[str, Any]:
        """The object around choices."""
        ...


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, MIN_LOGPROB)


def _thoughts(delta: ChoiceDelta) -> dict[str, str]:
    """The model's thoughts, in the field that other OpenAI-compatible servers use."""
    return {"reasoning_content": delta.thoughts} if delta.thoughts else {}


def safety_note(findings: Iterable[Finding]) -> dict[str, Any]:
    """The safety stage's findings, if any."""
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
    """Responses of /v1/chat/completions."""

    def __init__(self, model: str, fingerprint: str, token_text: TokenText, with_logprobs: bool) -> None:
        super().__init__("chatcmpl", ("chat.completion", "chat.completion.chunk"), model, fingerprint)
        self._token_text, self._with_logprobs = token_text, with_logprobs

    def choice(self, number: int, delta: ChoiceDelta) -> dict[str, Any]:
        """A complete choice."""
        message = {"role": "assistant", "content": delta.text, **_thoughts(delta), "refusal": None}
        return self._choice(number, delta, {"message": message})

    def first_chunk(self, number: int) -> dict[str, Any] | None:
        """The role."""
        return self._choice(number, ChoiceDelta(), {"delta": {"role": "assistant", "content": ""}}, empty=True)

    def chunk(self, number: int, delta: ChoiceDelta) -> dict[str, Any]:
        """The new part of a choice."""
        text = {"content": delta.text} if delta.text else {}
        return self._choice(number, delta, {"delta": {**_thoughts(delta), **text}})

    def _choice(
        self, number: int, delta: ChoiceDelta, content: dict[str, Any], *, empty: bool = False
    ) -> dict[str, Any]:
        logprobs = None
        if self._with_logprobs and not empty:
            logprobs = {"content": [self._entry(token) for token in delta.tokens], "refusal": None}
        return {
            "index": number,
            **content,
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
    """Responses of /v1/completions."""

    def __init__(self, model: str, fingerprint: str, token_text: TokenText, with_logprobs: bool) -> None:
        super().__init__("cmpl", ("text_completion", "text_completion"), model, fingerprint)
        self._token_text, self._with_logprobs = token_text, with_logprobs

    def choice(self, number: int, delta: ChoiceDelta) -> dict[str, Any]:
        """A complete choice."""
        return {
            "index": number,
            "text": delta.text,
            "logprobs": self._logprobs(delta) if self._with_logprobs else None,
            "finish_reason": delta.finish_reason,
            **safety_note(delta.findings),
        }

    def first_chunk(self, number: int) -> dict[str, Any] | None:
        """None: a text completion has no role."""
        del number
        return None

    def chunk(self, number: int, delta: ChoiceDelta) -> dict[str, Any]:
        """The new part of a choice."""
        return self.choice(number, delta)

    def _logprobs(self, delta: ChoiceDelta) -> dict[str, Any]:
        return {
            "tokens": [self._name(token.id) for token in delta.tokens],
            "token_logprobs": [_number(token.logprob) for token in delta.tokens],
            "top_logprobs": [self._likely(token) for token in delta.tokens],
            "text_offset": delta.offsets,
        }

    def _likely(self, token: Token) -> dict[str, float | None] | None:
        """The most likely tokens, and the chosen one."""
        if token.logprob is None:  # the first token of a prompt
            return None
        likely = {self._name(id): _number(logprob) for id, logprob in reversed(token.likely)}
        return {**likely, self._name(token.id): _number(token.logprob)}

    def _name(self, id: int) -> str:
        """An id's text; invalid UTF-8 is written as escapes, so that ids keep different names."""
        text, data = self._token_text.of(id)
        if data is None or text.encode() == bytes(data):
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
