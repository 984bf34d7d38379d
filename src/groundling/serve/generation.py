"""From a sample's tokens to what a client is shown of it: text up to a stop string, past the safety stage.

A token's probabilities are shown when its text is, and not before: what is held back or hidden is not told by them.
Whatever the pieces are in which tokens come, what is shown of them, joined, is the same.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from groundling.sample.choose import Token
from groundling.sample.stop import TextStream
from groundling.serve.safety import Finding, ReplyFilter, Segment
from groundling.text.tokenizer import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length", "content_filter"]


@dataclass
class Shown:
    """What is new."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    offsets: list[int] = field(default_factory=list)
    """Where in the text, as it is shown, each token begins."""


def offsets(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Where in a text each of its ids begins."""
    places = _Places(tokenizer.stream_decoder())
    for id in ids:
        places.push(id)
    return [places.span(number)[0] for number in range(len(ids))]


class Choice:
    """One text that grows.

    Args:
        tokenizer: of the model.
        stop: strings that end the text.
        end_ids: ids that end it, and are no text.
        safety: what looks at the text first; None: nothing does.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: tuple[str, ...], end_ids: tuple[int, ...], safety: ReplyFilter | None
    ) -> None:
        self.n_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._end_ids, self._safety = end_ids, safety
        self._places = _Places(tokenizer.stream_decoder())
        self._text = TextStream(self._places, stop)
        self._held: deque[tuple[Token, int]] = deque()
        self._n_raw = 0
        self._hidden: list[tuple[int, int, int]] = []  # from where to where, and how much longer its mark is
        self._n_findings = 0

    def push(self, tokens: Sequence[Token], is_last: bool) -> Shown:
        """Take what the model chose; return what may be shown now."""
        shown = Shown()
        for token in tokens:
            if self.finish_reason is not None:
                break
            self.n_tokens += 1
            if token.id in self._end_ids:
                self._finish("stop", shown)
                break
            certain = self._text.push(token.id)
            self._held.append((token, self._places.end))
            self._show(certain, shown)
            if self._text.stopped and self.finish_reason is None:  # what was blocked by the same token stays so
                self._finish("stop", shown)
        if is_last and self.finish_reason is None:
            self._finish("length", shown)
        self._show_tokens(shown)
        shown.finish_reason = self.finish_reason
        return shown

    def _finish(self, reason: FinishReason, shown: Shown) -> None:
        self.finish_reason = reason
        self._show(self._text.finish(), shown)
        if self._safety is not None and not self._safety.blocked:
            self._take(self._safety.finish(), shown)

    def _show(self, certain: str, shown: Shown) -> None:
        if self._safety is None:
            shown.text += certain
            self._n_raw += len(certain)
        elif certain and not self._safety.blocked:
            self._take(self._safety.push(certain), shown)

    def _take(self, segments: Sequence[Segment], shown: Shown) -> None:
        assert self._safety is not None
        for segment in segments:
            shown.text += segment.text
            if segment.redacted:
                longer = len(segment.text) - segment.n_raw
                self._hidden.append((self._n_raw, self._n_raw + segment.n_raw, longer))
            self._n_raw += segment.n_raw
        shown.findings += self._safety.findings[self._n_findings :]
        self._n_findings = len(self._safety.findings)
        if self._safety.blocked:
            self.finish_reason = "content_filter"

    def _show_tokens(self, shown: Shown) -> None:
        """Those of whose text all is shown."""
        while self._held:
            token, place = self._held[0]
            start, end = self._places.span(place)
            if end is None or end > self._n_raw:
                break
            self._held.popleft()
            if not any(low < end and start < high for low, high, _ in self._hidden):
                shown.tokens.append(token)
                shown.offsets.append(start + sum(longer for _, high, longer in self._hidden if high <= start))


class _Places:
    """A stream decoder that notes which characters each id became.

    An id that completes no character belongs to the one that it begins.
    """

    def __init__(self, decoder: StreamDecoder) -> None:
        self._decoder = decoder
        self._n_chars = 0
        self._spans: list[tuple[int, int | None]] = []
        self._open: list[int] = []

    @property
    def end(self) -> int:
        """The place of the last id."""
        return len(self._spans) - 1

    def span(self, place: int) -> tuple[int, int | None]:
        """The characters of an id; its end is None while that is not known."""
        return self._spans[place]

    def push(self, token: int) -> str:
        text = self._decoder.push(token)
        start = self._n_chars
        self._n_chars += len(text)
        if text:
            for place in self._open:
                self._spans[place] = (self._spans[place][0], start + 1)
            self._open.clear()
            self._spans.append((start, self._n_chars))
        else:
            self._open.append(len(self._spans))
            self._spans.append((start, None))
        return text

    def finish(self) -> str:
        text = self._decoder.finish()
        self._n_chars += len(text)
        for place in self._open:
            self._spans[place] = (self._spans[place][0], self._n_chars)
        self._open.clear()
        return text
