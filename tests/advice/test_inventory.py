"""No advice without a test that follows it. What is said is found in the sources; what is followed, in the tests here.

A message that tells somebody to do something goes into a test that provokes it and does it (`advicekit.follows`), or
is listed in inventory.toml with the test elsewhere that does; what only looks like advice is listed there, too.
"""

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest
from advicekit import FOLLOWED, SOURCES, advice_in, all_advice, matches

from groundling.cli import VERBS

HERE = Path(__file__).parent
LISTED = tomllib.loads((HERE / "inventory.toml").read_text(encoding="utf-8"))
ELSEWHERE, NO_ADVICE = LISTED["elsewhere"], LISTED["no_advice"]
SUMMARIES = {verb.summary for verb in VERBS.values()}


CHAT_PAGE, TRAIN_PAGE = "serve/browser/test_chat_page.py", "serve/browser/test_train_page.py"
RANK_PAGE = "serve/browser/test_rank_page.py"
PAGES = {
    "Server busy; retry in ${wait}.": f"{CHAT_PAGE}::test_error_messages",
    "The models are still loading; retry in a moment.": f"{CHAT_PAGE}::test_error_messages",
    "An API key is required; reload this page to enter one.": f"{CHAT_PAGE}::test_a_cancelled_key_dialog_stays_closed",
    "Select a run.": f"{TRAIN_PAGE}::test_runs_are_overlaid_and_remembered",
    "Enter a rater name below to start.": f"{RANK_PAGE}::test_text_from_models_and_users_is_not_parsed_as_html",
}
"""Advice on the pages -> the browser test that covers it."""


@pytest.fixture(scope="module")
def advice() -> dict[str, list[str]]:
    for path in HERE.glob("test_*.py"):
        importlib.import_module(path.stem)
    return all_advice()


def test_every_piece_of_advice_is_followed_by_a_test(advice):
    known = FOLLOWED | ELSEWHERE.keys() | NO_ADVICE.keys() | SUMMARIES
    unknown = {text: files for text, files in advice.items() if text not in known and not _is_a_command_s_name(text)}
    assert not unknown, "\n".join(f"{', '.join(files)}: {text!r}" for text, files in unknown.items())


def _is_a_command_s_name(text: str) -> bool:
    """`groundling data get`, as the help calls it."""
    return re.fullmatch(r"groundling( [a-z-]+)+", text) is not None


def test_nothing_is_listed_that_is_no_longer_said(advice):
    said = {text for path in SOURCES.rglob("*.py") for text in _texts(path)}
    assert (FOLLOWED | ELSEWHERE.keys() | NO_ADVICE.keys()) - said == set()


def _texts(path: Path) -> list[str]:
    from advicekit import texts_of

    return list(texts_of(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("place", sorted({*ELSEWHERE.values(), *PAGES.values()}))
def test_the_tests_elsewhere_are_there(place):
    file, _, name = place.partition("::")
    tree = ast.parse((HERE.parent / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    "message",
    [
        "raise ConfigError(f'{x} is wrong; use another')",
        "raise ConfigError('it is wrong: give --steps 3')",
        "raise ConfigError(f'see `groundling sft {x}`')",
        "say('first run: groundling doctor')",
        "raise ConfigError('the disk is full, free some room')",
        "raise ConfigError('not there; pip install it')",
        "require(x, 'it is too long; shorten it')",
        "require(x, 'Try a smaller one')",
    ],
)
def test_new_advice_would_be_found(message):
    assert advice_in(ast.parse(message.replace("Try", "try")))


@pytest.mark.parametrize("message", ["'''Use it.'''", "x = 'useful things'", "require(x, 'n is 3; it must be 4')"])
def test_what_is_no_advice_is_not_found(message):
    assert not advice_in(ast.parse(message))


def test_a_text_of_the_code_is_recognised_when_it_is_filled_in():
    assert matches("{} holds no run; give --out-dir {}", "error: a b holds no run; give --out-dir x")
    assert not matches("{} holds no run; give --out-dir {}", "error: a b holds a run; give --out-dir x")


PAGE_ADVICE = re.compile(
    r"""["'`]([^"'`\n]*(?:^|[;:.] |(?<=["'`]))(?:Try|try|Retry|retry|Choose|choose|"""
    r"""Select|select|Enter|Load|load|Reload|reload|Install|Run|run)\b [^"'`\n]+)"""
)
BUTTONS = ("try again", "Try again", "Tokens: select one to see what it attends to")
"""Labels of controls."""


def test_the_pages_give_no_other_advice():
    found = {
        text
        for path in (SOURCES / "serve" / "static").glob("*.js")
        for text in PAGE_ADVICE.findall(path.read_text(encoding="utf-8"))
        if " " in text and not any(button in text for button in BUTTONS)
    }
    assert {text for text in found if not any(text.startswith(known) for known in PAGES)} == set()
    pages = "".join(path.read_text(encoding="utf-8") for path in (SOURCES / "serve" / "static").glob("*.js"))
    assert all(known in pages for known in PAGES)
