"""Rules of the safety filter, and their TOML format.

A rule's finder returns its first match, and the position from which on a match may still begin. With these two,
`stream.py` filters streamed text exactly as if it were complete.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters, digits
from typing import Any, Literal, get_args

import numpy as np

from groundling.errors import ConfigError, near_name, require
from groundling.safety.finders import Finder, Span
from groundling.safety.patterns import Pattern
from groundling.safety.words import Words

Action = Literal["block", "redact"]
Where = Literal["prompt", "reply"]
Personal = Literal["email", "phone", "card"]
LONGEST_UNIT = 40
"""Maximum characters of a repeated unit."""
KINDS = ("words", "pattern", "personal", "longest", "repetition")
KEYS = ("name", "reason", "action", "where", "mark", *KINDS)


@dataclass(frozen=True)
class Rule:
    """A finder, and the action on its matches."""

    name: str
    reason: str
    action: Action
    where: tuple[Where, ...]
    mark: str
    """Replacement for redacted text."""
    finder: Callable[[], Finder]
    """Makes a finder for one text; some are stateful."""


Test = Callable[[str], bool]


class _Candidates:
    """Finds candidates by a pattern, and checks each with a test.

    Args:
        before: pattern that must not precede a candidate.
        pattern: a candidate, longest first.
        after: pattern that must not follow it.
        begins: characters that a candidate may begin with.
        characters: characters that it may contain.
        longest: maximum characters of a candidate.
        is_one: the test.
    """

    def __init__(
        self, before: str, pattern: str, after: str, begins: str, characters: str, longest: int, is_one: Test
    ) -> None:
        self._pattern = re.compile(rf"(?<!{before}){pattern}(?!{after})")
        self._part, self._after = re.compile(pattern), re.compile(after)
        self._begins, self._characters = frozenset(begins), frozenset(characters)
        self._longest, self._is_one = longest, is_one

    def first(self, text: str, start: int) -> Span | None:
        """See `Finder`."""
        while (match := self._pattern.search(text, start)) is not None:
            begin, longest = match.span()
            for end in range(longest, begin, -1):
                if self._is_whole(text, begin, end) and self._is_one(text[begin:end]):
                    return Span(begin, end)
            start = begin + 1
        return None

    def _is_whole(self, text: str, begin: int, end: int) -> bool:
        """Whether a prefix of the longest candidate is a candidate too."""
        return self._after.match(text, end) is None and self._part.fullmatch(text, begin, end) is not None

    def undecided(self, text: str, start: int) -> int:
        """See `Finder`: the run of candidate characters at the end, up to the longest candidate."""
        least = max(start, len(text) - self._longest - 1)
        place = found = len(text)
        while place > least and text[place - 1] in self._characters:
            place -= 1
            if text[place] in self._begins:
                found = place
        return found


def _digits(text: str) -> str:
    return "".join(character for character in text if character in digits)


def _is_phone(text: str) -> bool:
    """Whether it has the length of a telephone number (ITU-T E.164) and begins like one, unlike 0.25 or 0001."""
    n = len(_digits(text))
    if text.startswith("+"):
        return 8 <= n <= 15
    return 9 <= n <= 15 and re.match(r"\(|00? ?[1-9]", text) is not None


def _is_card(text: str) -> bool:
    """Whether the digits pass Luhn's check (ISO/IEC 7812-1, annex B)."""
    found = [int(digit) for digit in reversed(_digits(text))]
    total = sum(found[0::2]) + sum(sum(divmod(2 * digit, 10)) for digit in found[1::2])
    return 13 <= len(found) <= 19 and len(set(found)) > 1 and total % 10 == 0


WORD = ascii_letters + digits
PERSONAL: dict[Personal, Callable[[], Finder]] = {
    "email": lambda: _Candidates(
        r"[A-Za-z0-9._%+-]",
        r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}",
        r"[A-Za-z0-9-]",
        WORD + "._%+-",
        WORD + "._%+-@",
        64 + 1 + 8 * 64 + 24,
        lambda _: True,
    ),
    "phone": lambda: _Candidates(
        r"[\w+]", r"[+(]?[0-9][0-9 ().\-/]{6,24}[0-9]", r"\w", digits + "+(", digits + " ().-/+", 27, _is_phone
    ),
    "card": lambda: _Candidates(r"[\w-]", r"[0-9](?:[ -]?[0-9]){12,18}", r"[\w-]", digits, digits + " -", 37, _is_card),
}


