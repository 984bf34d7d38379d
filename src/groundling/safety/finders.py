"""The interface of rules: a finder searches a text that is streamed in pieces."""

from typing import NamedTuple, Protocol

LONGEST_MATCH = 500
"""Maximum characters of a match, which is also the most that is held back."""
CONTEXT = 16
"""Characters before a position that finders may read."""


class Span(NamedTuple):
    """A part of a text; `end` None: to its end."""

    start: int
    end: int | None


class Finder(Protocol):
    """Searches a text that grows. Positions are relative to the text passed in.

    A stateful finder may also define `forget(n)`: the first n characters were dropped from the text; `hidden(end)`:
    everything before `end` was replaced by spaces; `end(text)`: the text is complete.
    """

    def first(self, text: str, start: int) -> Span | None:
        """The first match at or after `start`.

        A stateful finder reads each character once; of a match that begins before `start`, it returns the rest.
        """
        ...

    def undecided(self, text: str, start: int) -> int:
        """First position at or after `start` where more text could complete or change a match; the end if none."""
        ...
