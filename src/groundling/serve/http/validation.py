"""One-sentence errors for invalid requests: where, what came, what was expected.

pydantic decides whether a body is valid; this module finds the words. For a union pydantic reports an error per member.
So the body is compared with the JSON schema of its model, and of a union only the member of the value's own type.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from groundling.serve.http.errors import ApiError
from groundling.serve.http.schema_words import came, expected, kind_of, kinds, quoted

Place = tuple[str | int, ...]
Schema = Mapping[str, Any]
PLURAL = ("annotations", "functions", "tool_calls", "tools")
"""Fields with a plural verb in messages."""
MAX_SHOWN = 200
"""Longest field path in a message: it can contain a client's own names."""


class Fault(NamedTuple):
    """An error at one place of a body."""

    place: Place
    said: str
    """The sentence after the place."""
    code: str = "invalid_value"


def explain(error: RequestValidationError, endpoint: Callable[..., Any] | None) -> ApiError:
    """The first fault of a request.

    Args:
        error: of pydantic.
        endpoint: the route's function; its parameter names the model of the body.
    """
    first = error.errors()[0]
    where, *place = first["loc"]
    if first["type"] == "json_invalid":
        said = first["ctx"]["error"].removesuffix(" at")
        return ApiError(400, f"the body is not JSON: {said}, at character {place[0]}", "invalid_json")
    model = _model_of(endpoint)
    if where != "body" or model is None:
        return _of_a_parameter(first)
    if not place and first["type"] == "missing":
        text = f"the body is empty; it must be {expected(_schema(model), _schema(model))}"
        return ApiError(400, text, "invalid_value")
    fault = find_fault(error.body, model)
    if fault is None:  # a validator over several fields
        said = first["msg"].removeprefix("Value error, ")
        name = said.split(" ", 1)[0]
        return ApiError(400, said, "invalid_value", name if name in model.model_fields else None)
    named = ".".join(map(str, fault.place))[:MAX_SHOWN] if fault.place else None
    shown = "the body" if named is None else json.dumps(named, ensure_ascii=False)[1:-1] or '""'
    return ApiError(400, f"{shown} {fault.said}", fault.code, named)


def unreadable(cause: BaseException) -> str:
    """Describe why Python's JSON parser refused well-formed JSON."""
    if isinstance(cause, RecursionError):
        return "the body cannot be read: its arrays or objects are nested too deeply"
    if isinstance(cause, ValueError):
        return "the body cannot be read: it has a number of too many digits"
    return "the body cannot be read"


def _of_a_parameter(error: Mapping[str, Any]) -> ApiError:
    """Describe an invalid query parameter."""
    name = str(error["loc"][-1])[:MAX_SHOWN]
    if error["type"] == "missing":
        return ApiError(400, f"{name} is missing; give it in the address: ?{name}=...", "invalid_value", name)
    said = re.sub(r"^\w+ should ", "", error["msg"])
    if error["type"].startswith("int_parsing"):
        said = "be an integer"
    value = error["input"]
    shown = quoted(value) if isinstance(value, str) and value else came(value)
    return ApiError(400, f"{name} is {shown}; it must {said}", "invalid_value", name)


def _model_of(endpoint: Callable[..., Any] | None) -> type[BaseModel] | None:
    if endpoint is None:
        return None
    found = (each.annotation for each in inspect.signature(endpoint).parameters.values())
    return next((each for each in found if isinstance(each, type) and issubclass(each, BaseModel)), None)


@cache
def _schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def find_fault(value: Any, model: type[BaseModel]) -> Fault | None:
    """The first fault in a body; None: each field alone is valid."""
    schema = _schema(model)
    return _Search(schema).look(value, schema, ())


