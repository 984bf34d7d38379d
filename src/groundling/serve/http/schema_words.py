"""A value and a JSON schema in words: "null", "an array", "a number from 0 to 2", "a string, an array of strings"."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]
MAX_DIGITS = 25
MAX_QUOTED = 40


def kinds(value: Any) -> frozenset[str]:
    """The JSON types of a value: an integer is a number, too, and 5.0 is an integer."""
    if value is None:
        return frozenset(["null"])
    if isinstance(value, bool):
        return frozenset(["boolean"])
    if isinstance(value, (int, float)):
        return frozenset(["number", "integer"] if isinstance(value, int) or value.is_integer() else ["number"])
    return frozenset(["string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"])


def kind_of(schema: Schema) -> str | None:
    """The JSON type that a schema requires."""
    found: str | None = schema.get("type")
    return found


def came(value: Any) -> str:
    """Describe a value, without the content of strings and arrays: it can be long, and private."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    if isinstance(value, (int, float)):
        text = f"{value}"
        return text if len(text) <= MAX_DIGITS else f"a number of {len(text):,} digits"
    if isinstance(value, str):
        return "a string" if value else "empty"
    return f"an {'' if value else 'empty '}{'array' if isinstance(value, list) else 'object'}"


def quoted(text: str) -> str:
    """The beginning of a string as a JSON literal: one line, no control characters."""
    return json.dumps(text[:MAX_QUOTED], ensure_ascii=False)


def expected(schema: Schema, whole: Schema, *, sizes: bool = False) -> str:
    """Describe what a schema requires.

    Args:
        schema: of the value.
        whole: the document with the definitions.
        sizes: include the limits of strings and arrays.
    """
    schema = _resolved(schema, whole)
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        return listed([expected(option, whole) for option in options])
    if "const" in schema or "enum" in schema:
        return listed([_literal(value) for value in schema.get("enum", [schema.get("const")])], " or ")
    if "description" in schema and schema["type"] == "string":
        return str(schema["description"])
    match schema.get("type"):
        case "string":
            return f"a string{_size(schema, 'Length', 'characters') if sizes else ''}"
        case "integer" | "number":
            return f"{'an integer' if schema['type'] == 'integer' else 'a number'}{_range(schema)}"
        case "boolean":
            return "true or false"
        case "array":
            items = _plural(schema.get("items", {}), whole)
            return f"an array of {_size(schema, 'Items', items)[4:] or items}" if sizes else f"an array of {items}"
        case "object":
            return f"an object {_inside(schema, whole)}"
    return "left out"


def listed(words: Sequence[str], last: str = ", or ") -> str:
    """Join words: "a, b, or c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}{last}{words[-1]}"


def _resolved(schema: Schema, whole: Schema) -> Schema:
    while "$ref" in schema:
        schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _literal(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else came(value)


def _inside(schema: Schema, whole: Schema) -> str:
    if "properties" in schema:
        return f"with {listed(schema.get('required') or list(schema['properties']), ' and ')}"
    return f"of {_plural(schema.get('additionalProperties', {}), whole)}"


def _plural(schema: Schema, whole: Schema) -> str:
    schema = _resolved(schema, whole)
    if "const" in schema or "enum" in schema:
        return expected(schema, whole)
    match schema.get("type"):
        case "string":
            return "strings"
        case "integer":
            return "integers"
        case "number":
            return "numbers"
        case "array":
            return f"arrays of {_plural(schema.get('items', {}), whole)}"
        case "object":
            return f"objects {_inside(schema, whole)}"
    return "values"


def _size(schema: Schema, what: str, unit: str) -> str:
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
    if most is None:
        return f" of {least:,} or more {unit}" if least else ""
    return f" of {least:,} to {most:,} {unit}" if least else f" of at most {most:,} {unit}"


def _range(schema: Schema) -> str:
    is_whole = schema["type"] == "integer"
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if is_whole and below is not None:
        most, below = int(below) - 1, None
    if least is not None and most is not None:
        return f" from {_number(least)} to {_number(most)}"
    low = f"at least {_number(least)}" if least is not None else "" if above is None else f"above {_number(above)}"
    high = f"at most {_number(most)}" if most is not None else "" if below is None else f"below {_number(below)}"
    both = " and ".join(part for part in (low, high) if part)
    return f" {both}" if both else ""


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"
