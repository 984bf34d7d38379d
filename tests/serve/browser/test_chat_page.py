"""The chat page: said, streamed, stopped, said again, changed, and looked at word by word."""

import json
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from servekit import serving

pytestmark = pytest.mark.slow
Open = Callable[..., Page]


def set_up(page: Page, *names: str, tokens: int = 40, seed: str = "5") -> None:
    page.wait_for_selector("#cast input")
    for label in page.locator("#cast label").all():
        name = label.inner_text().split()[0]
        label.locator("input").set_checked(name in names)
    page.locator(".settings summary").click()
    page.fill("#max_tokens", str(tokens))
    page.fill("#seed", seed)


def say(page: Page, words: str) -> None:
    page.fill("#words", words)
    page.press("#words", "Enter")
    expect(page.locator("#stop")).to_be_hidden()


def replies(page: Page) -> list[str]:
    return [line.inner_text() for line in page.locator(".columns .lines").all()]


def test_a_conversation(page_at: Open) -> None:
    page = page_at("/")
    set_up(page, "talker", tokens=6)
    say(page, "Who is there?")
    first = replies(page)
    assert len(first) == 1
    assert first[0]
    say(page, "And now?")
    assert len(replies(page)) == 2
    assert replies(page)[0] == first[0]
    page.click("#again")
    expect(page.locator("#stop")).to_be_hidden()
    assert len(replies(page)) == 2, "once more: in the place of the last reply"
    page.locator(".you button").first.click()
    expect(page.locator("#words")).to_have_value("Who is there?")
    say(page, "Who was it?")
    assert len(replies(page)) == 1, "the conversation goes on from what was changed"
    page.click("#fresh")
    expect(page.locator("#empty")).to_be_visible()


def test_the_same_seed_says_the_same(page_at: Open) -> None:
    page = page_at("/")
    set_up(page, "base")
    say(page, "Who is there?")
    before = replies(page)
    page.click("#again")
    expect(page.locator("#stop")).to_be_hidden()
    assert replies(page) == before
    page.fill("#seed", "6")
    page.click("#again")
    expect(page.locator("#stop")).to_be_hidden()
    assert replies(page) != before


def test_a_reply_can_be_stopped(page_at: Open, theatre) -> None:
    page = page_at("/")
    set_up(page, "base", tokens=4096)
    page.fill("#words", "Who is there?")
    page.click("#send")
    expect(page.locator(".columns .token").nth(20)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".aside:not(.hidden-text)")).to_have_text("Stopped.")
    expect(page.locator("#stop")).to_be_hidden()
    assert 20 < len(replies(page)[0]) < 4096
    page.wait_for_function(
        "async () => /groundling_active 0/.test(await (await fetch('/metrics')).text())", timeout=3000
    )


def test_several_speak_side_by_side(page_at: Open) -> None:
    page = page_at("/")
    set_up(page, "talker", "base", "pairs")
    say(page, "the king")
    assert [name.inner_text() for name in page.locator(".columns .speaker span").all()] == ["talker", "base", "pairs"]
    assert len({column.bounding_box()["x"] for column in page.locator(".columns .speech").all()}) == 3


def test_a_token_tells_what_else_was_weighed(page_at: Open) -> None:
    page = page_at("/")
    set_up(page, "pairs")
    say(page, "the king")
    token = page.locator(".columns .token").nth(3)
    token.hover()
    expect(page.locator("#weighed")).to_be_visible()
    shares = [float(text.split()[0]) for text in page.locator("#weighed .share").all_inner_texts() if "<" not in text]
    assert len(shares) >= 8
    assert shares[:8] == sorted(shares[:8], reverse=True)
    expect(page.locator("#weighed .chosen")).to_have_count(1)
    first = page.locator(".columns .token").first
    first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".columns .token").nth(1)).to_be_focused()
    expect(page.locator("#weighed")).to_be_visible()
    page.check("#shade")
    expect(page.locator("#play")).to_have_class("play shaded")


