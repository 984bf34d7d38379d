"""What others rely on, as readable text: how the files in tests/snapshots are made.

Nothing here depends on the machine: values are left out of file formats (names and JSON types stay), and decoded ids
are of models whose choices do not hang on rounding (`decoded` proves that of each).
"""

import contextlib
import dataclasses
import inspect
import io
import json
import re
import sqlite3
import struct
import tomllib
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import groundling
from groundling import cli, errors
from groundling.config import shipped_presets
from groundling.errors import GroundlingError

SUB_COMMANDS = {
    "ladder": ("show",),
    "rankings": ("simulate", "export", "import", "stats"),
    "safety": ("train", "test"),
    "export": ("hf", "gguf", "bundle"),
    "import": ("hf", "nanogpt"),
    "data": ("list", "get", "dialogues", "inspect"),
    "tokenizer": ("train", "show", "compare"),
}
COMMANDS = [words for verb in cli.VERBS for words in ((verb,), *((verb, sub) for sub in SUB_COMMANDS.get(verb, ())))]
SIMULATED_DATA = 40
"""Keys of an object that is no record but a table: of a vocabulary, for example."""


def called(words: Iterable[str]) -> tuple[int, str]:
    """Run a command in this process; return its exit code and what it printed to stdout."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = cli.main(list(words))
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    return code, out.getvalue()


# The command line


@dataclasses.dataclass(frozen=True)
class Option:
    """One entry of a `--help`: an option, a positional argument, or (without a name) a line between them."""

    name: str
    text: str


OPTION = re.compile(r" {1,3}(-\S.*?|(?:\{None\}\|)?(?:[A-Z]{2,}|\[|\{).*?)(?: {2,}(.*))?$")


def read_help(words: tuple[str, ...]) -> tuple[list[str], list[Option]]:
    """The help of a command, without frames and line breaks, which belong to the terminal and to tyro.

    Returns:
        The lines before the options, and the options.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")  # wide enough for one column, too narrow for tyro's two
        code, out = called((*words, "--help"))
    assert code == 0, words
    head: list[str] = []
    options: list[Option] = []
    for framed in out.splitlines():
        line = re.sub("^[│╭╰]|[│╮╯]$|─+|-{4,}", " ", framed).rstrip()
        if not options and line.strip() not in ("options", "positional arguments"):
            head.append(line)
        elif begins := OPTION.match(line):
            options.append(Option(begins[1], begins[2] or ""))
        elif line.startswith("     "):
            options[-1] = Option(options[-1].name, f"{options[-1].text} {line.strip()}".strip())
        elif line:
            options.append(Option("", line.strip()))
    return head, options


def help_texts() -> str:
    """All words of all helps."""
    parts = []
    for words in [(), *COMMANDS]:
        head, options = read_help(words)
        entries = [f"{each.name}\n    {each.text}" if each.name else f"\n{each.text}" for each in options]
        parts.append("\n".join([f"$ groundling {' '.join((*words, '--help'))}", *head, *entries]).rstrip())
    return "\n\n\n".join(re.sub(r"\n{3,}", "\n\n", part) for part in parts)


def flags() -> str:
    """Each option of each command with its type and default, and none of the words that explain it."""
    lines = []
    for words in COMMANDS:
        for option in read_help(words)[1]:
            default = re.search(r"\((default: .*|required)\)$", option.text)
            if option.name:
                lines.append(f"{' '.join(words)}  {option.name}  {default[1] if default else ''}".rstrip())
    return "\n".join(lines)


FAILING = """
pretian | xyz | pretrain --stepss 3 | pretrain none.toml | pretrain --steps 0 | pretrain --sinks mlflow
pretrain --resume --overwrite | pretrain --out-dir= | sample | sample nowhere | sample nowhere --temperature -1
chat nowhere | sft nowhere --out-dir x | dpo nowhere --out-dir x | plot nowhere | verify-checkpoint nowhere
data get tiny_shakespear | data fetch | data inspect nowhere | ladder --rungs s0 | ladder show s0 | ladder show
tokenizer show nowhere | tokenizer fetch | export hf nowhere x | import hf nowhere x | rankings stats nowhere
rankings fetch | rank nowhere | safety fetch | serve | serve nowhere --port 0 | --help | --version | data --help
"""


def exit_codes() -> str:
    """Of commands, and of each kind of error."""
    commands = [command.split() for command in re.split(r"[|\n]", FAILING) if command.strip()]
    lines = [f"{called(words)[0]}  groundling {' '.join(words)}" for words in commands]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, GroundlingError)]
    for kind in [*kinds, KeyboardInterrupt]:
        error = kind(*["x"] * (3 if kind is errors.MissingExtraError else 1))
        lines.append(f"{_exit_code_of(error)}  {kind.__name__}")
    return "\n".join([*lines, f"{cli.INTERRUPTED}  SIGINT", f"{cli.TERMINATED}  SIGTERM"])


def _exit_code_of(error: BaseException) -> int:
    def fail(_: list[str]) -> int:
        raise error

    module = types.ModuleType("a_verb_that_fails")
    module.main = fail  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, module.__name__, module)
        patch.setitem(cli.VERBS, "fail", cli.Verb(module.__name__, ""))
        return called(["fail"])[0]


# What Python imports


