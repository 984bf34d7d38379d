"""One rater's ranking of the candidate replies to a prompt, and its form in JSON.

A choice is a tuple of groups of candidate indices, best group first. Candidates of one group are tied. Candidates in no
group rank below all groups, without an order among them: "the second of four is best" is ((1,),). So only stated
preferences count. A tie of all is one group; a skip is ().
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from groundling.errors import DataError
from groundling.text.chat.messages import ROLES, Message, check_messages

Choice = tuple[tuple[int, ...], ...]
SKIP: Choice = ()
MAX_CANDIDATES = 100
"""Per prompt. The number of pairs grows with the square: 4,950 for a full ranking of 100."""


def tie_of(n_candidates: int) -> Choice:
    """A tie of all candidates."""
    return (tuple(range(n_candidates)),)


def choice_of_best(best: int, n_candidates: int) -> Choice:
    """One candidate is better than all others."""
    return ((best,), (1 - best,)) if n_candidates == 2 else ((best,),)


@dataclass(frozen=True)
class Candidate:
    """A reply and its source."""

    text: str
    model: str
    seed: int | None = None
    """Sampling seed, if known."""


class Comparison(NamedTuple):
    """A preference between two candidates of one prompt."""

    messages: tuple[Message, ...]
    better: Candidate
    worse: Candidate
    tie: bool
    """Neither is better; `better` is the one shown first."""
    rater: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A rater's answer to one question, validated at construction."""

    key: str
    """Unique name; a second judgement with the same key is a duplicate."""
    messages: tuple[Message, ...]
    """The conversation so far; the last message is the user's."""
    candidates: tuple[Candidate, ...]
    shown: tuple[int, ...]
    """Candidate indices in the order shown."""
    choice: Choice
    rater: str
    time: str
    """UTC, ISO 8601."""

    def __post_init__(self) -> None:
        where = f"judgement {self.key!r}"
        check_question(self.messages, self.candidates, where)
        _require(bool(self.key) and bool(self.rater), f"{where}: a key and a rater need a name that is not empty")
        numbers = list(range(len(self.candidates)))
        _require(
            sorted(self.shown) == numbers, f"{where}: shown must be {numbers} in some order, not {list(self.shown)}"
        )
        named = [number for group in self.choice for number in group]
        _require(
            set(named) <= set(numbers) and len(set(named)) == len(named) and all(self.choice),
            f"{where}: a choice is groups of the numbers {numbers}, each once at most, not {_listed(self.choice)}",
        )
        _require(_is_utc(self.time), f"{where}: the time must be UTC in ISO 8601, not {self.time!r}")
        try:
            json.dumps(self.to_json(), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise DataError(f"{where}: half a character (a lone surrogate) cannot be stored; repair the text") from None

    def comparisons(self) -> Iterator[Comparison]:
        """All stated preferences and ties between two candidates."""
        place = {number: place for place, number in enumerate(self.shown)}
        unnamed = tuple(sorted(set(self.shown) - {number for group in self.choice for number in group}))
        for rank, group in enumerate(self.choice):
            ordered = sorted(group, key=place.__getitem__)
            for index, a in enumerate(ordered):
                yield from (self._comparison(a, b, tie=True) for b in ordered[index + 1 :])
                below = [number for lower in self.choice[rank + 1 :] for number in lower]
                yield from (self._comparison(a, b, tie=False) for b in (*below, *unnamed))

    def _comparison(self, a: int, b: int, tie: bool) -> Comparison:
        return Comparison(self.messages, self.candidates[a], self.candidates[b], tie, self.rater)

    def to_json(self) -> dict[str, Any]:
        """Plain data. A tie of all candidates is "tie", an empty choice "skip"."""
        named = {SKIP: "skip", tie_of(len(self.candidates)): "tie"}
        return {
            "key": self.key,
            "messages": messages_to_json(self.messages),
            "candidates": [
                {"text": candidate.text, "model": candidate.model, "seed": candidate.seed}
                for candidate in self.candidates
            ],
            "shown": list(self.shown),
            "choice": named.get(self.choice) or _listed(self.choice),
            "rater": self.rater,
            "time": self.time,
        }


def judgement_from_json(value: Any, where: str) -> Judgement:
    """The inverse of `to_json`.

    Raises:
        DataError: the value is invalid; the message begins with `where`.
    """
    fields = ("key", "messages", "candidates", "shown", "choice", "rater", "time")
    _require(isinstance(value, dict), f"{where}: a judgement is an object with {', '.join(fields)}")
    wrong = sorted(set(fields) ^ set(value))
    _require(not wrong, f"{where}: a judgement has the fields {', '.join(fields)}; missing or unknown: {wrong}")
    for name in ("key", "rater", "time"):
        _require(isinstance(value[name], str), f"{where}: {name} must be a text, not {value[name]!r}")
    candidates = candidates_from_json(value["candidates"], where)
    try:
        return Judgement(
            key=value["key"],
            messages=messages_from_json(value["messages"], where),
            candidates=candidates,
            shown=_numbers(value["shown"], "shown"),
            choice=_choice(value["choice"], len(candidates)),
            rater=value["rater"],
            time=value["time"],
        )
    except DataError as error:
        raise DataError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None


def messages_to_json(messages: Sequence[Message]) -> list[dict[str, str]]:
    """A conversation as plain data."""
    return [{"role": message.role, "content": message.content} for message in messages]


def messages_from_json(value: Any, where: str) -> tuple[Message, ...]:
    """Read a conversation that ends with a user message; a string is one user message.

    Raises:
        DataError: the value is invalid; the message begins with `where`.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    good = isinstance(value, list) and all(
        isinstance(item, dict)
        and sorted(item) == ["content", "role"]
        and item["role"] in ROLES
        and isinstance(item["content"], str)
        for item in value
    )
    _require(good, f"{where}: a conversation is a text, or a list of {{role: {'|'.join(ROLES)}, content: a text}}")
    messages = tuple(Message(item["role"], item["content"]) for item in value)
    check_messages(messages, where)
    _require(messages[-1].role == "user", f"{where}: the last message must be the user's; the replies follow it")
    return messages


def candidates_from_json(value: Any, where: str) -> tuple[Candidate, ...]:
    """Read the replies to a prompt: `[{"text": ..., "model": ..., "seed": ...}, ...]`; the seed is optional.

    Raises:
        DataError: the value is invalid; the message begins with `where`.
    """
    good = isinstance(value, list) and all(
        isinstance(item, dict)
        and {"text", "model"} <= set(item) <= {"text", "model", "seed"}
        and isinstance(item["text"], str)
        and isinstance(item["model"], str)
        and (item.get("seed") is None or _is_seed(item["seed"]))
        for item in value
    )
    _require(good, f"{where}: candidates are a list of {{text, model, and perhaps seed, a whole number below 2**63}}")
    return tuple(Candidate(item["text"], item["model"], item.get("seed")) for item in value)


def check_question(messages: Sequence[Message], candidates: Sequence[Candidate], where: str) -> None:
    """Check that a conversation ends with a user message, and that there are 2 to MAX_CANDIDATES valid candidates.

    Raises:
        DataError: they are invalid; the message begins with `where`.
    """
    check_messages(messages, where)
    _require(messages[-1].role == "user", f"{where}: the last message must be the user's; the replies follow it")
    _require(len(candidates) >= 2, f"{where}: there are {len(candidates)} candidates; a choice needs 2 at least")
    _require(
        len(candidates) <= MAX_CANDIDATES,
        f"{where}: there are {len(candidates):,} candidates; give {MAX_CANDIDATES} at most, or split them",
    )
    _require(
        all(candidate.model and (candidate.seed is None or _is_seed(candidate.seed)) for candidate in candidates),
        f"{where}: a candidate needs a model's name, and a seed is a whole number from 0 to 2**63 - 1",
    )


def now_utc() -> str:
    """The current time for `Judgement.time`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def short_hash(value: Any) -> str:
    """A hash of plain data, in 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _choice(value: Any, n_candidates: int) -> Choice:
    if value == "tie":
        return tie_of(n_candidates)
    if value == "skip":
        return SKIP
    _require(isinstance(value, list), f'a choice is "tie", "skip" or groups of candidates, not {value!r}')
    return tuple(_numbers(group, "a group of a choice") for group in value)


def _numbers(value: Any, what: str) -> tuple[int, ...]:
    good = isinstance(value, list) and all(type(item) is int for item in value)
    _require(good, f"{what} must be a list of whole numbers, not {value!r}")
    return tuple(value)


def _listed(choice: Choice) -> list[list[int]]:
    return [list(group) for group in choice]


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_utc(time: str) -> bool:
    try:
        return datetime.fromisoformat(time).utcoffset() == timedelta(0)
    except ValueError:
        return False


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(message)
