"""Separate reasoning from the reply in streamed ids.

A reasoning model writes its reasoning between two tags before the reply. The tags have ids of their own, so no text
can open or close them. The template's line breaks around reasoning and reply are dropped.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from groundling.text.chat.template import ChatTemplate, Thinking
from groundling.text.tokenizer import StreamDecoder, TextDecoder, Tokenizer

Kind = Literal["tag", "thought", "reply"]


class ThinkingParser:
    """Classifies ids as reasoning or reply, one by one.

    Args:
        thinking: the tags; None: the model has none, and everything is reply.
    """

    def __init__(self, thinking: Thinking | None) -> None:
        self._thinking, self.is_thinking = thinking, False

    def __call__(self, id: int) -> Kind:
        """Classify the next id."""
        if self._thinking is not None and id in (self._thinking.opening, self._thinking.closing):
            self.is_thinking = id == self._thinking.opening
            return "tag"
        return "thought" if self.is_thinking else "reply"


class TrimmedDecoder:
    """A `StreamDecoder` that strips leading, and optionally trailing, line breaks.

    Args:
        decoder: the underlying decoder.
        at_end: strip trailing line breaks too; they are held back until more text follows.
    """

    def __init__(self, decoder: StreamDecoder, *, at_end: bool) -> None:
        self._decoder, self._at_end = decoder, at_end
        self._has_begun, self._held = False, ""

    def push(self, token: int) -> str:
        """Add one id; return the text that is complete."""
        return self._release(self._decoder.push(token))

    def finish(self) -> str:
        """Return the text held back, and reset."""
        text = self._release(self._decoder.finish())
        self._has_begun, self._held = False, ""
        return text

    def _release(self, text: str) -> str:
        if not self._has_begun:
            text = text.lstrip("\n")
            self._has_begun = bool(text)
        if not self._at_end:
            return text
        text = self._held + text
        certain = text.rstrip("\n")
        self._held = text[len(certain) :]
        return certain


def word_decoder(chat: ChatTemplate | None, tokenizer: Tokenizer) -> StreamDecoder:
    """Return a decoder for the reply."""
    decoder = TextDecoder(tokenizer)
    return decoder if chat is None or chat.thinking is None else TrimmedDecoder(decoder, at_end=False)


def thought_decoder(tokenizer: Tokenizer) -> StreamDecoder:
    """Return a decoder for the reasoning."""
    return TrimmedDecoder(TextDecoder(tokenizer), at_end=True)


class Piece(NamedTuple):
    """New text of a reply."""

    thoughts: str
    words: str


class ReplyDecoder:
    """Decodes a generated reply id by id; end and other special tokens give no text.

    Args:
        chat: chat template of the model.
        tokenizer: decodes the ids.
    """

    def __init__(self, chat: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._parser = ThinkingParser(chat.thinking)
        self._words, self._thoughts = word_decoder(chat, tokenizer), thought_decoder(tokenizer)

    @property
    def is_thinking(self) -> bool:
        """Whether the last id was reasoning, or opened it."""
        return self._parser.is_thinking

    def push(self, id: int) -> Piece:
        """Add one id; return the text that is complete."""
        kind = self._parser(id)
        return Piece(
            self._thoughts.push(id) if kind == "thought" else "", self._words.push(id) if kind == "reply" else ""
        )

    def finish(self) -> Piece:
        """Return the text held back."""
        return Piece(self._thoughts.finish(), self._words.finish())


def reply_text(ids: Iterable[int], chat: ChatTemplate, tokenizer: Tokenizer) -> str:
    """Return the text of a reply without its reasoning."""
    decoder = ReplyDecoder(chat, tokenizer)
    return "".join([*(decoder.push(id).words for id in ids), decoder.finish().words])