class Longest:
    """Matches everything after n characters."""

    def __init__(self, n: int) -> None:
        self._left = n

    def first(self, text: str, start: int) -> Span | None:
        """See `Finder`."""
        return Span(max(start, self._left), None) if len(text) > self._left else None

    def undecided(self, text: str, start: int) -> int:
        """See `Finder`."""
        del start
        return len(text)

    def forget(self, n: int) -> None:
        """See `Finder`."""
        self._left -= n


class Repetition:
    """Matches everything after a unit of a few characters has repeated more than `times` times: degenerate output."""

    def __init__(self, times: int) -> None:
        self._times = times
        self._n_seen, self._found = 0, -1
        self._is_found = False  # the position falls below 0 when its text is dropped
        self._last = np.zeros(LONGEST_UNIT, dtype=np.uint32)  # newest first
        self._runs = np.zeros(LONGEST_UNIT, dtype=np.int64)
        self._limits = np.arange(1, LONGEST_UNIT + 1) * times

    def first(self, text: str, start: int) -> Span | None:
        """See `Finder`."""
        for place in range(self._n_seen, len(text)):
            if self._is_found:
                break
            code = ord(text[place])
            self._runs = np.where(self._last == code, self._runs + 1, 0)
            self._last[1:] = self._last[:-1]
            self._last[0] = code
            if (self._runs >= self._limits).any():
                self._found, self._is_found = place, True
        self._n_seen = max(self._n_seen, len(text))
        return Span(max(start, self._found), None) if self._is_found else None

    def undecided(self, text: str, start: int) -> int:
        """See `Finder`."""
        del start
        return len(text)

    def forget(self, n: int) -> None:
        """See `Finder`."""
        self._n_seen -= n
        self._found -= n


def read_rules(path: Path) -> list[Rule]:
    """Read rules from a TOML file.

    Raises:
        ConfigError: it cannot be read, or a rule is invalid; the message names file and rule.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the rules in {path} cannot be read: {error}") from error
    unknown = sorted(set(table) - {"rule"})
    require(not unknown, f"{path}: {unknown} is unknown; rules are tables that begin with [[rule]]")
    given = table.get("rule", [])
    require(
        isinstance(given, list) and all(isinstance(one, dict) for one in given), f"{path}: write [[rule]], not [rule]"
    )
    rules: list[Rule] = []
    for number, one in enumerate(given, 1):
        where = f"{path}: rule {one.get('name', number)!r}"
        try:
            rules += _rules(one)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    names = [rule.name for rule in rules]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, f"{path}: two rules are called {twice}")
    return rules


def _rules(given: Mapping[str, Any]) -> Iterator[Rule]:
    for key in given:
        require(key in KEYS, f"{key!r} is unknown; {near_name(key, KEYS, 'a rule has')}")
    name, reason, action = (given.get(key) for key in ("name", "reason", "action"))
    for key, value in (("name", name), ("reason", reason)):
        require(isinstance(value, str) and bool(value.strip()), f"{key} must be a text that says something")
    require(action in get_args(Action), f"action is {action!r}; it must be one of: {', '.join(get_args(Action))}")
    where = given.get("where", list(get_args(Where)))
    places = isinstance(where, list) and bool(where) and all(one in get_args(Where) for one in where)
    require(places, f'where is {where!r}; it must be a list of "prompt", "reply", or both')
    kinds = [kind for kind in KINDS if kind in given]
    require(len(kinds) == 1, f"a rule has one of {', '.join(KINDS)}; this one has {kinds or 'none'}")
    kind, mark = kinds[0], given.get("mark", f"[{name}]")
    require(isinstance(mark, str), "mark must be a text")
    finder = _finder(kind, given[kind])
    if kind in ("longest", "repetition"):
        require(action == "block", f"{kind} can only block: it matches all text that follows")
    yield Rule(str(name), str(reason), action, tuple(where), mark, finder)  # type: ignore[arg-type]


def _finder(kind: str, value: Any) -> Callable[[], Finder]:
    if kind == "words":
        require(isinstance(value, list) and all(isinstance(one, str) for one in value), "words must be a list of words")
        return Words(value).for_another_text
    if kind == "pattern":
        require(isinstance(value, str), "pattern must be a regular expression, as a text")
        pattern = Pattern(value)
        return lambda: pattern
    if kind == "personal":
        require(value in PERSONAL, f"personal is {value!r}; it must be one of: {', '.join(PERSONAL)}")
        personal = PERSONAL[value]()
        return lambda: personal
    require(type(value) is int and value >= 1, f"{kind} is {value!r}; it must be a whole number of at least 1")
    return (lambda: Longest(value)) if kind == "longest" else (lambda: Repetition(value))
