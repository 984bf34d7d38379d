"""Where a text may be cut, so that its parts, encoded one by one, are the whole encoded."""

import re
from collections.abc import Iterable, Iterator

CHUNK_CHARS = 1 << 20
_BEFORE_BLANK = re.compile(r"\S(?=[ \n])")


def chunks(pieces: Iterable[str], n_chars: int = CHUNK_CHARS) -> Iterator[str]:
    """Cut a stream into chunks of about `n_chars` that encode, one by one, to what the whole encodes to.

    No tokenizer here has a piece that begins before a blank and goes on after it, so a chunk ends between a
    character and the space or newline behind it. A text without such a place for `n_chars` is cut anyhow; it still
    decodes to itself.
    """
    buffer = ""
    for piece in pieces:
        buffer += piece
        while len(buffer) >= n_chars:
            cut = last_safe_cut(buffer[:n_chars]) or n_chars
            yield buffer[:cut]
            buffer = buffer[cut:]
    if buffer:
        yield buffer


def last_safe_cut(text: str) -> int:
    """Return the last place where `text` may be cut, or 0 if there is none."""
    window = 256
    while True:
        places = [match.end() for match in _BEFORE_BLANK.finditer(text, max(0, len(text) - window))]
        if places:
            return places[-1]
        if window >= len(text):
            return 0
        window *= 16
