"""Recognise JSON and tables where plain text is expected, and suggest the command that extracts their text."""

import csv
import io
import json
from pathlib import Path

from groundling.data.formats import JSON, PACKED, TABLE, TABLES, Format, inner_suffix, new_file, shell_word

BEFORE = "\ufeff \t\r\n"
"""Characters to skip before the first one."""
MAX_NAME_CHARS = 100
"""Maximum length of a column name."""
AS_IT_STANDS = " (to train on the file unchanged, let its name end in .txt)"


def rows_format(path: Path, head: str) -> Format | None:
    """Recognise a file of rows: JSON or a table, by its name.

    Args:
        path: file name.
        head: first characters of the file.
    """
    suffix = inner_suffix(path)
    if suffix in JSON:
        return Format("JSON, not text", _from_json(path, head))
    if suffix in TABLES:
        return Format("a table, not text", _from_table(path, head, TABLES[suffix]))
    return None


def _from_table(path: Path, head: str, delimiter: str) -> str:
    if path.suffix.lower() in PACKED:
        return f"unpack it first, then {TABLE}"
    # A table with another delimiter than its name says has a single column by that delimiter.
    candidates = [(_columns(head, sign), sign) for sign in (delimiter, ";", "\t", "|", ",")]
    names, sign = max(candidates, key=lambda candidate: len(candidate[0]))
    if not names:
        return f"{TABLE}{AS_IT_STANDS}"
    rows = f"csv.DictReader(open({str(path)!r}, encoding='utf-8-sig', newline=''), delimiter={sign!r})"
    column = f"row[{_likely(names)!r}]"
    return _write_column(
        f"import csv; csv.field_size_limit(10**9); [print({column}) for row in {rows} if {column}]", path
    )


def _columns(head: str, delimiter: str) -> list[str]:
    """Return the column names of a table; empty if the first row holds none."""
    try:
        first = next(csv.reader(io.StringIO(head, newline=""), delimiter=delimiter), [])
    except csv.Error:  # a field of many thousand characters
        return []
    return first if max(map(len, first), default=0) <= MAX_NAME_CHARS else []


def _write_column(script: str, path: Path) -> str:
    out = shell_word(new_file(f"{path.name.partition('.')[0] or 'text'}.txt"))
    return f"write its text to a file and give that: python -X utf8 -c {shell_word(script)} > {out}{AS_IT_STANDS}"


def _from_json(path: Path, head: str) -> str:
    first = _first_value(head)
    row = first if isinstance(first, dict) else {}
    if row.keys() & {"chosen", "rejected"}:
        return "it holds preferences: groundling dpo BUNDLE --preferences FILE learns from them, after groundling sft"
    if row.keys() & {"messages", "conversations", "instruction", "prompt"}:
        return "it holds conversations: groundling sft BUNDLE --data.path FILE learns from them, after pretraining"
    texts = {name: value for name, value in row.items() if isinstance(value, str) and len(name) <= MAX_NAME_CHARS}
    if not texts and not isinstance(first, str):
        return f"write the texts in it to a .txt file, and give that{AS_IT_STANDS}"
    module = {".gz": "gzip", ".zst": "zstandard"}.get(path.suffix.lower(), "io")
    opened = f"{module}.open({str(path)!r}, 'rt', encoding='utf-8-sig')"
    is_array = head.lstrip(BEFORE).startswith("[")
    rows = f"json.load({opened})" if is_array else f"map(json.loads, filter(str.strip, {opened}))"
    column = f"row.get({_likely(texts)!r})" if texts else "row"
    return _write_column(f"import json, {module}; [print({column}) for row in {rows} if {column}]", path)


def _first_value(head: str) -> object:
    """Return the first row of a JSON file from its head; None if it is longer, or not JSON."""
    begin = head.lstrip(BEFORE)
    line, _, others = begin.partition("\n")
    if line.rstrip().endswith("]") and others.lstrip().startswith("["):  # arrays, one a line
        return None
    text = begin[1:].lstrip(BEFORE) if begin.startswith("[") else begin
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    is_whole = begin.startswith("[") or "\n" not in text[:end]
    return value if is_whole else None  # one object over many lines is not a row


def _likely(columns: "list[str] | dict[str, str]") -> str:
    """Guess the column that holds the text, by name or else by length."""
    for name in ("text", "content", "body", "document", "article", "story"):
        if name in columns:
            return name
    if isinstance(columns, dict):
        return max(columns, key=lambda name: len(columns[name]))
    return columns[-1]


def looks_like_rows(head: str) -> str | None:
    """Return the markup or data language a text seems to be written in; None if it looks like prose."""
    begin = head.lstrip(BEFORE)
    lines = [line for line in begin.split("\n")[:-1] if line.strip()][:20] or [begin]
    if begin.startswith("{") and sum(bool(_first_value(line)) for line in lines) > len(lines) / 2:
        return "lines of JSON"
    if begin.startswith("[{") and _first_value(begin):
        return "an array of JSON"
    if begin[:200].lower().startswith(("<!doctype html", "<html")):
        return "HTML"
    return "XML" if begin.startswith("<?xml") else None
