"""Read rows of JSON: one object a line, or one array of objects; errors name file and position."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from groundling.data import text_files
from groundling.errors import DataError
from groundling.text.tokenizer import require_unicode

BLANKS = re.compile(r"[ \t\r\n]*")


class Row(NamedTuple):
    """An object, and its position: FILE:12 for a line, FILE[3] for an item of an array."""

    where: str
    values: dict[str, Any]


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file with their numbers, from 1; blank lines are skipped.

    Only a newline ends a line, because U+2028 and the like may occur in a JSON string. A carriage return before it is
    dropped.

    Raises:
        DataError: the file cannot be read or is not UTF-8; the message names the byte.
    """
    number = 0
    waiting: list[str] = []  # parts of an incomplete line, joined once
    for piece in _pieces(path):
        first, *others = piece.split("\n")
        waiting.append(first)
        for other in others:
            number += 1
            line, waiting = "".join(waiting), [other]
            if line.strip():
                yield number, line.removesuffix("\r")
    line = "".join(waiting)
    if line.strip():
        yield number + 1, line.removesuffix("\r")


def rows(path: Path, *, may_be_empty: bool = False) -> Iterator[Row]:
    """Yield the rows of a file: one array if it starts with `[`, otherwise one object a line.

    Raises:
        DataError: the file cannot be read, a row is not a JSON object, or there are no rows.
    """
    found = False
    for row in _array(path, "".join(_pieces(path))) if _begins_array(path) else _of_lines(path):
        found = True
        yield row
    if not found and not may_be_empty:
        raise DataError(f"{path} is empty; at least one example is expected, as a JSON object on a line")


def _begins_array(path: Path) -> bool:
    return next((begin for piece in _pieces(path) if (begin := piece.lstrip()[:1])), "") == "["


def _of_lines(path: Path) -> Iterator[Row]:
    for number, line in lines(path):
        where = f"{path}:{number}"
        yield _row(where, _Decoder(where).decode(line))


def text_of(value: Any, where: str, name: str) -> str:
    """Check that a value is text that can be encoded as UTF-8.

    Raises:
        DataError: it is not.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {kind_of(value)}, a text is expected")
    try:
        require_unicode(value)
    except DataError as error:
        raise DataError(f"{where}: {name}: {error}") from error
    if "\0" in value:
        raise DataError(f"{where}: {name} has NUL at position {value.index(chr(0))}, which no text has")
    return value


def kind_of(value: Any) -> str:
    """Describe the type of a JSON value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names: dict[type, str] = {dict: "an object", list: "an array", str: "a text", int: "a number", float: "a number"}
    return names[type(value)]


def _pieces(path: Path) -> Iterator[str]:
    try:
        yield from text_files.TextFiles([path], expected="rows").pieces()
    except DataError as error:
        # Pretraining tolerates U+FFFD in place of an error; an example with an error is better left out.
        raise DataError(str(error).replace(", or use --data.errors replace to put U+FFFD there", "")) from error


def _row(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: this is {kind_of(value)}, an object is expected")
    return Row(where, value)


def _array(path: Path, text: str) -> Iterator[Row]:
    """Yield the items one by one, so that errors name the item."""
    place, index = _after_blanks(text, text.index("[") + 1), 0
    if text[place : place + 1] == "]":
        raise DataError(f"{path} is an empty array; at least one example is expected")
    while True:
        where = f"{path}[{index}]"
        value, place = _Decoder(where).raw_decode(text, place)
        yield _row(where, value)
        place, index = _after_blanks(text, place), index + 1
        sign = text[place : place + 1]
        place = _after_blanks(text, place + 1)
        if sign == "]" and place == len(text):
            return
        if sign != ",":
            came = "something after the array" if sign == "]" else repr(sign) if sign else "the end of the file"
            raise DataError(f"{where}: after it comes {came}, where a comma or the only ] is expected")


def _after_blanks(text: str, place: int) -> int:
    found = BLANKS.match(text, place)
    assert found is not None
    return found.end()


class _Decoder(json.JSONDecoder):
    """Parse strict JSON: no NaN, no duplicate keys; errors start with the position."""

    def __init__(self, where: str) -> None:
        super().__init__(object_pairs_hook=self._object, parse_constant=self._constant)
        self._where = where

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        try:
            return super().raw_decode(s, idx)
        except DataError:
            raise
        except json.JSONDecodeError as error:
            line = f" on line {error.lineno}" if error.lineno > 1 else ""
            expected = "one whole object on each line, or one array of objects, is expected"
            raise DataError(f"{self._where}: not JSON ({error.msg}, column {error.colno}{line}); {expected}") from None
        except RecursionError:
            raise DataError(f"{self._where}: it is nested too deeply; messages with texts are expected") from None
        except ValueError as error:  # an integer with more digits than Python reads
            raise DataError(f"{self._where}: {str(error).partition(';')[0]}") from None

    def decode(self, s: str, *_: Any) -> Any:
        value, end = self.raw_decode(s, _after_blanks(s, 0))
        if _after_blanks(s, end) != len(s):
            raise DataError(f"{self._where}: something follows the object (column {end + 1}); one a line is expected")
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            seen: dict[str, int] = Counter(key for key, _ in pairs)
            twice = next(key for key, _ in pairs if seen[key] > 1)
            raise DataError(f"{self._where}: the key {twice!a} occurs twice; once is expected")
        return values

    def _constant(self, name: str) -> Any:
        raise DataError(f"{self._where}: {name} is not JSON; a number or a text is expected")
