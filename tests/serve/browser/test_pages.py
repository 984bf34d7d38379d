"""Every page: no browser errors, accessible, no sideways scrolling, in both themes and at all widths."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from groundling.serve.pages import PAGES

pytestmark = pytest.mark.slow
PAPER = {"light": "rgb(248, 243, 231)", "dark": "rgb(23, 18, 14)"}
READY = {"/": "#models input", "/xray": ".lens td", "/rank": "#main h1", "/train": "#main h1"}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_accessible_and_does_not_scroll_sideways(
    page_at, axe, keep_picture, path: str, width: int, theme: str
) -> None:
    page = page_at(path, width, theme)
    page.wait_for_selector(READY[path])
    axe(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "scrolls sideways"
    keep_picture(page, f"{PAGES[path][0]}_{width}_{theme}")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == PAPER[theme]


@pytest.mark.parametrize("path", PAGES)
def test_the_theme_can_be_changed_and_persists(page_at: Callable[..., Page], path: str) -> None:
    page = page_at(path, theme="light")
    expect(page.locator("#theme")).to_have_text("Dark"), "the theme that a click selects"
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    expect(page.locator("#theme")).to_have_text("Light")
    assert page.locator("#theme[aria-pressed]").count() == 0, "the label alone tells the state"


def test_keyboard_navigation_between_pages(page_at: Callable[..., Page]) -> None:
    page = page_at("/")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.get_by_role("link", name="X-ray").press("Enter")
    page.wait_for_url("**/xray")
    expect(page.locator('nav a[aria-current="page"]')).to_have_text("X-ray")
