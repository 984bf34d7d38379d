"""Commands and flags that help and documentation name are there: each is read by the real parser, and nothing runs."""

import ast
import contextlib
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from advicekit import SOURCES, parsed, texts_of

from groundling.cli import VERBS, main
from groundling.config import to_toml
from groundling.errors import GroundlingError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
PAGES += sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "log.md" and "_build" not in path.parts)
COMMANDS = {
    "ladder": ["show"],
    "rankings": ["simulate", "export", "import", "stats"],
    "safety": ["train", "test"],
    "export": ["hf", "gguf", "bundle"],
    "import": ["hf", "nanogpt"],
    "data": ["list", "get", "dialogues", "inspect"],
    "tokenizer": ["train", "show", "compare"],
}
"""What a verb has commands for; the law below reads them off its own help."""
STAGES = ("sft", "reward", "dpo", "ppo", "grpo")
FLAG = re.compile(r"(?<![\w`.<-])--[a-z][a-z0-9]*(?:[-_.][a-z0-9]+)*")


def help_of(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")  # one column
        with contextlib.suppress(SystemExit):  # after --help
            main([*words, "--help"])
    assert "usage:" in out.getvalue()
    return out.getvalue()


@cache
def flags_of(*words: str) -> frozenset[str]:
    """The flags that a command takes, by its own parser."""
    lines = [line for line in help_of(*words).splitlines() if re.match(r"[│|]? {0,3}(?:-h, )?--[a-z]", line)]
    defined = [flag for line in lines for flag in re.findall(r"(?:^[│| ]*|, )(--[a-z][\w.-]*)", line)]
    return frozenset(flag.replace("_", "-") for flag in [*defined, "--help"])


def all_commands() -> list[tuple[str, ...]]:
    return [(verb, *([name] if name else [])) for verb in VERBS for name in COMMANDS.get(verb, [""])]


def every_flag() -> frozenset[str]:
    return frozenset().union(*(flags_of(*words) for words in all_commands() if words != ("ladder", "show")),
                             flags_of("ladder"))  # fmt: skip


def is_a_flag_of(flag: str, known: frozenset[str]) -> bool:
    flag = flag.replace("_", "-")
    # `--data.*`, `--runtime`: a group of settings, named by its beginning.
    return flag in known or any(one.startswith(f"{flag}.") for one in known)


def test_the_commands_of_each_verb_are_those_that_its_help_lists():
    for verb, names in COMMANDS.items():
        if verb == "ladder":  # trains by default
            assert "groundling ladder show" in help_of("ladder")
            continue
        listed = re.findall(r"^  ([a-z]+)  ", help_of(verb), re.MULTILINE)
        assert sorted(listed) == sorted(names)
    others = VERBS.keys() - COMMANDS.keys()
    assert all("COMMAND" not in help_of(verb) for verb in others)


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_flags_that_a_help_speaks_of_are_flags(words):
    """A command's own; or, where it says `--x of groundling y`, another's."""
    text = help_of(*words)
    if words == ("ladder", "show"):
        words = ("ladder",)
    for match in FLAG.finditer(text):
        if match[0] == "--field":  # "[--field value ...]"
            continue
        after = text[match.end() : match.end() + 120].replace("│", " ")
        of = re.match(r"\s+of\s+`groundling\s+([a-z-]+)`", after)
        known = flags_of(of[1]) if of else flags_of(*words)
        assert is_a_flag_of(match[0], known), f"{' '.join(words)} --help: {match[0]}"


def commands_in(text: str) -> Iterator[tuple[int, list[str]]]:
    """The commands of groundling that a page shows, with their lines: in blocks after $, and between backticks."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if (found := re.match(r"\s*\$ (.*)", line)) is not None:
            whole = found[1]
            while whole.endswith("\\") and number + 1 < len(lines):
                number += 1
                whole = whole[:-1] + " " + lines[number].strip()
            for part in re.split(r"\||&&|;", whole):
                yield from _of_groundling(number + 1, part)
    for match in re.finditer(r"`([^`\n]+)`", text):
        yield from _of_groundling(text.count("\n", 0, match.start()) + 1, match[1])


def _of_groundling(number: int, shown: str) -> Iterator[tuple[int, list[str]]]:
    with contextlib.suppress(ValueError):
        words = shlex.split(shown, comments=True)
        while words and ("=" in words[0] or words[0] in ("time", "python", "-m")):
            words.pop(0)
        if "groundling" in words and (words[0] == "groundling" or "torchrun" in words[0]):
            rest = words[words.index("groundling") + 1 :]
            if rest and not rest[0].startswith("--"):
                yield number, rest


def _begun(verb: str, folder: Path) -> Path:
    """The folder of a stage that has its settings, and nothing else: enough to read a command that goes on with it."""
    config_class = getattr(importlib.import_module(VERBS[verb].module), f"{verb.capitalize()}Config")
    (folder / verb).mkdir(exist_ok=True)
    (folder / verb / "run.toml").write_text(to_toml(config_class(path="base")), encoding="utf-8")
    return folder / verb


def is_a_sketch(words: list[str]) -> bool:
    """`groundling sft BUNDLE [--field value ...]`, or a verb alone: said in general."""
    names = COMMANDS.get(words[0], [])
    bare = len(words) == 1 or (len(words) == 2 and words[1] in names) or "--help" in words
    return bare or any(re.search(r"^\[|\.\.\.|^[A-Z_]+\]?$|…|[<>]|^VERB$", word) for word in words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_the_documentation_are_read(page, finished_run, tmp_path, monkeypatch):
    """What a command names need not be there: what is there is looked at only where a command begins with it."""
    monkeypatch.chdir(ROOT)
    wrong = []
    for number, words in commands_in(page.read_text(encoding="utf-8")):
        assert words[0] in VERBS, f"{page.name}:{number}: groundling {words[0]}"
        names = COMMANDS.get(words[0], [])
        if len(words) > 1 and names and words[0] != "ladder":
            assert words[1] in names, f"{page.name}:{number}: groundling {' '.join(words[:2])}"
        if is_a_sketch(words):
            command = words[: 2 if names and words[1:2] and words[1] in names else 1]
            if command[0] in COMMANDS and len(command) == 1 and command[0] != "ladder":
                continue
            known = flags_of(*command)
            wrong += [f"{number}: {flag}" for flag in FLAG.findall(" ".join(words)) if not is_a_flag_of(flag, known)]
            continue
        if "--init-from" in words:  # the only flag whose bundle has to be there to be read
            words = [*words]
            words[words.index("--init-from") + 1] = str(finished_run)
        if words[0] in STAGES and "--resume" in words and words[1].startswith("--"):
            words = [*words]
            words[words.index("--out-dir") + 1] = str(_begun(words[0], tmp_path))
        if words[0] == "pretrain" and len(words) > 1 and words[1].endswith(".toml") and not _is_a_preset(words[1]):
            words[1] = "shakespeare_char.toml"
        try:
            parsed(words) if words[:2] not in (["data", "list"], ["ladder", "show"]) else None
        except GroundlingError as error:
            wrong.append(f"{number}: groundling {' '.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


def _is_a_preset(name: str) -> bool:
    from groundling.config import shipped_presets

    return Path(name).name in shipped_presets()


NOT_OURS = {
    "--nproc-per-node", "--max-restarts", "--standalone", "--shutdown-timeout",  # torchrun
    "--jinja",  # llama.cpp
    "--no-cnv", "--check", "--version", "--constraint", "--editable",
}  # fmt: skip
"""Flags of other programs, and of benchmarks and scripts, which the documentation names."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_flags_of_the_documentation_are_flags_of_something(page):
    text = page.read_text(encoding="utf-8")
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    named = set(re.findall(r"`(--[a-z][\w.-]*)", text))
    unknown = {
        flag for flag in named if not is_a_flag_of(flag, every_flag()) and flag not in NOT_OURS and flag not in scripts
    }
    assert unknown == set()


def test_flags_that_messages_name_are_flags_of_something():
    ours = every_flag()
    pip = {"--force-reinstall", "--no-deps", "--python", "--hash", "--target", "--only-binary", "--no-binary",
           "--require-hashes", "--disable-pip-version-check", "--dest", "--requirement"}  # fmt: skip
    for path in SOURCES.rglob("*.py"):
        if path.name in ("download.py", "speedrun.py", "runtime.py"):  # command lines of other programs
            continue
        for text in texts_of(ast.parse(path.read_text(encoding="utf-8"))):
            if " " not in text:
                continue
            for flag in FLAG.findall(text):
                known = is_a_flag_of(flag, ours) or flag in pip | NOT_OURS or flag == "--help"
                assert known, f"{path.relative_to(SOURCES)}: {flag} in {text!r}"


def test_a_page_that_a_message_names_has_what_it_promises():
    assert "GELU" in (ROOT / "docs" / "guide" / "export.md").read_text(encoding="utf-8")


def test_make_has_what_the_documentation_makes():
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        for name in re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text(encoding="utf-8")):
            assert name in rules, f"{page.name}: make {name}"
