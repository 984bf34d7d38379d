"""The rules of the safety stage: what is looked for in a text, and how they are written in TOML.

A finder tells the first place where its rule holds, and how much of a text's end may still be the beginning of such a
place. From these two, texts that come in pieces are judged as if they had come whole (`stream.py`).
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
"""Characters of what is found repeated."""
KINDS = ("words", "pattern", "personal", "longest", "repetition")
KEYS = ("name", "reason", "action", "where", "mark", *KINDS)


@dataclass(frozen=True)
class Rule:
    """What to do where a finder finds something."""

    name: str
    reason: str
    action: Action
    where: tuple[Where, ...]
    mark: str
    """What is shown in place of what is redacted."""
    finder: Callable[[], Finder]
    """Makes one for a text: some count as they go."""


Test = Callable[[str], bool]


class _Candidates:
    """What looks like something, and is if a test says so.

    Args:
        before: what must not stand before a candidate.
        pattern: what one looks like, the longest first.
        after: what must not stand after it.
        begins: characters that a candidate begins with.
        characters: characters that it is made of.
        longest: characters of a candidate at most.
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
        """Whether a part of the longest candidate is one, too."""
        return self._after.match(text, end) is None and self._part.fullmatch(text, begin, end) is not None

    def undecided(self, text: str, start: int) -> int:
        """See `Finder`. What more text could make something of is the run at the end, as far as a candidate reaches."""
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
    """Whether it is as long as a telephone number (ITU-T E.164) and begins like one, not like 0.25 or 0001."""
    n = len(_digits(text))
    if text.startswith("+"):
        return 8 <= n <= 15
    return 9 <= n <= 15 and re.match(r"\(|00? ?[1-9]", text) is not None


def _is_card(text: str) -> bool:
    """Whether the digits of a number check (ISO/IEC 7812-1, annex B: Luhn's formula)."""
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
    """All that comes after so many characters."""

    def __init__(self, n: int) -> None:
        self._left = n

    def first(self, text: str, start: int) -> Span | None:
        """See `Finder`; it counts what it is handed for the first time."""
        return Span(max(start, self._left), None) if len(text) > self._left else None

    def undecided(self, text: str, start: int) -> int:
        """See `Finder`."""
        del start
        return len(text)

    def forget(self, n: int) -> None:
        """The first characters of the text are not handed over any more."""
        self._left -= n


class Repetition:
    """All from where the same few characters have come again more than `times` times: what a lost model does."""

    def __init__(self, times: int) -> None:
        self._times = times
        self._n_seen, self._found = 0, -1
        self._is_found = False  # places fall below 0 when what they are in is forgotten
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
        """The first characters of the text are not handed over any more."""
        self._n_seen -= n
        self._found -= n


def read_rules(path: Path) -> list[Rule]:
    """The rules of a TOML file.

    Raises:
        ConfigError: it cannot be read, or a rule is none; the line names file and rule.
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
        require(isinstance(value, str) and bool(value.strip()), f"{key} has to be a text that says something")
    require(action in get_args(Action), f"action is {action!r}; it must be one of: {', '.join(get_args(Action))}")
    where = given.get("where", list(get_args(Where)))
    places = isinstance(where, list) and bool(where) and all(one in get_args(Where) for one in where)
    require(places, f'where is {where!r}; it must be a list of "prompt", "reply", or both')
    kinds = [kind for kind in KINDS if kind in given]
    require(len(kinds) == 1, f"a rule has one of {', '.join(KINDS)}; this one has {kinds or 'none'}")
    kind, mark = kinds[0], given.get("mark", f"[{name}]")
    require(isinstance(mark, str), "mark has to be a text")
    finder = _finder(kind, given[kind])
    if kind in ("longest", "repetition"):
        require(action == "block", f"{kind} can only block: it is about all that follows")
    yield Rule(str(name), str(reason), action, tuple(where), mark, finder)  # type: ignore[arg-type]


def _finder(kind: str, value: Any) -> Callable[[], Finder]:
    if kind == "words":
        require(
            isinstance(value, list) and all(isinstance(one, str) for one in value), "words has to be a list of words"
        )
        return Words(value).for_another_text
    if kind == "pattern":
        require(isinstance(value, str), "pattern has to be a regular expression, as a text")
        pattern = Pattern(value)
        return lambda: pattern
    if kind == "personal":
        require(value in PERSONAL, f"personal is {value!r}; it must be one of: {', '.join(PERSONAL)}")
        personal = PERSONAL[value]()
        return lambda: personal
    require(type(value) is int and value >= 1, f"{kind} is {value!r}; it must be a whole number of at least 1")
    return (lambda: Longest(value)) if kind == "longest" else (lambda: Repetition(value))
