"""Parse command-line flags into a config with tyro."""

import contextlib
import inspect
import io
import re
import shutil
import textwrap
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from groundling.errors import ConfigError

C = TypeVar("C")
ABSENT = "None"
"""Stands for None in presets, because TOML has no null, and on the command line."""
EMPTY_PATH = 'it is empty; give a path ("." is this folder)'


def parse_flags(config_class: type[C], flags: list[str], prog: str, description: str, default: C | None = None) -> C:
    """Parse flags with tyro.

    Raises:
        ConfigError: tyro rejects them; its boxed message becomes one line.
        SystemExit: after `--help`, with 0.
    """
    import tyro

    stderr = io.StringIO()
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(stderr):
            config: C = tyro.cli(
                config_class,
                prog=prog,
                description=description,
                args=_with_values(config_class, flags),
                config=(tyro.conf.HelptextFromCommentsOff,),
                registry=_with_real_paths(),
                **defaults,
            )
            return config
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(f"{_one_line(stderr.getvalue())}; see {prog} --help") from None


def _with_real_paths() -> Any:
    """A tyro registry that rejects empty paths, which Python reads as the current folder."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    def make(words: list[str]) -> Path:
        if not words[0]:
            raise ValueError(EMPTY_PATH)
        return Path(words[0])

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
        if info.type is not Path:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=make,
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda path: [str(path)],
        )

    return registry


def _with_values(config_class: type, words: list[str]) -> list[str]:
    """Add the value to bare flags of fields that are a boolean or a word: `--resume` becomes `--resume True`.

    tyro itself supports bare flags of plain booleans only.
    """
    hints = typing.get_type_hints(config_class)
    either = (typing.Union, types.UnionType)
    kinds = {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) in either}
    flags = {f"--{name.replace('_', '-')}" for name, possible in kinds.items() if bool in possible}
    written: list[str] = []
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        flag = word.replace("_", "-")
        if flag in flags:
            written += [word, "True"] if following.startswith("-") else [word]
        elif flag.startswith("--no-") and f"--{flag[5:]}" in flags:
            written += [f"--{flag[5:]}", "False"]
        else:
            written.append(word)
    return written


def _one_line(boxed: str) -> str:
    """Extract the first part of tyro's boxed message (Unicode or ASCII), and the flag it suggests."""
    body = "\n".join(line.strip("\u2502 ") for line in boxed.strip().splitlines()[1:])  # the first is the title
    parts = (" ".join(part.split()) for part in re.split("[\u2500-]{4,}", body))
    message, *more = [part for part in parts if part] or [" ".join(boxed.split())]
    near = re.findall(r"--[\w.-]+", next((part for part in more if part.startswith("Perhaps you meant")), ""))
    if missing := re.match(r"Missing value for argument '(--[\w.-]+)'", message):
        return f"{message.rstrip('.')}; a value that begins with a hyphen is written {missing[1]}=VALUE"
    return f"{message.rstrip('.')}; did you mean {near[0]}?" if near else message.rstrip(".")


def any_text() -> Any:
    """For a field `Annotated[str | None, any_text()]`: take each argument as text, even "" and "None".

    The field is None only if the flag is absent.
    """
    from tyro.constructors import PrimitiveConstructorSpec

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: [ABSENT if value is None else value],
    )


def wrapped(description: str) -> str:
    """Wrap all but the first paragraph to the terminal, indented: tyro joins lines that begin with a letter."""
    width = min(shutil.get_terminal_size().columns, 100) - 1
    first, *others = inspect.cleandoc(description).split("\n\n")
    return "\n\n".join([first, *(textwrap.indent(textwrap.fill(" ".join(o.split()), width - 2), "  ") for o in others)])
