r"""`pattern` rules: regular expressions that run in linear time on any text.

RE2 matches them. Its syntax is that of Python's `re` without lookaround, backreferences, possessive repetitions and
atomic groups, which are rejected when the rules are read. Before compilation, ASCII-only \w, \d and \s become Unicode
classes, as in `re`; \b at the beginning or end becomes a check of the adjacent character; and the maximum length of a
match is computed, because as many characters of streamed text must be held back.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from groundling.errors import ConfigError, require
from groundling.safety.finders import LONGEST_MATCH, Span
from groundling.system.optional import optional_import

MAX_MEM = 8 << 20
"""RE2's memory per pattern, in bytes. Its time grows with the pattern's size too."""
STRIDE = 1024
"""Characters to search at a time: RE2 gets a copy of them."""
MAX_SHOWN = 100
"""Characters of a pattern to show in an error message."""

_WORD, _DIGIT, _SPACE = r"_\pL\pN", r"\p{Nd}", r"\t-\r\x1c-\x1f\x{85}\pZ"
_CLASSES = {"w": f"[{_WORD}]", "W": f"[^{_WORD}]", "d": _DIGIT, "D": r"\P{Nd}", "s": f"[{_SPACE}]", "S": f"[^{_SPACE}]"}
_IN_SETS = {"w": _WORD, "d": _DIGIT, "D": r"\P{Nd}", "s": _SPACE}
_TOKEN = re.compile(
    r"(?P<quoted>\\Q.*?(?:\\E|\Z))"
    r"|(?P<set>\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\])"
    r"|(?P<flags>\(\?[A-Za-z-]+\))"
    r"|(?P<open>\((?:\?(?:P?<\w+>|[A-Za-z-]*:))?)"
    r"|(?P<close>\))"
    r"|(?P<either>\|)"
    r"|(?P<repeat>[*+?]\??|\{(?:0|[1-9][0-9]*)(?:,(?:0|[1-9][0-9]*)?)?\}\??)"
    r"|(?P<edge>\\[bB])"
    r"|(?P<place>[\^$]|\\[Az])"
    r"|(?P<one>\\[pPx]\{[^}]*\}|\\[pP].|\\x[0-9A-Fa-f]{2}|\\[0-7]{1,3}|\\.|.)",
    re.DOTALL,
)
"""The parts of a pattern that RE2 accepts."""
_HELP = (
    (r"operator: \(\?<?[=!]", r"it looks ahead or behind; leave that out, and put \b at the ends for whole words"),
    (r"escape sequence: \\[1-9k]|operator: \(\?P=", "it refers back to a group; write the group again"),
    (r"operator: \(\?>", "it has an atomic group; write (?: for (?>"),
    (r"operator: \(\?\(", "it asks whether a group was there; write both cases with |"),
    (r"operator: \(\?#", "it has a comment; leave it out"),
    (r"operator: \(\?[aLux]", "it has a flag that is unknown there; use only i, m, s and U"),
    (r"escape sequence: \\Z", r"it has \Z; write \z"),
    (r"escape sequence: \\[uUN]", r"it has a character's number or name; write \x{20AC}, or the character"),
    (r"repetition operator", "it repeats a repetition, or is possessive (++); put (?:...) around what is repeated"),
    (r"repetition size", "its repetitions come to more than 1000 in all; use fewer"),
    (r"too large", f"it needs more than {MAX_MEM >> 20} MiB; use fewer repetitions, or [A-Za-z0-9_] for \\w"),
)
"""RE2's error -> its meaning, and what to do."""


