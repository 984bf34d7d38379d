"""The X-ray page: every picture of a text, its numbers live, its checkpoints one after the other, two models beside."""

import math
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.slow
Open = Callable[..., Page]


def look(page: Page, model: str, text: str, number: int = 0) -> None:
    page.wait_for_selector(".lens td")
    page.fill("#text", text)
    page.select_option(f"#model-{number}", model)
    page.click("#expose")
    expect(page.locator(".panel[aria-busy]")).to_have_count(0)


def test_all_pictures_are_of_the_text(page_at: Open) -> None:
    page = page_at("/xray")
    look(page, "pairs", "the king and the fool")
    tokens = page.locator(".reading .tok")
    assert "".join(tokens.all_text_contents()) == "the king and the fool"
    expect(page.locator(".head")).to_have_count(4)
    expect(page.locator(".lens tbody tr")).to_have_count(3)
    assert page.locator(".lens thead th").count() == tokens.count() + 1
    before = page.locator(".big canvas").evaluate("node => node.toDataURL()")
    page.locator(".head").nth(0).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".big h3")).to_contain_text("layer 2, head 2")
    expect(page.locator(".head").nth(3)).to_be_focused()
    assert page.locator(".big canvas").evaluate("node => node.toDataURL()") != before
    tokens.nth(2).hover()
    expect(tokens.nth(2)).to_have_attribute("aria-pressed", "true")
    assert page.locator(".arcs path").count() >= 1
    page.locator(".lens td").first.hover()
    expect(page.locator(".panel .tell").last).to_contain_text("after layer 2")
    page.locator("summary").click()
    expect(page.locator(".scores tbody tr")).to_have_count(4)


def shares(page: Page) -> list[float]:
    """The lengths of the bars, in percent."""
    return page.locator(".bars .bar > span").evaluate_all("bars => bars.map((bar) => parseFloat(bar.style.width))")


def drag(page: Page, name: str, value: str) -> None:
    page.locator(f"#{name}-0").evaluate(
        "(node, value) => { node.value = value; node.dispatchEvent(new Event('input')); }", value
    )


def test_the_bars_follow_the_knobs_without_asking_again(page_at: Open, theatre) -> None:
    page = page_at("/xray")
    look(page, "pairs", "the king and the")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    plain = shares(page)
    body = {"model": "pairs", "prompt": "the king and the", "max_tokens": 1, "logprobs": 14}
    likely = theatre.ask("POST", "/v1/completions", body)[1]["choices"][0]["logprobs"]["top_logprobs"][0]
    ours = sorted((100 * math.exp(logprob) for logprob in likely.values()), reverse=True)
    assert plain[: len(ours)] == pytest.approx(ours, abs=0.006), "what the server tells of the same text"
    drag(page, "temperature", "0.5")
    assert shares(page)[0] > plain[0]
    squared = [share**2 for share in plain]
    assert shares(page)[0] / shares(page)[1] == pytest.approx(squared[0] / squared[1], rel=0.08)
    drag(page, "temperature", "1")
    drag(page, "k", "3")
    assert sum(shares(page)[:3]) == pytest.approx(100, abs=0.2)
    assert shares(page)[3:] == [0] * 11
    drag(page, "k", "60")
    drag(page, "p", "0.05")
    reached, kept = 0.0, 0
    while reached < 5:
        reached, kept = reached + plain[kept], kept + 1
    assert sum(share > 0 for share in shares(page)) == min(kept, 14)
    drag(page, "temperature", "0")
    assert shares(page)[0] == 100
    assert asked == []


def test_a_slider_goes_over_the_checkpoints(page_at: Open) -> None:
    page = page_at("/xray")
    look(page, "tale", "the king")
    expect(page.locator(".slider output")).to_contain_text("step 6")
    page.locator(".head").nth(3).click()
    last = page.locator(".bars").inner_text()
    page.locator("#step-0").press("ArrowLeft")
    expect(page.locator(".slider output")).to_contain_text("step 3")
    expect(page.locator(".panel[aria-busy]")).to_have_count(0)
    assert page.locator(".bars").inner_text() != last
    expect(page.locator(".big h3")).to_contain_text("layer 2, head 2"), "the head that is looked at stays"
    page.get_by_role("button", name="Play").click()
    expect(page.locator(".slider output")).to_contain_text("step 6")


def test_two_models_stand_beside_each_other(page_at: Open) -> None:
    page = page_at("/xray")
    look(page, "base", "the king")
    page.click("#beside")
    expect(page.locator(".panel")).to_have_count(2)
    page.select_option("#model-1", "pairs")
    expect(page.locator(".panel[aria-busy]")).to_have_count(0)
    first, second = (page.locator(".panel").nth(n).locator(".tok").count() for n in (0, 1))
    assert first == len("the king") > second
    page.click("#beside")
    expect(page.locator(".panel")).to_have_count(1)


def test_what_a_user_says_is_shown_with_its_structure(page_at: Open) -> None:
    page = page_at("/xray")
    look(page, "talker", "Who?")
    page.check("#as-chat")
    expect(page.locator(".tok.structure").first).to_have_text("<user>")


def test_what_cannot_be_read_is_said(page_at: Open, browser, theatre) -> None:
    page = browser.new_page()
    page.goto(f"{theatre.url}/xray")
    look(page, "base", "a" * 65)
    expect(page.locator("#trouble .error")).to_contain_text("the text has 65 tokens, and 64 can be looked through")
    page.close()
