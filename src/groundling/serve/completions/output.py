"""Tokens to the text of a response: detokenized, cut at stop strings, filtered by the safety stage.

Log-probabilities of a token are released with its text, so they never reveal text that is held back or redacted. The
deltas add up to the same output however the tokens arrive.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from groundling.safety.stream import Finding, ReplyFilter, Segment
from groundling.sample.detokenize import OffsetDecoder, TextStream
from groundling.sample.sampler import Token
from groundling.text.chat.template import ChatTemplate
from groundling.text.chat.thoughts import ThinkingParser, thought_decoder, word_decoder
from groundling.text.tokenizer import TextDecoder, Tokenizer

FinishReason = Literal["stop", "length", "content_filter"]


@dataclass
class ChoiceDelta:
    """The new part of a choice."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    offsets: list[int] = field(default_factory=list)
    """Where each token begins in the filtered text."""
    thoughts: str = ""
    """Reasoning before the reply."""

    def add(self, new: "ChoiceDelta") -> None:
        """Append a later delta."""
        self.text += new.text
        self.thoughts += new.thoughts
        self.tokens += new.tokens
        self.offsets += new.offsets
        self.findings += new.findings
        self.finish_reason = new.finish_reason or self.finish_reason


def offsets(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Where each id begins in the decoded text."""
    places = OffsetDecoder(tokenizer.stream_decoder())
    for id in ids:
        places.push(id)
    return [places.span(number)[0] for number in range(len(ids))]


class Choice:
    """One choice being generated.

    Args:
        tokenizer: of the model.
        stop: stop strings.
        end_ids: ids that end the choice; they have no text.
        safety: filters the text; None: off.
        thoughts: separates thoughts from the reply; None: all text is the reply.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...],
        end_ids: tuple[int, ...],
        safety: ReplyFilter | None,
        thoughts: "Thoughts | None" = None,
    ) -> None:
        self.n_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._end_ids, self._safety, self._thoughts = end_ids, safety, thoughts
        self._places = OffsetDecoder(TextDecoder(tokenizer) if thoughts is None else thoughts.word_decoder)
        self._text = TextStream(self._places, stop)
        self._held: deque[tuple[Token, int]] = deque()
        self._n_raw = 0
        self._hidden: list[tuple[int, int, int]] = []  # redactions: start, end, change of length
        self._n_findings = 0

    def push(self, tokens: Sequence[Token], is_last: bool) -> ChoiceDelta:
        """Add tokens; return what may be sent now."""
        delta = ChoiceDelta()
        for token in tokens:
            if self.finish_reason is not None:
                break
            self.n_tokens += 1
            if token.id in self._end_ids:
                self._finish("stop", delta)
                break
            if self._thoughts is not None and self._thoughts.takes(token.id, delta):
                if self._thoughts.blocked:
                    self.finish_reason = "content_filter"
                continue
            certain = self._text.push(token.id)
            self._held.append((token, self._places.end))
            self._show(certain, delta)
            if self._text.stopped and self.finish_reason is None:  # unless the same token was blocked
                self._finish("stop", delta)
        if is_last and self.finish_reason is None:
            self._finish("length", delta)
        self._show_tokens(delta)
        delta.finish_reason = self.finish_reason
        return delta

    def _finish(self, reason: FinishReason, delta: ChoiceDelta) -> None:
        self.finish_reason = reason
        if self._thoughts is not None:
            self._thoughts.end(delta)
            if self._thoughts.blocked:
                self.finish_reason = "content_filter"
                return
        self._show(self._text.finish(), delta)
        if self._safety is not None and not self._safety.blocked:
            self._take(self._safety.finish(), delta)

    def _show(self, certain: str, delta: ChoiceDelta) -> None:
        if self._safety is None:
            delta.text += certain
            self._n_raw += len(certain)
        elif certain and not self._safety.blocked:
            self._take(self._safety.push(certain), delta)

    def _take(self, segments: Sequence[Segment], delta: ChoiceDelta) -> None:
        assert self._safety is not None
        for segment in segments:
            delta.text += segment.text
            if segment.redacted:
                longer = len(segment.text) - segment.n_raw
                self._hidden.append((self._n_raw, self._n_raw + segment.n_raw, longer))
            self._n_raw += segment.n_raw
        delta.findings += self._safety.findings[self._n_findings :]
        self._n_findings = len(self._safety.findings)
        if self._safety.blocked:
            self.finish_reason = "content_filter"

    def _show_tokens(self, delta: ChoiceDelta) -> None:
        """Release the tokens whose text is complete."""
        while self._held:
            token, place = self._held[0]
            start, end = self._places.span(place)
            if end is None or end > self._n_raw:
                break
            self._held.popleft()
            if not any(low < end and start < high for low, high, _ in self._hidden):
                delta.tokens.append(token)
                delta.offsets.append(start + sum(longer for _, high, longer in self._hidden if high <= start))


class Thoughts:
    """Separates thoughts from the reply, and filters them by the safety stage. Tags are dropped.

    Args:
        chat: a template with thinking.
        tokenizer: of the model.
        make_filter: makes a filter for a text; None: off.
    """

    def __init__(self, chat: ChatTemplate, tokenizer: Tokenizer, make_filter: Callable[[], ReplyFilter] | None) -> None:
        self.blocked = False
        """Whether the safety stage blocks the thoughts."""
        self.word_decoder = word_decoder(chat, tokenizer)
        """Decodes the reply."""
        self._sort, self._decoder, self._make_filter = (
            ThinkingParser(chat.thinking),
            thought_decoder(tokenizer),
            make_filter,
        )
        self._safety: ReplyFilter | None = None

    def takes(self, id: int, delta: ChoiceDelta) -> bool:
        """Whether an id belongs to the thoughts or is a tag; adds its text to the delta."""
        kind = self._sort(id)
        if kind == "tag":
            self.end(delta)
        elif kind == "thought":
            self._show(self._decoder.push(id), delta)
        return kind != "reply"

    def end(self, delta: ChoiceDelta) -> None:
        """End the thoughts; release text held back."""
        self._show(self._decoder.finish(), delta)
        if self._safety is not None:
            self._take(self._safety, self._safety.finish(), delta)
            self._safety = None

    def _show(self, certain: str, delta: ChoiceDelta) -> None:
        if not certain or self.blocked:
            return
        if self._make_filter is None:
            delta.thoughts += certain
            return
        self._safety = self._safety or self._make_filter()
        self._take(self._safety, self._safety.push(certain), delta)

    def _take(self, safety: ReplyFilter, segments: Sequence[Segment], delta: ChoiceDelta) -> None:
        delta.thoughts += "".join(segment.text for segment in segments)
        delta.findings += safety.findings
        self.blocked = self.blocked or safety.blocked
        safety.findings.clear()
