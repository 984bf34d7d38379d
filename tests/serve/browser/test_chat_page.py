"""The chat page: said, streamed, stopped, said again, changed, and looked at word by word."""

import json
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from servekit import Served, serving

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


def test_a_turn_that_came_to_nothing_is_not_told_again(page_at: Open) -> None:
    """Blocked, or failed on the way: it stands on the page, and the conversation goes on without it."""
    page = page_at("/", width=360, theme="dark")
    set_up(page, "talker", tokens=6)
    say(page, "Zounds!")
    expect(page.locator(".hidden-text")).to_have_count(1)
    failed = json.dumps({"error": {"message": "no luck", "type": "x", "param": None, "code": "x"}})
    page.route("**/completions", lambda route: route.fulfill(status=200, body=f"data: {failed}\n\n"), times=1)
    say(page, "What is it?")
    expect(page.locator(".columns .error")).to_have_text("no luck")
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "Who?")
    assert [message["content"] for message in asked.value.post_data_json["messages"]] == ["Who?"]
    assert replies(page)[2]
    with page.expect_request("**/v1/chat/completions") as asked:
        say(page, "And now?")
    contents = [message["content"] for message in asked.value.post_data_json["messages"]]
    assert contents == ["Who?", page.locator(".columns .lines").nth(2).text_content(), "And now?"]
    expect(page.locator(".hidden-text")).to_have_count(1)
    assert replies(page)[3]


def test_a_conversation_that_has_become_too_long_goes_on_without_its_beginning(browser, server) -> None:
    page = browser.new_page()
    page.goto(server.url)
    set_up(page, "talker", tokens=12)
    asked = []
    page.on("request", lambda request: asked.append(request) if request.method == "POST" else None)
    for words in ("Who is there in the dark?", "And who else?", "Why?"):
        say(page, words)
    assert all(replies(page))
    notes = page.locator(".turn").nth(2).locator(".aside").filter(has_text="The oldest turns were left out")
    expect(notes).to_have_count(1)
    expect(page.locator("#announcer")).to_contain_text("The oldest turns were left out")
    assert len(asked) == 3 + 1, "asked again without the first turn, and no oftener than it needs"
    assert [message["content"] for message in asked[-1].post_data_json["messages"]][::2] == ["And who else?", "Why?"]
    page.close()


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


def test_a_reply_can_be_stopped(page_at: Open, server) -> None:
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


def test_the_button_stops_and_hands_the_focus_on(page_at: Open) -> None:
    page = page_at("/")
    set_up(page, "base", tokens=4096)
    page.fill("#words", "Who is there?")
    page.click("#send")
    expect(page.locator("#stop")).to_be_focused()
    expect(page.locator(".columns .token").nth(5)).to_be_visible()
    page.click("#stop")
    expect(page.locator("#again")).to_be_focused()
    expect(page.locator("#announcer")).to_contain_text("Stopped.")
    page.fill("#max_tokens", "3")
    page.click("#again")
    expect(page.locator("#announcer")).to_contain_text("He is cut short")
    expect(page.locator("#again")).to_be_focused()


def test_a_change_can_be_left(page_at: Open) -> None:
    page = page_at("/")
    set_up(page, "talker", tokens=4)
    say(page, "Who is there?")
    for leave in (lambda: page.keyboard.press("Escape"), lambda: page.click("#leave")):
        page.fill("#words", "half a thought")
        page.locator(".you button").click()
        expect(page.locator("#words")).to_have_value("Who is there?")
        leave()
        expect(page.locator("#words")).to_have_value("half a thought")
        expect(page.locator("#leave")).to_be_hidden()
    say(page, "And now?")
    assert len(replies(page)) == 2


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


