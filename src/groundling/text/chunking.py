"""Where a text may be cut, so that its parts, encoded one by one, are the whole encoded.

No tokenizer here has a piece that begins before a blank and goes on after it, so a text may be cut between a character
and the space or newline behind it. A run without such a place is cut all the same after every `RUN_CHARS` characters,
by all tokenizers alike: so no text takes longer than its length allows, and none exceeds what a library's patterns can
match. A run of that length is encoded otherwise than it would be in one piece, and decodes to itself.
"""

import re
from collections.abc import Iterable, Iterator

RUN_CHARS = 1 << 16
"""The longest run without a blank that is encoded in one piece."""
CHUNK_CHARS = 1 << 20
"""A multiple of `RUN_CHARS`, so that a run is cut at the same places in a chunk as in the whole."""
_PLACES = (re.compile(r"[^\W_](?=[ \n])"), re.compile(r"\S(?=[ \n])"))
"""The best first: tokenizers from elsewhere may join a full stop with the newline after it, a letter never."""


def chunks(pieces: Iterable[str], n_chars: int = CHUNK_CHARS) -> Iterator[str]:
    """Cut a stream into chunks of at most `n_chars` that encode, one by one, to what the whole encodes to.

    Args:
        pieces: the text.
        n_chars: a multiple of `RUN_CHARS`.
    """
    waiting: list[str] = []
    n_waiting = 0
    for piece in pieces:
        waiting.append(piece)
        n_waiting += len(piece)
        if n_waiting < n_chars:
            continue
        text, start = waiting[0] if len(waiting) == 1 else "".join(waiting), 0
        while len(text) - start >= n_chars:
            stop = last_safe_cut(text, start, start + n_chars) or start + n_chars
            yield text[start:stop]
            start = stop
        waiting, n_waiting = [text[start:]], len(text) - start
    if n_waiting:
        yield "".join(waiting)


def parts(text: str) -> list[str]:
    """Cut a text into what is encoded at once."""
    return list(chunks((text,), RUN_CHARS))


def last_safe_cut(text: str, start: int = 0, stop: int | None = None) -> int:
    """Return the last place in `text[start:stop]` where it may be cut, or 0 if there is none."""
    stop = len(text) if stop is None else stop
    for pattern in _PLACES:
        window = 256
        while True:
            places = [match.end() for match in pattern.finditer(text, max(start, stop - window), stop)]
            if places:
                return places[-1]
            if window >= stop - start:
                break
            window *= 16
    return 0
