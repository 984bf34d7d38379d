"""The chat page: send, stream, stop, regenerate, edit, and inspect token by token."""

import json
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from servekit import Served, serving

pytestmark = pytest.mark.slow
Open = Callable[..., Page]


def set_up(page: Page, *names: str, tokens: int = 40, seed: str = "5") -> None:
    page.wait_for_selector("#models input")
    for label in page.locator("#models label").all():
        name = label.inner_text().split()[0]
        label.locator("input").set_checked(name in names)
    page.locator(".settings summary").click()
    page.fill("#max_tokens", str(tokens))
    page.fill("#seed", seed)


def say(page: Page, words: str) -> None:
    page.fill("#message", words)
    page.press("#message", "Enter")
    expect(page.locator("#stop")).to_be_hidden()


def replies(page: Page) -> list[str]:
    return [line.inner_text() for line in page.locator(".columns .text").all()]


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
    page.click("#regenerate")
    expect(page.locator("#stop")).to_be_hidden()
    assert len(replies(page)) == 2, "regenerated in place"
    page.locator(".user button").first.click()
    expect(page.locator("#message")).to_have_value("Who is there?")
    say(page, "Who was it?")
    assert len(replies(page)) == 1, "the conversation continues from the edited turn"
    page.click("#new-chat")
    expect(page.locator("#empty")).to_be_visible()


def test_blocked_and_failed_turns_are_not_sent_again(page_at: Open) -> None:
    """They stay on the page; later requests leave them out."""
    page = page_at("/", width=360, theme="dark")
    set_up(page, "talker", tokens=6)
    say(page, "Zounds!")
    expect(page.locator(".safety-note")).to_have_count(1)
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
    assert contents == ["Who?", page.locator(".columns .text").nth(2).text_content(), "And now?"]
    expect(page.locator(".safety-note")).to_have_count(1)
    assert replies(page)[3]


def test_the_oldest_turns_are_dropped_beyond_the_context(browser, server) -> None:
    page = browser.new_page()
    page.goto(server.url)
    set_up(page, "talker", tokens=12)
    asked = []
    page.on("request", lambda request: asked.append(request) if request.method == "POST" else None)
    for words in ("Who is there in the dark?", "And who else?", "Why?"):
        say(page, words)
    assert all(replies(page))
    notes = page.locator(".turn").nth(2).locator(".note").filter(has_text="The oldest turns were dropped")
    expect(notes).to_have_count(1)
    expect(page.locator("#announcer")).to_contain_text("The oldest turns were dropped")
    assert len(asked) == 3 + 1, "one retry without the first turn"
    assert [message["content"] for message in asked[-1].post_data_json["messages"]][::2] == ["And who else?", "Why?"]
    page.close()


def test_the_same_seed_gives_the_same_reply(page_at: Open) -> None:
    page = page_at("/")
    set_up(page, "base")
    say(page, "Who is there?")
    before = replies(page)
    page.click("#regenerate")
    expect(page.locator("#stop")).to_be_hidden()
    assert replies(page) == before
    page.fill("#seed", "6")
    page.click("#regenerate")
    expect(page.locator("#stop")).to_be_hidden()
    assert replies(page) != before


def test_a_reply_can_be_stopped(page_at: Open, server) -> None:
    page = page_at("/")
    set_up(page, "base", tokens=4096)
    page.fill("#message", "Who is there?")
    page.click("#send")
    expect(page.locator(".columns .token").nth(20)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".note:not(.safety-note)")).to_have_text("Stopped.")
    expect(page.locator("#stop")).to_be_hidden()
    assert 20 < len(replies(page)[0]) < 4096
    page.wait_for_function(
        "async () => /groundling_active 0/.test(await (await fetch('/metrics')).text())", timeout=3000
    )


def test_the_stop_button_moves_the_focus_on(page_at: Open) -> None:
    page = page_at("/")
    set_up(page, "base", tokens=4096)
    page.fill("#message", "Who is there?")
    page.click("#send")
    expect(page.locator("#stop")).to_be_focused()
    expect(page.locator(".columns .token").nth(5)).to_be_visible()
    page.click("#stop")
    expect(page.locator("#regenerate")).to_be_focused()
    expect(page.locator("#announcer")).to_contain_text("Stopped.")
    page.fill("#max_tokens", "3")
    page.click("#regenerate")
    expect(page.locator("#announcer")).to_contain_text("Stopped at max tokens.")
    expect(page.locator("#regenerate")).to_be_focused()


def test_an_edit_can_be_cancelled(page_at: Open) -> None:
    page = page_at("/")
    set_up(page, "talker", tokens=4)
    say(page, "Who is there?")
    for cancel in (lambda: page.keyboard.press("Escape"), lambda: page.click("#cancel-edit")):
        page.fill("#message", "half a thought")
        page.locator(".user button").click()
        expect(page.locator("#message")).to_have_value("Who is there?")
        cancel()
        expect(page.locator("#message")).to_have_value("half a thought")
        expect(page.locator("#cancel-edit")).to_be_hidden()
    say(page, "And now?")
    assert len(replies(page)) == 2


def test_several_models_reply_side_by_side(page_at: Open) -> None:
    page = page_at("/")
    set_up(page, "talker", "base", "pairs")
    say(page, "the king")
    assert [name.inner_text() for name in page.locator(".columns .role span").all()] == ["talker", "base", "pairs"]
    assert len({column.bounding_box()["x"] for column in page.locator(".columns .message").all()}) == 3


