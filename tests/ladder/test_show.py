"""`groundling ladder show`: what it prints, in colour and without."""

import io
import re

import pytest
from rich.console import Console

from groundling.errors import ConfigError
from groundling.ladder import show
from groundling.ladder.rungs import RUNGS

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|9[0-7])[;m]")


def shown_on_a_terminal(name: str) -> str:
    screen = io.StringIO()
    show.show(RUNGS[name], Console(file=screen, force_terminal=True, color_system="standard", width=40))
    return screen.getvalue()


@pytest.mark.parametrize("name", RUNGS)
def test_off_a_terminal_it_is_the_file_and_a_plain_diff(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.main([name]) == 0
    out = capsys.readouterr().out
    page = RUNGS[name].path().read_text(encoding="utf-8")
    assert out.startswith(page)
    assert "\x1b" not in out
    rest = out.removeprefix(page)
    if name == "s1":
        assert rest == ""
    else:
        before = show.rung_before(RUNGS[name])
        assert before is not None
        assert rest.endswith(show.difference(before, RUNGS[name]))
        assert f"From {before.name} " in rest


def test_the_difference_turns_the_page_before_into_this_one() -> None:
    """Applied by hand: drop the removed lines, keep the added, and every line of the new page is accounted for."""
    before, after = RUNGS["s5"], RUNGS["s6"]
    lines = show.difference(before, after).splitlines()
    assert lines[:2] == ["--- s5_feed_forward.py", "+++ s6_residual.py"]
    added = [line[1:] for line in lines[2:] if line.startswith("+")]
    removed = [line[1:] for line in lines[2:] if line.startswith("-")]
    old = before.path().read_text(encoding="utf-8").splitlines()
    new = after.path().read_text(encoding="utf-8").splitlines()
    assert sorted(old + added) == sorted(new + removed)
    assert "class ResidualBlock(nn.Module):" in added


def test_on_a_terminal_there_is_colour_and_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = shown_on_a_terminal("s7")
    assert COLOUR.search(out)
    text = ESCAPE.sub("", out)
    page = RUNGS["s7"].path().read_text(encoding="utf-8")
    assert text.startswith(page), "a narrow terminal must not cut or pad a line"


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOUR.search(shown_on_a_terminal("s7"))


def test_help_lists_the_rungs(capsys: pytest.CaptureFixture[str]) -> None:
    assert show.main(["--help"]) == 0
    out = capsys.readouterr().out
    for rung in RUNGS.values():
        assert re.search(rf"^  {rung.name}  .*{re.escape(rung.adds)}$", out, re.MULTILINE)


@pytest.mark.parametrize("argv", [[], ["s0"], ["s1", "s2"], ["S1"]], ids=" ".join)
def test_anything_but_one_rung_is_refused_with_the_list(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"s1, s2, s3, s4, s5, s6, s7, s8, s9"):
        show.main(argv)
