"""What a piece of advice is, which there are, and how a test follows one.

A test that follows advice says which (`follows`), and has the fixture `advised`: it collects what the program said,
and fails the test that did not meet what it names, or did nothing after it.
"""

import ast
import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from groundling import config
from groundling.cli import VERBS, main
from groundling.errors import GroundlingError

SOURCES = Path(__file__).parents[2] / "src" / "groundling"
IMPERATIVES = (
    "add|allow|ask|begin|bound|call|change|chat|check|choose|close|compare|continue|convert|copy|"
    "cut|decode|delete|disable|download|drop|enable|end|export|fetch|free|give|go|import|install|"
    "keep|leave|let|limit|listen|load|look|lower|make|mask|mend|move|name|open|pass|press|put|"
    "raise|rank|reduce|reload|remove|rename|repair|repeat|replace|rerun|restore|resume|run|save|"
    "say|see|send|serve|set|shorten|show|specify|split|start|stop|switch|take|train|try|type|"
    "unpack|update|upgrade|use|wait|write"
)
ADVICE = re.compile(
    r"(?<![\w-])--[a-z][\w.-]*"  # a flag
    r"|\bgroundling [a-z-]+"  # a command
    r"|pip install"
    # A verb that stands where an imperative does.
    r"|(?:^|[;:,.(] |\b(?:and|or|so|then|first|please) )(?:" + IMPERATIVES + r")\b",
)
FOLLOWED: set[str] = set()
"""The advice that some test here follows, by its text in the code, with {} for what is filled in."""


def template_of(node: ast.Constant | ast.JoinedStr) -> str:
    """A text in the code; {} stands for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)


def texts_of(tree: ast.AST) -> Iterator[str]:
    """All texts of a file that can be shown: no docstrings, and parts of an f-string only as a whole."""
    hidden: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            hidden.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            hidden.update(map(id, node.values))
        elif isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            hidden.add(id(node.format_spec))
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        if is_text and id(node) not in hidden:
            yield template_of(node)


def advice_in(tree: ast.AST) -> list[str]:
    """The texts that tell somebody to do something."""
    return [text for text in texts_of(tree) if " " in text and ADVICE.search(text)]


def all_advice() -> dict[str, list[str]]:
    """Each piece of advice in the package -> the files it stands in."""
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCES.rglob("*.py")):
        for text in advice_in(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(text, []).append(path.relative_to(SOURCES).as_posix())
    return found


def matches(template: str, said: str) -> bool:
    """Whether something that was said is this text of the code, filled in."""
    pattern = ".*?".join(re.escape(" ".join(part.split())) for part in template.split("{}"))
    return re.search(pattern.replace(r"\ .*?", r"\ ?.*?"), " ".join(said.split())) is not None


def follows(*templates: str) -> Callable[[Any], Any]:
    """Mark a test that provokes these texts and does what they say."""

    def mark(test: Any) -> Any:
        FOLLOWED.update(templates)
        test.follows = [*getattr(test, "follows", []), *templates]
        return test

    return mark


class Advised:
    """The program, as a user meets it who makes mistakes and does what he is told."""

    def __init__(self, capfd: Any) -> None:
        self._capfd = capfd
        self.said: list[str] = []
        self.n_followed = 0

    def refused(self, *words: Any) -> str:
        """A command that ends in an error; what it said last."""
        code = main([str(word) for word in words])
        out, err = self._capfd.readouterr()
        assert code != 0, f"{words} was not refused: {out}{err}"
        assert "Traceback" not in err
        self.said += [err, out]
        return err.strip().splitlines()[-1]

    def raises(self, function: Callable[[], Any]) -> str:
        """A call that is refused; the message."""
        try:
            function()
        except (GroundlingError, ValueError) as error:
            self.said.append(str(error))
            return str(error)
        raise AssertionError("it was not refused")

    def hears(self, text: str) -> str:
        """Anything else that was said."""
        self.said.append(text)
        return text

    def works(self, *words: Any) -> str:
        """The command that was advised; what it printed."""
        code = main([str(word) for word in words])
        out, err = self._capfd.readouterr()
        assert code == 0, err
        self.n_followed += 1
        self.said += [out, err]
        return out + err

    def done(self, result: Any = True) -> Any:
        """Something else that was advised was done, and held."""
        assert result
        self.n_followed += 1
        return result

    def check(self, templates: Sequence[str]) -> None:
        """Each text that a test says it follows was met, and something was done after it."""
        for template in templates:
            assert any(matches(template, said) for said in self.said), f"never met: {template!r} in {self.said}"
        assert self.n_followed, "nothing that was advised was done"


class ParsedError(Exception):
    """A command line was read to its end: what would follow is not for this test."""

    def __init__(self, settings: Any) -> None:
        super().__init__("read")
        self.settings = settings


@contextlib.contextmanager
def only_parsing() -> Iterator[None]:
    """Inside, a verb ends with `ParsedError` where its command line is read and found good."""
    import importlib

    modules = [importlib.import_module(verb.module) for verb in VERBS.values()]
    modules += [importlib.import_module(name) for name in BEHIND_A_VERB]
    real = config.parse

    def parse(*args: Any, **kwargs: Any) -> Any:
        raise ParsedError(real(*args, **kwargs))

    held = [module for module in [config, *modules] if getattr(module, "parse", None) is real]
    for module in held:
        module.parse = parse  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in held:
            module.parse = real  # type: ignore[attr-defined]


BEHIND_A_VERB = (
    "groundling.train.arguments",
    "groundling.align.arguments",
    "groundling.align.preferences.simulate",
)
"""Modules that read a command line for another one."""


def parsed(words: Sequence[str]) -> Any:
    """The settings that a command line gives, where it has any; None where the command reads them otherwise.

    Raises:
        GroundlingError: it is refused.
    """
    module = VERBS[words[0]].module
    import importlib

    said = io.StringIO()
    with only_parsing(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = importlib.import_module(module).main(list(words[1:]))
        except ParsedError as read:
            return read.settings
    assert code == 0, said.getvalue()
    return None