def public_api() -> str:
    """The public names with their signatures and fields, the errors, presets and environment variables."""
    lines = []
    for name in sorted(groundling.__all__):
        value = getattr(groundling, name)
        lines.append(f"groundling.{name}{_signature(value)}")
        members = sorted(key for key in vars(value) if not key.startswith("_")) if isinstance(value, type) else []
        fields = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
        for member in sorted({*members, *fields}):
            found = inspect.getattr_static(value, member, None)
            lines.append(f"groundling.{name}.{member}{_signature(found) if inspect.isfunction(found) else ''}")
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, GroundlingError):
            lines.append(f"groundling.errors.{name}({', '.join(base.__name__ for base in kind.__bases__)})")
    lines += [f"preset {name}" for name in sorted(shipped_presets())]
    source = Path(groundling.__file__).parent
    found = {
        name for path in source.rglob("*.py") for name in re.findall("GROUNDLING_[A-Z_]+", path.read_text("utf-8"))
    }
    return "\n".join([*lines, *(f"environment {name}" for name in sorted(found))])


def _signature(value: Callable[..., Any]) -> str:
    """Parameters and annotations; of annotations only the last name, for modules move."""
    return re.sub(r"(?:\w+\.)+(?=\w)", "", str(inspect.signature(value)))


# Files


def shape(value: Any, name: str = "") -> Iterator[str]:
    """A line for each value in a JSON value: where it is, and its type; a format's number itself."""
    if isinstance(value, dict):
        if len(value) > SIMULATED_DATA:
            yield from sorted({line for item in value.values() for line in shape(item, f"{name}.*")})
        for key in sorted(value) if len(value) <= SIMULATED_DATA else ():
            yield from shape(value[key], f"{name}.{key}" if name else key)
        if not value:
            yield f"{name}: object"
    elif isinstance(value, list):
        yield from sorted({line for item in value for line in shape(item, f"{name}[]")}) or [f"{name}: array"]
    elif name.rsplit(".", 1)[-1] in ("format", "version") and isinstance(value, int):
        yield f"{name}: {value}"
    else:
        kinds = {bool: "boolean", int: "number", float: "number", str: "string", type(None): "null"}
        yield f"{name}: {kinds[type(value)]}"


def shapes(values: Iterable[Any]) -> list[str]:
    """The lines of all of several values; "null" only where nothing else stands: how a stream is cut is chance."""
    lines = {line for value in values for line in shape(value)}
    others = {line.rpartition(": ")[0] for line in lines if not line.endswith(": null")}
    return sorted(line for line in lines if not line.endswith(": null") or line.rpartition(": ")[0] not in others)


def safetensors(path: Path) -> list[str]:
    """The names, types and shapes of a file's tensors, and what its header says besides."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    about = header.pop("__metadata__", {})
    return [
        *(f"__metadata__.{key}" for key in sorted(about)),
        *(f"{name}: {facts['dtype']} {facts['shape']}" for name, facts in sorted(header.items())),
    ]


def lines_of(path: Path) -> list[str]:
    """What there is in one file, if it is of a kind that can be told."""
    if path.suffix == ".safetensors":
        return safetensors(path)
    if path.suffix == ".toml":
        return list(shape(tomllib.loads(path.read_text("utf-8"))))
    if path.suffix == ".jsonl":
        return shapes(map(json.loads, path.read_text("utf-8").splitlines()))
    return list(shape(json.loads(path.read_text("utf-8")))) if path.suffix == ".json" else []


def folders(paths: Iterable[Path]) -> str:
    """Each file in some folders, and what is in it; what another file has alike is said once."""
    parts: list[str] = []
    first: dict[tuple[str, ...], str] = {}
    for path in paths:
        for file in sorted(each for each in path.rglob("*") if each.is_file()):
            name, lines = f"{path.name}/{file.relative_to(path).as_posix()}", tuple(lines_of(file))
            as_in = first.setdefault(lines, name)
            told = lines if as_in == name or len(lines) < 3 else (f"as {as_in}",)
            parts.append("\n".join([name, *(f"    {line}" for line in told)]))
    return "\n".join(parts)


def sqlite_schema(path: Path) -> str:
    """The statements that made an SQLite file, and its numbers."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        names = ("application_id", "user_version")
        lines = [f"{name}: {db.execute(f'PRAGMA {name}').fetchone()[0]}" for name in names]
        for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"):
            lines.append(re.sub(r"\s*\n\s*", "\n    ", sql))
    return "\n".join(lines)


def hex_dump(data: bytes) -> str:
    """Sixteen bytes a line."""
    return "\n".join(f"{at:04x}  {data[at : at + 16].hex(' ')}" for at in range(0, len(data), 16))


# The server


def without_words(value: Any) -> Any:
    """A JSON schema without titles, summaries and descriptions; properties of these names stay."""
    if isinstance(value, list):
        return [without_words(item) for item in value]
    if not isinstance(value, dict):
        return value
    words = ("title", "summary", "description")
    return {key: without_words(item) for key, item in value.items() if not (key in words and isinstance(item, str))}


def compact(value: Any, indent: str = "") -> str:
    """JSON with sorted keys in which whatever fits a line is on one."""
    line = json.dumps(value, sort_keys=True)
    if len(indent) + len(line) <= 110 or not value or not isinstance(value, (dict, list)):
        return line
    deeper = f"{indent}  "
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"{deeper}{compact(item, deeper)}" for item in value) + f"\n{indent}]"
    items = [f"{deeper}{json.dumps(key)}: {compact(value[key], deeper)}" for key in sorted(value)]
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"