def test_the_text_is_the_text_whatever_the_tokens_are(page_at: Open, theatre) -> None:
    """Of bytes that are no characters, as of all others, nothing is lost or doubled."""
    page = page_at("/")
    set_up(page, "pairs", tokens=120, seed="9")
    say(page, "the fool")
    body = {"model": "pairs", "prompt": "the fool", "max_tokens": 120, "seed": 9, "temperature": 0.8, "top_p": 1}
    text = theatre.ask("POST", "/v1/completions", body)[1]["choices"][0]["text"]
    assert page.locator(".columns .lines").evaluate("node => node.textContent") == text


def test_what_the_safety_stage_did_is_said(page_at: Open) -> None:
    page = page_at("/")
    set_up(page, "base")
    say(page, "Zounds, who is there?")
    expect(page.locator(".hidden-text")).to_have_text("Your words were not passed on: an oath (rule “oath”).")
    assert replies(page) == [""]
    page.click("#fresh")
    page.fill("#max_tokens", "300")
    say(page, "Who")
    assert "[vowel]" in replies(page)[0]
    assert "e" not in replies(page)[0].replace("[vowel]", "")
    expect(page.locator(".hidden-text").first).to_contain_text("Something is hidden: it is an e")


@pytest.mark.parametrize("name", ["base", "talker"])
def test_what_looks_like_a_page_is_text(page_at: Open, name: str) -> None:
    page = page_at("/")
    words = "<img src=x onerror=alert(1)><b>"
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    set_up(page, name)
    page.fill("#words", words)
    page.press("#words", "Enter")
    expect(page.locator("#stop")).to_be_hidden()
    assert page.locator(".you .lines").inner_text() == words
    assert page.locator(".play img, .play b").count() == 0


def test_a_reply_that_looks_like_a_page_is_text(page_at: Open) -> None:
    page = page_at("/")
    said = '<img src=x onerror="alert(1)">'
    event = json.dumps({"choices": [{"index": 0, "text": said, "logprobs": None, "finish_reason": "stop"}]})
    page.route(
        "**/v1/completions",
        lambda route: route.fulfill(
            status=200, content_type="text/event-stream", body=f"data: {event}\n\ndata: [DONE]\n\n"
        ),
    )
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    set_up(page, "base")
    say(page, "Who")
    assert replies(page) == [said]
    assert page.locator(".play img").count() == 0


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (429, {"Retry-After": "7"}, "The house is full; try again in 7 seconds."),
        (503, {}, "The models are still being loaded; try again in a moment."),
        (400, {}, "the prompt is too long"),
    ],
)
def test_errors_are_said_in_words(browser, theatre, status: int, headers: dict, told: str) -> None:
    page = browser.new_page()
    code = "not_ready" if status == 503 else "x"
    error = {"message": "the prompt is too long", "type": "x", "param": None, "code": code}
    body = json.dumps({"error": error})
    page.route("**/v1/completions", lambda route: route.fulfill(status=status, headers=headers, body=body))
    page.goto(theatre.url)
    set_up(page, "base")
    say(page, "Who")
    expect(page.locator(".columns .error")).to_have_text(told)
    page.close()


def test_a_key_is_asked_for_and_kept(browser, models) -> None:
    with serving(models["base"], "--safety", "off", environment={"GROUNDLING_API_KEY": "a-secret-key"}) as server:
        page = browser.new_page()
        page.goto(server.url)
        for given in ("not-the-key", "a-secret-key"):
            expect(page.locator("#key-dialog")).to_be_visible()
            page.fill("#key-input", given)
            page.press("#key-input", "Enter")
        page.wait_for_selector("#cast input")
        set_up(page, "base")
        say(page, "Who")
        assert replies(page)[0]
        assert page.evaluate("JSON.stringify(localStorage)").count("secret") == 0
        page.close()