class _Search:
    """Searches a value for faults; `whole` is the document with the definitions."""

    def __init__(self, whole: Schema) -> None:
        self._whole = whole

    def look(self, value: Any, schema: Schema, place: Place) -> Fault | None:
        schema = self._resolved(schema)
        options = [self._resolved(option) for option in schema.get("anyOf", [])]
        if options:
            return self._of_one_of(value, schema, options, place)
        if "const" in schema or "enum" in schema:
            allowed = schema.get("enum", [schema.get("const")])
            same = any(value == one and type(value) is type(one) for one in allowed)
            return None if same else self._other(value, schema, place, shown=isinstance(value, str))
        if "type" not in schema:
            return None
        if schema["type"] not in kinds(value):
            return self._other(value, schema, place)
        match schema["type"]:
            case "object":
                return self._of_object(value, schema, place)
            case "array":
                return self._of_list(value, schema, place)
            case "string":
                return self._of_text(value, schema, place)
            case "integer" | "number":
                return self._of_number(value, schema, place)
        return None

    def _resolved(self, schema: Schema) -> Schema:
        while "$ref" in schema:
            schema = self._whole["$defs"][schema["$ref"].rpartition("/")[2]]
        return schema

    def _other(self, value: Any, schema: Schema, place: Place, *, shown: bool = False) -> Fault:
        what = quoted(value) if shown and value else came(value)
        return Fault(place, f"is {what}; it must be {expected(schema, self._whole)}")

    def _of_one_of(self, value: Any, schema: Schema, options: Sequence[Schema], place: Place) -> Fault | None:
        faults = [self.look(value, option, place) for option in options]
        if None in faults:
            return None
        alike = [number for number, option in enumerate(options) if kind_of(option) in kinds(value)]
        if not alike or value == []:
            return self._other(value, schema, place)
        if len(alike) > 1:  # lists: decided by the first element
            items = [self._resolved(options[number]["items"]) for number in alike]
            of_first = [n for n, item in zip(alike, items, strict=True) if kind_of(item) in kinds(value[0])]
            if not of_first:
                return self._other(value[0], {"anyOf": items}, (*place, 0))
            alike = of_first
        return faults[alike[0]]

    def _of_object(self, value: dict[str, Any], schema: Schema, place: Place) -> Fault | None:
        fields: Mapping[str, Schema] = schema.get("properties", {})
        required = schema.get("required", [])
        others = schema.get("additionalProperties")
        if len(value) > schema.get("maxProperties", math.inf):
            return Fault(place, f"has {len(value):,} entries; {schema['maxProperties']:,} are the most")
        for name in required:  # a wrong discriminator says most
            if name in value and {"const", "enum"} & self._resolved(fields[name]).keys():
                fault = self.look(value[name], fields[name], (*place, name))
                if fault is not None:
                    return fault
        for name, inner in value.items():
            unknown = name not in fields and others is False
            if unknown or (name in fields and inner not in (None, []) and self._never(fields[name])):
                is_are, it = ("are", "them") if name in PLURAL else ("is", "it")
                return Fault((*place, name), f"{is_are} not supported here; leave {it} out", "unsupported_field")
        for name in required:
            if name not in value:
                said = f"is missing; it must be {expected(fields[name], self._whole)}"
                return Fault((*place, name), said)
        for name in [*fields, *value]:
            inner_schema = fields.get(name, others)
            if name in value and isinstance(inner_schema, Mapping):
                fault = self.look(value[name], inner_schema, (*place, name))
                if fault is not None:
                    return fault
        return None

    def _never(self, schema: Schema) -> bool:
        """Whether only null and [] are supported."""
        schema = self._resolved(schema)
        options = schema.get("anyOf", [schema])
        return all(option.get("type") == "null" or option.get("maxItems") == 0 for option in options)

    def _of_list(self, value: list[Any], schema: Schema, place: Place) -> Fault | None:
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
            what = f"an array of {len(value):,}" if value else came(value)
            return Fault(place, f"is {what}; it must be {expected(schema, self._whole, sizes=True)}")
        faults = (self.look(inner, schema.get("items", {}), (*place, n)) for n, inner in enumerate(value))
        return next((fault for fault in faults if fault is not None), None)

    def _of_text(self, value: str, schema: Schema, place: Place) -> Fault | None:
        half = re.search("[\ud800-\udfff]", value)
        if half:
            said = f"has a lone surrogate (\\u{ord(half[0]):04x}) at character {half.start()}; send whole characters"
            return Fault(place, said)
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
            what = f"a string of {len(value):,} characters" if value else came(value)
            return Fault(place, f"is {what}; it must be {expected(schema, self._whole, sizes=True)}")
        if re.search(schema.get("pattern", ""), value) is None:
            return self._other(value, schema, place, shown=True)
        return None

    def _of_number(self, value: Any, schema: Schema, place: Place) -> Fault | None:
        holds = (
            (isinstance(value, int) or math.isfinite(value))  # isfinite fails for huge integers
            and schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and ("exclusiveMinimum" not in schema or schema["exclusiveMinimum"] < value)
            and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        )
        return None if holds else self._other(value, schema, place)
