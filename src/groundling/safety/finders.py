"""What every rule of the safety stage has: a finder, which looks for one thing in a text that grows."""

from typing import NamedTuple, Protocol

LONGEST_MATCH = 500
"""Characters that a pattern, a word or a phrase may have at most: as many may have to be held back."""
CONTEXT = 16
"""Characters before a place that finders may look at."""


class Span(NamedTuple):
    """A place in a text; `end` None: all that follows."""

    start: int
    end: int | None


class Finder(Protocol):
    """Looks at a text that grows. Places are those of the piece that it is handed.

    A finder that keeps what it has seen may also have `forget(n)`: the first n characters are not handed over any
    more; `hidden(end)`: what stands before `end` was replaced by spaces; and `end(text)`: the text has ended.
    """

    def first(self, text: str, start: int) -> Span | None:
        """The first place at or after `start` where the rule holds.

        A finder that counts or judges as it goes sees each character once; of what it has found before `start`, it
        gives the rest.
        """
        ...

    def undecided(self, text: str, start: int) -> int:
        """Where, at or after `start`, a place may begin that more text could complete, or change; the end if none."""
        ...
