"""`groundling ladder show s6`: print a rung's source and its diff from the rung before."""

import difflib

from rich.console import Console
from rich.syntax import Syntax

from groundling.errors import ConfigError
from groundling.ladder.rungs import RUNGS, Rung, find_rung

USAGE = f"""usage: groundling ladder show RUNG

Print a rung of the ladder and its difference from the rung before, in colour where the output is a terminal
(set NO_COLOR=1 for none). The rungs are:

{"".join(f"  {rung.name}  {rung.title:<14} adds {rung.adds}{chr(10)}" for rung in RUNGS.values())}"""


def main(argv: list[str]) -> int:
    """Run `groundling ladder show RUNG`; return the exit code.

    Raises:
        ConfigError: there is not exactly one argument, or no rung has this name.
    """
    if argv in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if len(argv) != 1:
        raise ConfigError(f"expected one rung, got {len(argv)}; the rungs are: {', '.join(RUNGS)}")
    rung = find_rung(argv[0])
    show(rung, Console(highlight=False))
    return 0


def show(rung: Rung, console: Console) -> None:
    """Print a rung's source and its diff from the rung before."""
    _print_code(rung.path().read_text(encoding="utf-8"), "python", console)
    if before := rung_before(rung):
        console.print(f"\nFrom {before.name} ({before.title}) to {rung.name} ({rung.title}):\n", style="bold")
        _print_code(difference(before, rung), "diff", console)


def rung_before(rung: Rung) -> Rung | None:
    """Return the previous rung, or None for the first."""
    names = list(RUNGS)
    place = names.index(rung.name)
    return RUNGS[names[place - 1]] if place else None


def difference(before: Rung, after: Rung) -> str:
    """Return the unified diff of two rungs' sources."""
    old, new = (rung.path().read_text(encoding="utf-8").splitlines(keepends=True) for rung in (before, after))
    return "".join(difflib.unified_diff(old, new, before.path().name, after.path().name))


def _print_code(code: str, language: str, console: Console) -> None:
    # The terminal's own sixteen colours are readable on light and dark backgrounds; to a file rich prints none.
    text = Syntax(code, language, theme="ansi_dark", background_color="default").highlight(code)
    console.print(text, end="", soft_wrap=True)