def test_a_token_shows_its_alternatives(page_at: Open) -> None:
    page = page_at("/")
    set_up(page, "pairs")
    say(page, "the king")
    token = page.locator(".columns .token").nth(3)
    token.hover()
    expect(page.locator("#token-info")).to_be_visible()
    shares = [
        float(text.split()[0]) for text in page.locator("#token-info .probability").all_inner_texts() if "<" not in text
    ]
    assert len(shares) >= 8
    assert shares[:8] == sorted(shares[:8], reverse=True)
    expect(page.locator("#token-info .chosen")).to_have_count(1)
    first = page.locator(".columns .token").first
    first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".columns .token").nth(1)).to_be_focused()
    expect(page.locator("#token-info")).to_be_visible()
    page.check("#show-confidence")
    expect(page.locator("#conversation")).to_have_class("conversation shaded")


def test_alternatives_show_on_touch(browser, server) -> None:
    page = browser.new_page(has_touch=True, viewport={"width": 360, "height": 740})
    page.goto(server.url)
    set_up(page, "pairs")
    say(page, "the king")
    page.locator(".columns .token").nth(3).tap()
    page.wait_for_timeout(100)
    expect(page.locator("#token-info")).to_be_visible()
    expect(page.locator("#token-info .chosen")).to_have_count(1)
    page.locator("h1").tap()
    expect(page.locator("#token-info")).to_be_hidden()
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessibility(page_at: Open, axe, theme: str) -> None:
    """Two replies, a tooltip and an error."""
    page = page_at("/", theme=theme)
    set_up(page, "talker", "pairs", tokens=12)
    say(page, "Zounds, the king!")
    page.check("#show-confidence")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body="data: [DONE]\n\n"))
    page.route("**/v1/completions", lambda route: route.fulfill(status=200, body=""))
    say(page, "the king")
    page.unroute("**/v1/completions")
    expect(page.locator(".columns .error")).to_have_count(1)
    say(page, "the fool")
    page.locator(".columns .token").first.focus()
    expect(page.locator("#token-info")).to_be_visible()
    axe(page)


def test_the_text_is_complete_whatever_the_tokens(page_at: Open, server) -> None:
    """Tokens that hold partial characters lose or double nothing."""
    page = page_at("/")
    set_up(page, "pairs", tokens=120, seed="9")
    say(page, "the fool")
    body = {"model": "pairs", "prompt": "the fool", "max_tokens": 120, "seed": 9, "temperature": 0.8, "top_p": 1}
    text = server.ask("POST", "/v1/completions", body)[1]["choices"][0]["text"]
    assert page.locator(".columns .text").evaluate("node => node.textContent") == text


def test_safety_notes(page_at: Open) -> None:
    page = page_at("/")
    set_up(page, "base")
    say(page, "Zounds, who is there?")
    expect(page.locator(".safety-note")).to_have_text("Prompt blocked: an oath (rule “oath”).")
    assert replies(page) == [""]
    page.click("#new-chat")
    page.fill("#max_tokens", "300")
    say(page, "Who")
    assert "[vowel]" in replies(page)[0]
    assert "e" not in replies(page)[0].replace("[vowel]", "")
    expect(page.locator(".safety-note").first).to_contain_text("Redacted: it is an e")


@pytest.mark.parametrize("name", ["base", "talker"])
def test_html_in_a_prompt_is_text(page_at: Open, name: str) -> None:
    page = page_at("/")
    words = "<img src=x onerror=alert(1)><b>"
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    set_up(page, name)
    page.fill("#message", words)
    page.press("#message", "Enter")
    expect(page.locator("#stop")).to_be_hidden()
    assert page.locator(".user .text").inner_text() == words
    assert page.locator(".conversation img, .conversation b").count() == 0


def test_html_in_a_reply_is_text(page_at: Open) -> None:
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
    assert page.locator(".conversation img").count() == 0


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (429, {"Retry-After": "7"}, "Server busy; retry in 7 s."),
        (503, {}, "The models are still loading; retry in a moment."),
        (400, {}, "the prompt is too long"),
    ],
)
def test_error_messages(browser, server, status: int, headers: dict, told: str) -> None:
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


STORAGE_BLOCKED = """for (const name of ["localStorage", "sessionStorage"]) Object.defineProperty(window, name, {
  get() { throw new DOMException("denied", "SecurityError"); } });"""


def test_an_invalid_key_is_refused_and_storage_may_be_blocked(browser, locked) -> None:
    page = browser.new_page()
    page.add_init_script(STORAGE_BLOCKED)
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


def test_a_cancelled_key_dialog_stays_closed(browser, locked) -> None:
    page = browser.new_page()
    page.clock.install()
    page.goto(f"{locked.url}/train")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("alert")).to_have_text("An API key is required; reload this page to enter one.")
    for _ in range(8):
        page.clock.run_for(1000)
        page.wait_for_timeout(30)
    expect(page.locator("#key-dialog")).to_be_hidden()
    page.reload()
    expect(page.locator("#key-dialog")).to_be_visible()
    page.close()


def test_a_key_is_requested_and_stored(browser, locked) -> None:
    page = browser.new_page()
    page.goto(locked.url)
    for given in ("not-the-key", "a-secret-key"):
        expect(page.locator("#key-dialog")).to_be_visible()
        page.fill("#key-input", given)
        page.press("#key-input", "Enter")
    page.wait_for_selector("#models input")
    set_up(page, "base")
    say(page, "Who")
    assert replies(page)[0]
    assert page.evaluate("JSON.stringify(localStorage)").count("secret") == 0
    page.close()
