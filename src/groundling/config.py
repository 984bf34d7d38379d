"""Configs from class defaults, a TOML preset and `--flags`, in increasing priority.

Only the command line goes through the argument parser. Values from files (presets, bundles, checkpoints) are converted
field by field. Configs are frozen dataclasses that validate themselves in `__post_init__`.
"""

import dataclasses
import difflib
import math
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from groundling.errors import ConfigError
from groundling.flags import ABSENT, EMPTY_PATH, parse_flags, wrapped
from groundling.storage import files

C = TypeVar("C")
MAX_TOML = 1 << 20
"""Largest preset in bytes."""


def parse(
    config_class: type[C],
    argv: Sequence[str],
    prog: str,
    description: str = "",
    default_preset: str | None = None,
    base: C | None = None,
) -> C:
    """Read a config from a command line: `[preset.toml] [--field value ...]`. The help shows the preset's values.

    Args:
        config_class: a frozen dataclass whose field docstrings are its help.
        argv: arguments after the verb.
        prog: name of the command, for the help.
        description: first line of the help; empty: the class's docstring.
        default_preset: preset to use if the command line has none; None: the defaults.
        base: defaults in place of the class's own.

    Raises:
        ConfigError: the preset cannot be read, a flag is unknown, or a value has the wrong type or is invalid.
        SystemExit: after `--help`, with 0.
    """
    words = list(argv)
    names_preset = bool(words) and words[0].endswith(".toml") and not words[0].startswith("-")
    preset = words.pop(0) if names_preset else default_preset
    description = wrapped(description or config_class.__doc__ or "")
    default = base
    if preset is not None:
        values = load_preset(preset)
        try:
            default = from_dict(config_class, values, base)
        except ConfigError as error:
            raise ConfigError(f"preset {preset}: {error}") from error
    config = parse_flags(config_class, words, prog, description, default)
    _require_numbers(config)
    return config


def load_preset(name: str) -> dict[str, Any]:
    """Read a TOML preset from a path, or by file name from the presets of the package.

    Raises:
        ConfigError: there is no such file, or it is not valid TOML.
    """
    path = Path(name)
    if not files.is_regular(path, links=True):
        known = shipped_presets()
        if path.name != name.removeprefix("configs/") or path.name not in known:
            raise ConfigError(f"no preset {name!r}; give the path of a TOML file, or one of: {', '.join(known)}")
        path = known[path.name]
    return read_toml(path, links=True)


def read_toml(path: Path, *, links: bool = False) -> dict[str, Any]:
    """Read a TOML preset from its file. For `links`, see `files.open_regular`.

    Raises:
        ConfigError: it cannot be read, or is not valid TOML.
    """
    try:
        return tomllib.loads(files.read_text(path, MAX_TOML, links=links))
    except OSError as error:
        raise ConfigError(f"the preset {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the preset {path} is not valid TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"the preset {path} is not valid TOML: it is nested too deep") from None


def shipped_presets() -> dict[str, Path]:
    """Presets of the package: file name -> path."""
    here = Path(__file__).resolve().parent
    folders = (here / "presets", here.parent.parent / "configs")  # when installed, and in a checkout
    return {path.name: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a config to plain nested data for TOML and JSON: None becomes "None", a path its text."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def to_toml(config: Any) -> str:
    """Convert a config to a TOML preset that `parse` reads back to an equal config."""
    import tomli_w

    return tomli_w.dumps(to_dict(config))


def from_dict(config_class: type[C], values: Mapping[str, Any], base: C | None = None) -> C:
    """Build a config from plain data; the inverse of `to_dict`.

    Args:
        config_class: a frozen dataclass.
        values: its fields; nested configs are mappings. "None" means None in optional fields.
        base: values of absent fields; None: their defaults.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is invalid.
    """
    config = _build(config_class, values, base, "")
    _require_numbers(config)
    return config


def _require_numbers(config: Any, prefix: str = "") -> None:
    """Reject NaN, which passes range checks, infinity, and integers beyond 64 bits, which overflow tensors.

    Raises:
        ConfigError: a field has such a value.
    """
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            _require_numbers(value, f"{name}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{name} is {number}; give a finite number")
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise ConfigError(f"{name} is {_shown(number)}; give a number of at most 63 bits")


def _build(config_class: type[C], values: Any, base: C | None, prefix: str) -> C:
    """Build a config; `prefix` precedes the names of its fields in errors."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or config_class.__name__} is {_shown(values)}; expected a table")
    hints = typing.get_type_hints(config_class)
    fields = [field.name for field in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            near = difflib.get_close_matches(name[:100], fields, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"choose from: {', '.join(fields)}"
            raise ConfigError(f"there is no setting {_shown(prefix + str(key))}; {hint}")
        below = getattr(base, name, None)
        if dataclasses.is_dataclass(hints[name]):
            given[name] = _build(hints[name], value, below, f"{prefix}{name}.")
        else:
            given[name] = _convert(value, hints[name], prefix + name)
    missing = [
        field.name
        for field in dataclasses.fields(config_class)  # type: ignore[arg-type]
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in given and base is None
    ]
    if missing:
        raise ConfigError(f"{prefix}{missing[0]} is missing")
    return config_class(**given) if base is None else dataclasses.replace(base, **given)  # type: ignore[type-var]


def _convert(value: Any, hint: Any, name: str) -> Any:
    """Convert a value to a field's type, strictly: only an int for a float is accepted."""
    import msgspec

    if value == ABSENT and types.NoneType in typing.get_args(hint):
        return None
    try:
        return msgspec.convert(value, hint, dec_hook=_path)
    except (msgspec.ValidationError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{name} is {_shown(value)}: {' '.join(str(error).split())}") from None


def _path(_: type, value: Any) -> Path:
    """Convert to a path, the only type of our configs that TOML and JSON lack."""
    if value == "":
        raise ValueError(EMPTY_PATH)
    return Path(value)


def _shown(value: Any) -> str:
    """Format a value for a message: on one line, shortened."""
    text = ascii(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def with_new_defaults(config_class: type[C], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add fields that are newer than the stored `values` of a config, at their defaults.

    The default of a new field is the behaviour before it existed. Values that are invalid now are returned unchanged.
    """
    try:
        return to_dict(from_dict(config_class, values))
    except ConfigError:
        return values


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Fields in which two configs (or their `to_dict`s) differ, as `name: old -> new`."""
    old, new = (value if isinstance(value, dict) else to_dict(value) for value in (old, new))
    lines: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key, ABSENT), new.get(key, ABSENT)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def run_subcommand(
    argv: Sequence[str], commands: Mapping[str, tuple[Callable[[list[str]], int], str]], prog: str
) -> int:
    """Run a subcommand of a verb, given `name -> (function, help line)`; return its exit code."""
    name, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    if name in commands:
        return commands[name][0](rest)
    listing = "\n".join(f"  {command:<10} {line}" for command, (_, line) in commands.items())
    if name in ("-h", "--help"):
        print(f"usage: {prog} COMMAND [OPTIONS]\n\n{listing}\n\nRun `{prog} COMMAND --help` for its options.")
        return 0
    print(f"groundling: error: {prog} has no command {name!r}; it has: {', '.join(commands)}", file=sys.stderr)
    return 2
