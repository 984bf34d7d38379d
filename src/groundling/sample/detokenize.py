"""Detokenization of a stream: text up to a stop string, and the characters of each id."""

from groundling.text.tokenizer import StreamDecoder


class TextStream:
    """Decodes one completion, and holds back characters that may be the beginning of a stop string.

    The text ends before the stop string that is complete first; if several are, before the longest. So it depends on
    the characters only, not on how they are split into tokens.
    """

    def __init__(self, decoder: StreamDecoder, stop: tuple[str, ...]) -> None:
        self.stopped = False
        self._decoder, self._stop, self._held = decoder, stop, ""

    def push(self, token: int) -> str:
        """Add an id; return the text that is certain now. Empty after a stop string."""
        return "" if self.stopped else self._release(self._decoder.push(token))

    def finish(self) -> str:
        """Return the characters held back: they did not become a stop string."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.finish())
        held, self._held = self._held, ""
        return text + held

    def _release(self, text: str) -> str:
        if not self._stop:
            return text
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        n_free = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[n_free:]
        return text[:n_free]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class OffsetDecoder:
    """A stream decoder that records which characters each id became.

    An id that completes no character is assigned the character that it begins.
    """

    def __init__(self, decoder: StreamDecoder) -> None:
        self._decoder = decoder
        self._n_chars = 0
        self._spans: list[tuple[int, int | None]] = []
        self._open: list[int] = []

    @property
    def end(self) -> int:
        """Index of the last id."""
        return len(self._spans) - 1

    def span(self, place: int) -> tuple[int, int | None]:
        """First and last (exclusive) character of an id; the last is None while it is not known."""
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
