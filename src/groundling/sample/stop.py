"""From ids to text that ends before a stop string, also where the stop string spans several tokens."""

from groundling.text.tokenizer import StreamDecoder


class TextStream:
    """Decodes one sample, and holds back what may turn out to be the beginning of a stop string.

    The text ends before the stop string that is complete first, and before the longest where several are. So it
    depends on the characters alone, and not on how they are cut into tokens.
    """

    def __init__(self, decoder: StreamDecoder, stop: tuple[str, ...]) -> None:
        self.stopped = False
        self._decoder, self._stop, self._held = decoder, stop, ""

    def push(self, token: int) -> str:
        """Take one id; return the text that is certain by now. After the stop string it is always empty."""
        return "" if self.stopped else self._release(self._decoder.push(token))

    def finish(self) -> str:
        """Return what was held back: no stop string came of it."""
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
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
