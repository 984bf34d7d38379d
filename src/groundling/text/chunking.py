"""Find positions to cut a text so that its chunks, encoded separately, give the ids of the whole.

No tokenizer here has a piece that crosses into a blank, so a text may be cut between a character and the space or
newline after it. Runs without such a position are cut after every `RUN_CHARS` characters by all tokenizers alike, which
keeps encoding linear and within the limits of the libraries' patterns. A run of that length may encode differently from
the uncut run; it decodes to itself.
"""

import re
from collections.abc import Iterable, Iterator

RUN_CHARS = 1 << 16
"""Longest run without a blank that is encoded in one piece."""
CHUNK_CHARS = 1 << 20
"""A multiple of `RUN_CHARS`, which makes a run cut at the same positions in a chunk as in the whole."""
_PLACES = (re.compile(r"[^\W_](?=[ \n])"), re.compile(r"\S(?=[ \n])"))
"""In order of preference: imported tokenizers may join a full stop with the newline after it, but never a letter."""


def chunks(pieces: Iterable[str], n_chars: int = CHUNK_CHARS) -> Iterator[str]:
    """Cut a stream into chunks of at most `n_chars` characters that encode separately to the ids of the whole.

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
    """Cut a text into pieces to encode at once."""
    return list(chunks((text,), RUN_CHARS))


def last_safe_cut(text: str, start: int = 0, stop: int | None = None) -> int:
    """Return the last safe cut position in `text[start:stop]`, or 0 if there is none."""
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
