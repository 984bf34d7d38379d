"""Every page: no complaint of the browser's, nobody kept out, nothing that sticks out, in both lights and any width."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from groundling.serve.pages import PAGES

pytestmark = pytest.mark.slow
PAPER = {"light": "rgb(248, 243, 231)", "dark": "rgb(23, 18, 14)"}
READY = {"/": "#cast input", "/xray": ".lens td", "/rank": "#main h1", "/train": "#main h1"}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_fit_for_everybody(page_at, axe, keep_picture, path: str, width: int, theme: str) -> None:
    page = page_at(path, width, theme)
    page.wait_for_selector(READY[path])
    axe(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "something sticks out"
    keep_picture(page, f"{PAGES[path][0]}_{width}_{theme}")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == PAPER[theme]


@pytest.mark.parametrize("path", PAGES)
def test_the_light_can_be_changed_and_stays(page_at: Callable[..., Page], path: str) -> None:
    page = page_at(path, theme="light")
    expect(page.locator("#theme")).to_have_text("Candlelight"), "what a click brings"
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    expect(page.locator("#theme")).to_have_text("Daylight")
    assert page.locator("#theme[aria-pressed]").count() == 0, "the words alone say it"


def test_one_can_go_from_page_to_page_by_the_keyboard(page_at: Callable[..., Page]) -> None:
    page = page_at("/")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.get_by_role("link", name="X-ray").press("Enter")
    page.wait_for_url("**/xray")
    expect(page.locator('nav a[aria-current="page"]')).to_have_text("X-ray")