def test_a_finger_can_read_what_was_weighed(browser, server) -> None:
    page = browser.new_page(has_touch=True, viewport={"width": 360, "height": 740})
    page.goto(server.url)
    set_up(page, "pairs")
    say(page, "the king")
    page.locator(".columns .token").nth(3).tap()
    page.wait_for_timeout(100)
    expect(page.locator("#weighed")).to_be_visible()
    expect(page.locator("#weighed .chosen")).to_have_count(1)
    page.locator("h1").tap()
    expect(page.locator("#weighed")).to_be_hidden()
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_gets_in(page_at: Open, axe, theme: str) -> None:
    """A conversation of two, what was weighed for a token, and an error."""
    page = page_at("/", theme=theme)
    set_up(page, "talker", "pairs", tokens=12)
    say(page, "Zounds, the king!")
    page.check("#shade")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body="data: [DONE]\n\n"))
    page.route("**/v1/completions", lambda route: route.fulfill(status=200, body=""))
    say(page, "the king")
    page.unroute("**/v1/completions")
    expect(page.locator(".columns .error")).to_have_count(1)
    say(page, "the fool")
    page.locator(".columns .token").first.focus()
    expect(page.locator("#weighed")).to_be_visible()
    axe(page)


def test_the_text_is_the_text_whatever_the_tokens_are(page_at: Open, server) -> None:
    """Of bytes that are no characters, as of all others, nothing is lost or doubled."""
    page = page_at("/")
    set_up(page, "pairs", tokens=120, seed="9")
    say(page, "the fool")
    body = {"model": "pairs", "prompt": "the fool", "max_tokens": 120, "seed": 9, "temperature": 0.8, "top_p": 1}
    text = server.ask("POST", "/v1/completions", body)[1]["choices"][0]["text"]
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
def test_errors_are_said_in_words(browser, server, status: int, headers: dict, told: str) -> None:
    page = browser.new_page()
    code = "not_ready" if status == 503 else "x"
    error = {"message": "the prompt is too long", "type": "x", "param": None, "code": code}
    body = json.dumps({"error": error})
    page.route("**/v1/completions", lambda route: route.fulfill(status=status, headers=headers, body=body))
    page.goto(server.url)
    set_up(page, "base")
    say(page, "Who")
    expect(page.locator(".columns .error")).to_have_text(told)
    expect(page.locator("#announcer")).to_contain_text(told)
    page.close()


@pytest.fixture(scope="module")
def locked(models) -> Iterator[Served]:
    with serving(models["base"], "--safety", "off", environment={"GROUNDLING_API_KEY": "a-secret-key"}) as served:
        yield served


NOTHING_IS_KEPT = """for (const name of ["localStorage", "sessionStorage"]) Object.defineProperty(window, name, {
  get() { throw new DOMException("denied", "SecurityError"); } });"""


def test_a_key_that_no_header_can_hold_is_refused_and_a_browser_may_keep_nothing(browser, locked) -> None:
    page = browser.new_page()
    page.add_init_script(NOTHING_IS_KEPT)
    page.goto(locked.url)
    page.fill("#key-input", "der Schlüssel …")
    page.press("#key-input", "Enter")
    page.wait_for_timeout(200)
    expect(page.locator("#key-dialog")).to_be_visible()
    page.fill("#key-input", " a-secret-key ")
    page.press("#key-input", "Enter")
    set_up(page, "base")
    say(page, "Who")
    assert replies(page)[0]
    page.close()


def test_who_gives_no_key_is_not_asked_again_and_again(browser, locked) -> None:
    page = browser.new_page()
    page.clock.install()
    page.goto(f"{locked.url}/train")
    page.get_by_role("button", name="Leave").click()
    expect(page.get_by_role("alert")).to_have_text("A key is needed; load this page again to give one.")
    for _ in range(8):
        page.clock.run_for(1000)
        page.wait_for_timeout(30)
    expect(page.locator("#key-dialog")).to_be_hidden()
    page.reload()
    expect(page.locator("#key-dialog")).to_be_visible()
    page.close()


def test_a_key_is_asked_for_and_kept(browser, locked) -> None:
    page = browser.new_page()
    page.goto(locked.url)
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
