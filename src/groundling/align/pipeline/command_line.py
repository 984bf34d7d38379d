"""Render a config as the command line that `groundling.config.parse` reads back to an equal config."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import tyro

from groundling.config import to_dict

POSITIONAL = typing.get_args(tyro.conf.Positional[str])[1]


def to_argv(config: Any) -> list[str]:
    """Positional fields, then a flag for each field that differs from its default."""
    names = _positional(type(config))
    changed = changed_fields(config)
    words = [str(getattr(config, name)) for name in names]
    return [*words, *flags({name: value for name, value in changed.items() if name not in names})]


def flags(changed: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Flags for the result of `changed_fields`; `prefix` names the config that holds these fields."""
    return [word for name, value in changed.items() for word in _flag(prefix, name.replace("_", "-"), value)]


def changed_fields(config: Any, default: Any = None) -> dict[str, Any]:
    """Fields that differ from the defaults, as plain data: what `groundling.config.from_dict` puts over a base.

    Args:
        config: a frozen dataclass.
        default: compare with this config; None: the defaults of the class.
    """
    plain, changed = to_dict(config), dict[str, Any]()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        before = _default(field) if default is None else getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            if inner := changed_fields(value, before if isinstance(before, type(value)) else None):
                changed[field.name] = inner
        elif value != before:
            changed[field.name] = plain[field.name]
    return changed


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _positional(config_class: type) -> list[str]:
    hints = typing.get_type_hints(config_class, include_extras=True)
    return [name for name, hint in hints.items() if POSITIONAL in getattr(hint, "__metadata__", ())]


def _flag(prefix: str, name: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from flags(value, f"{prefix}{name}.")
    elif isinstance(value, bool):
        yield f"--{prefix}{name}" if value else f"--{prefix}no-{name}"
    elif isinstance(value, list):
        yield from (f"--{prefix}{name}", *map(str, value))
    elif str(value).startswith("-"):
        yield f"--{prefix}{name}={value}"  # a separate word would be read as a flag
    else:
        yield from (f"--{prefix}{name}", str(value))
