"""The two forms of an answer: of a chat, and of a plain completion; whole, or in chunks."""

import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from groundling.errors import DataError
from groundling.safety.stream import Finding
from groundling.sample.sampler import Token
from groundling.serve.completions.output import Shown
from groundling.text.tokenizer import Tokenizer

LEAST_LOGPROB = -9999.0
"""What is said of a token that cannot come: JSON has no infinity."""


class Words:
    """What ids are called in answers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._special = tokenizer, set(tokenizer.special.values())
        self._known: dict[int, tuple[str, list[int] | None]] = {}

    def of(self, id: int) -> tuple[str, list[int] | None]:
        """An id's text and its bytes; a special token has a name and no bytes."""
        if id not in self._known:
            self._known[id] = self._of(id)
        return self._known[id]

    def _of(self, id: int) -> tuple[str, list[int] | None]:
        if id in self._special:
            return self._tokenizer.piece(id), None
        try:
            data = self._tokenizer.decode_bytes([id])
        except DataError:
            return f"<{id}>", None
        return data.decode("utf-8", "replace"), list(data)


class Form(Protocol):
    """How answers of one kind look."""

    def whole(self, number: int, shown: Shown) -> dict[str, Any]:
        """A choice as a whole."""
        ...

    def begin(self, number: int) -> dict[str, Any] | None:
        """The first chunk of a choice, before it has any text."""
        ...

    def chunk(self, number: int, shown: Shown) -> dict[str, Any]:
        """What is new of a choice."""
        ...

    def envelope(self, choices: list[dict[str, Any]], *, streamed: bool) -> dict[str, Any]:
        """What choices are sent in."""
        ...


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)


def _thoughts(shown: Shown) -> dict[str, str]:
    """What a model thought before its reply, under the name that OpenAI-compatible servers give it."""
    return {"reasoning_content": shown.thoughts} if shown.thoughts else {}


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


class ChatForm(_Envelope):
    """As /v1/chat/completions answers."""

    def __init__(self, model: str, fingerprint: str, words: Words, with_logprobs: bool) -> None:
        super().__init__("chatcmpl", ("chat.completion", "chat.completion.chunk"), model, fingerprint)
        self._words, self._with_logprobs = words, with_logprobs

    def whole(self, number: int, shown: Shown) -> dict[str, Any]:
        """A choice as a whole."""
        message = {"role": "assistant", "content": shown.text, **_thoughts(shown), "refusal": None}
        return self._choice(number, shown, {"message": message})

    def begin(self, number: int) -> dict[str, Any] | None:
        """The speaker."""
        return self._choice(number, Shown(), {"delta": {"role": "assistant", "content": ""}}, empty=True)

    def chunk(self, number: int, shown: Shown) -> dict[str, Any]:
        """What is new of a choice."""
        text = {"content": shown.text} if shown.text else {}
        return self._choice(number, shown, {"delta": {**_thoughts(shown), **text}})

    def _choice(self, number: int, shown: Shown, said: dict[str, Any], *, empty: bool = False) -> dict[str, Any]:
        logprobs = None
        if self._with_logprobs and not empty:
            logprobs = {"content": [self._entry(token) for token in shown.tokens], "refusal": None}
        return {
            "index": number,
            **said,
            "logprobs": logprobs,
            "finish_reason": shown.finish_reason,
            **safety_note(shown.findings),
        }

    def _entry(self, token: Token) -> dict[str, Any]:
        def one(id: int, logprob: float | None) -> dict[str, Any]:
            text, data = self._words.of(id)
            return {"token": text, "logprob": _number(logprob), "bytes": data}

        return {**one(token.id, token.logprob), "top_logprobs": [one(*likely) for likely in token.likely]}


class TextForm(_Envelope):
    """As /v1/completions answers."""

    def __init__(self, model: str, fingerprint: str, words: Words, with_logprobs: bool) -> None:
        super().__init__("cmpl", ("text_completion", "text_completion"), model, fingerprint)
        self._words, self._with_logprobs = words, with_logprobs

    def whole(self, number: int, shown: Shown) -> dict[str, Any]:
        """A choice as a whole."""
        return {
            "index": number,
            "text": shown.text,
            "logprobs": self._logprobs(shown) if self._with_logprobs else None,
            "finish_reason": shown.finish_reason,
            **safety_note(shown.findings),
        }

    def begin(self, number: int) -> dict[str, Any] | None:
        """Nothing."""
        del number
        return None

    def chunk(self, number: int, shown: Shown) -> dict[str, Any]:
        """What is new of a choice."""
        return self.whole(number, shown)

    def _logprobs(self, shown: Shown) -> dict[str, Any]:
        return {
            "tokens": [self._name(token.id) for token in shown.tokens],
            "token_logprobs": [_number(token.logprob) for token in shown.tokens],
            "top_logprobs": [self._likely(token) for token in shown.tokens],
            "text_offset": shown.offsets,
        }

    def _likely(self, token: Token) -> dict[str, float | None] | None:
        """The likeliest, and the one that came."""
        if token.logprob is None:  # nothing comes before the first token of a prompt
            return None
        likely = {self._name(id): _number(logprob) for id, logprob in reversed(token.likely)}
        return {**likely, self._name(token.id): _number(token.logprob)}

    def _name(self, id: int) -> str:
        """An id's text; bytes that are none are spelled, for else many would have one name."""
        text, data = self._words.of(id)
        if data is None or text.encode() == bytes(data):
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


MakeForm = Callable[[str, str, Words, bool], Form]