class Pattern:
    """A regular expression of bounded length, safe to share between threads.

    Raises:
        ConfigError: RE2 cannot express it, or it is not bounded.
        MissingExtraError: google-re2 is not installed.
    """

    def __init__(self, pattern: str) -> None:
        self._name = f"the pattern {_shown(pattern)}"
        self._compile(pattern)  # unchanged, so that RE2's error quotes it
        read = self._read(pattern)
        require(read.least > 0, f"{self._name} also matches nothing at all")
        require(
            read.most <= LONGEST_MATCH,
            f"{self._name} may match more than {LONGEST_MATCH} characters; bound it: {{0,50}} in place of *",
        )
        self._most = int(read.most)
        before, after = f"[^{_WORD}]" * read.leads, f"(?:[^{_WORD}]|\\z)" * read.trails
        self._leads = read.leads
        self._inside = self._compile(f"{before}({read.text}){after}")
        self._at_start = self._compile(f"(?:\\A|{before})({read.text}){after}") if read.leads else self._inside

    def first(self, text: str, start: int) -> Span | None:
        """See `Finder`."""
        while start < len(text):
            # A match that begins within the stride ends before `end`, with the character after it.
            end = start + STRIDE + self._most + 1
            begin = max(0, start - 1)
            piece = text[begin:end]
            if not piece.isascii():
                piece = piece.encode("utf-8", "replace").decode()  # a lone surrogate counts as one character
            regex = self._at_start if start == 0 else self._inside
            match = regex.search(piece, 0 if self._leads else start - begin)
            if match is not None:
                found = Span(*(begin + place for place in match.span(1)))
                if found.start < start + STRIDE or end >= len(text):
                    return found
            elif end >= len(text):
                return None
            start += STRIDE
        return None

    def undecided(self, text: str, start: int) -> int:
        """See `Finder`."""
        return max(start, len(text) - self._most)

    def _compile(self, pattern: str) -> Any:
        re2 = optional_import("re2", "serve", "google-re2")
        options = re2.Options()
        options.log_errors, options.max_mem = False, MAX_MEM
        try:
            return re2.compile(pattern, options)
        except UnicodeEncodeError:
            raise ConfigError(f"{self._name} has half a character; write it whole") from None
        except re2.error as error:
            message = error.args[0] if error.args else ""
            reason = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
        if reason.endswith("operator: (?P") and "(?P=" in pattern:  # RE2 cuts the operator off
            reason += "="
        for kind, what in _HELP:
            if re.search(kind, reason):
                raise ConfigError(f"RE2 cannot express {self._name}: {what}")
        raise ConfigError(f"{self._name} is not a regular expression of RE2: {reason[:MAX_SHOWN]}")

    def _read(self, pattern: str) -> "_Read":
        """Rewrite a pattern that RE2 accepts."""
        tokens = [_Part(str(match.lastgroup), match.group()) for match in _TOKEN.finditer(pattern)]
        kinds = [part.kind for part in tokens]
        first = next((n for n, kind in enumerate(kinds) if kind != "flags"), 0)
        leads = len(tokens) > first + 1 and tokens[first].text == "\\b" and kinds[first + 1] != "repeat"
        trails = len(tokens) > first + leads + 1 and tokens[-1].text == "\\b"
        kept = tokens[:first] + tokens[first + leads : len(tokens) - trails]
        width, text = _Width(), ""
        for part in kept:
            self._check(part, leads or trails, len(width.groups) == 1)
            width.add(part)
            text += _in_unicode(part)
        return _Read(text, *width.whole(), leads, trails)

    def _check(self, part: "_Part", has_edges: bool, is_outermost: bool) -> None:
        """Reject what RE2 accepts with another meaning than `re`."""
        require(
            part.kind != "edge" and not (part.kind == "either" and has_edges and is_outermost),
            f"{self._name} has \\b or \\B within; use \\b at the beginning and the end: \\b(?:one|two)\\b",
        )
        require(
            part.text != "{",
            f"{self._name} has a brace that repeats nothing; write \\{{ for a brace, {{0,5}} for {{,5}}",
        )
        require(part.text != "\\C", f"{self._name} has \\C, which is half a character; write (?s:.)")
        is_set = part.kind == "set"
        assert is_set or part.text != "[", "RE2 accepts closed sets only"
        require(
            not (is_set and re.search(r"(?<!\\)(?:\\\\)*\\[WS]", part.text)),
            f"{self._name} has \\W or \\S in brackets; write \\W|[...], or a set that begins with ^: [^\\w...]",
        )


class _Part(NamedTuple):
    """A part of a pattern; its kind is a group of _TOKEN."""

    kind: str
    text: str


class _Read(NamedTuple):
    """A rewritten pattern without \\b at its ends, the length of its matches, and where it had a \\b."""

    text: str
    least: float
    most: float
    leads: bool
    trails: bool


def _shown(pattern: str) -> str:
    return repr(pattern) if len(pattern) <= MAX_SHOWN else f"{pattern[:MAX_SHOWN]!r}..."


def _in_unicode(part: _Part) -> str:
    """Replace RE2's ASCII classes by Unicode classes."""
    if part.kind == "one":
        return _CLASSES.get(part.text[1:], part.text) if part.text.startswith("\\") else part.text
    if part.kind == "quoted":
        return part.text.removesuffix("\\E") + "\\E"  # RE2 also accepts an open one
    if part.kind == "set":
        return re.sub(r"\\(.)", lambda found: _IN_SETS.get(found[1], found[0]), part.text, flags=re.DOTALL)
    return part.text


Widths = tuple[float, float]
"""Minimum and maximum characters of a match."""
NONE: Widths = (0.0, 0.0)


@dataclass
class _Group:
    """Widths of a group read so far."""

    others: list[Widths] = field(default_factory=list)
    """Of earlier alternatives."""
    done: Widths = NONE
    """Of this alternative without its last part, which may be repeated."""
    last: Widths = NONE

    def add(self, part: Widths) -> None:
        self.done, self.last = _sum(self.done, self.last), part

    def close_alternative(self) -> None:
        self.others.append(_sum(self.done, self.last))
        self.done = self.last = NONE

    def whole(self) -> Widths:
        self.close_alternative()
        return min(least for least, _ in self.others), max(most for _, most in self.others)


class _Width:
    """Computes the width of a pattern, part by part."""

    def __init__(self) -> None:
        self.groups = [_Group()]

    def add(self, part: _Part) -> None:
        """Add the next part."""
        group = self.groups[-1]
        if part.kind in ("one", "set"):
            group.add((1, 1))
        elif part.kind == "quoted":
            for _ in part.text.removeprefix("\\Q").removesuffix("\\E"):
                group.add((1, 1))
        elif part.kind == "open":
            self.groups.append(_Group())
        elif part.kind == "close":
            self.groups.pop()
            self.groups[-1].add(group.whole())
        elif part.kind == "either":
            group.close_alternative()
        elif part.kind == "place":
            group.add(NONE)  # a repetition after it applies to it
        elif part.kind == "repeat":
            fewest, most = _times(part.text)
            group.last = (group.last[0] * fewest, group.last[1] * most if group.last[1] else 0.0)

    def whole(self) -> Widths:
        """Width of the whole pattern."""
        return self.groups[0].whole()


def _sum(a: Widths, b: Widths) -> Widths:
    return a[0] + b[0], a[1] + b[1]


def _times(repeat: str) -> Widths:
    """Bounds of a repetition: `*`, `{2,3}?`."""
    if not repeat.startswith("{"):
        return {"*": (0.0, math.inf), "+": (1.0, math.inf), "?": (0.0, 1.0)}[repeat[0]]
    fewest, comma, most = repeat.rstrip("?").strip("{}").partition(",")
    return float(fewest), float(most) if most else (math.inf if comma else float(fewest))
