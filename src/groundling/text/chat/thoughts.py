"""A reply as it comes: what a model thinks, and what it says.

A model that thinks writes its thoughts between two tags, and then its reply. The tags are ids of their own, so that no
words can open or close them. Thoughts and words are shown without the line breaks that the template puts around them.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from groundling.text.chat.template import ChatTemplate, Thinking
from groundling.text.tokenizer import StreamDecoder, TextDecoder, Tokenizer

Kind = Literal["tag", "thought", "word"]


class Sorter:
    """Tells thoughts from words, id by id.

    Args:
        thinking: the tags; None: the model has none, and all are words.
    """

    def __init__(self, thinking: Thinking | None) -> None:
        self._thinking, self.is_thinking = thinking, False

    def __call__(self, id: int) -> Kind:
        """What this id is, after those before it."""
        if self._thinking is not None and id in (self._thinking.opening, self._thinking.closing):
            self.is_thinking = id == self._thinking.opening
            return "tag"
        return "thought" if self.is_thinking else "word"


class TrimmedDecoder:
    """A `StreamDecoder` without the line breaks at the beginning, and perhaps at the end.

    Args:
        decoder: what it takes its text from.
        at_end: whether line breaks at the end are dropped too; they are held back until more text follows.
    """

    def __init__(self, decoder: StreamDecoder, *, at_end: bool) -> None:
        self._decoder, self._at_end = decoder, at_end
        self._has_begun, self._held = False, ""

    def push(self, token: int) -> str:
        """Take one id; return the text that is certain by now."""
        return self._release(self._decoder.push(token))

    def finish(self) -> str:
        """Return what was held back, and be ready for new ids."""
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
    """A decoder for a reply's words."""
    decoder = TextDecoder(tokenizer)
    return decoder if chat is None or chat.thinking is None else TrimmedDecoder(decoder, at_end=False)


def thought_decoder(tokenizer: Tokenizer) -> StreamDecoder:
    """A decoder for a reply's thoughts."""
    return TrimmedDecoder(TextDecoder(tokenizer), at_end=True)


class Piece(NamedTuple):
    """What is new of a reply."""

    thoughts: str
    words: str


class ReplyDecoder:
    """Decodes a reply, id by id; its end and other special tokens give no text.

    Args:
        chat: the template of the model.
        tokenizer: its words.
    """

    def __init__(self, chat: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._sorter = Sorter(chat.thinking)
        self._words, self._thoughts = word_decoder(chat, tokenizer), thought_decoder(tokenizer)

    @property
    def is_thinking(self) -> bool:
        """Whether the last id was a thought, or began thinking."""
        return self._sorter.is_thinking

    def push(self, id: int) -> Piece:
        """Take one id; return the text that is certain by now."""
        kind = self._sorter(id)
        return Piece(
            self._thoughts.push(id) if kind == "thought" else "", self._words.push(id) if kind == "word" else ""
        )

    def finish(self) -> Piece:
        """Return what was held back."""
        return Piece(self._thoughts.finish(), self._words.finish())


def reply_text(ids: Iterable[int], chat: ChatTemplate, tokenizer: Tokenizer) -> str:
    """The words of a reply, without its thoughts."""
    decoder = ReplyDecoder(chat, tokenizer)
    return "".join([*(decoder.push(id).words for id in ids), decoder.finish().words])
