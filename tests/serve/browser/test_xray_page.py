"""The X-ray page: every picture of a text, its numbers live, its checkpoints one after the other, two models beside."""

import base64
import math
from collections.abc import Callable
from contextlib import suppress

import pytest
from playwright.sync_api import Error, Page, Route, expect

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


def test_the_bars_follow_the_knobs_without_asking_again(page_at: Open, server) -> None:
    page = page_at("/xray")
    look(page, "pairs", "the king and the")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    plain = shares(page)
    body = {"model": "pairs", "prompt": "the king and the", "max_tokens": 1, "logprobs": 14}
    likely = server.ask("POST", "/v1/completions", body)[1]["choices"][0]["logprobs"]["top_logprobs"][0]
    ours = sorted((100 * math.exp(logprob) for logprob in likely.values()), reverse=True)[:14]  # and the one drawn
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


def slide(page: Page, *values: int) -> None:
    for value in values:
        drag(page, "step", str(value))


def test_a_slider_that_is_dragged_asks_once(page_at: Open) -> None:
    page = page_at("/xray")
    look(page, "tale", "the king")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    slide(page, 0, 1, 0, 1, 0)
    expect(page.locator(".slider output")).to_contain_text("step 3")
    expect(page.locator(".panel[aria-busy]")).to_have_count(0)
    assert len(asked) == 1


def test_a_play_can_be_stopped_and_disturbs_nobody(page_at: Open) -> None:
    page = page_at("/xray", width=360, theme="dark")
    look(page, "tale", "the king")
    said = page.locator("#announcer p").count()
    page.locator(".head").nth(2).click()
    press = "button => button.click()"  # so that the focus stays at the head
    page.get_by_role("button", name="Play").evaluate(press)
    expect(page.locator(".slider output")).to_contain_text("step 3")
    page.get_by_role("button", name="Stop").evaluate(press)
    page.wait_for_timeout(600)
    expect(page.locator(".slider output")).to_contain_text("step 3")
    page.get_by_role("button", name="Play").evaluate(press)
    expect(page.locator("#announcer")).to_contain_text("Played to step 6")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    expect(page.locator(".head").nth(2)).to_be_focused()
    assert page.locator("#announcer p").count() == said + 1, "once, at the end"


def test_a_list_of_checkpoints_that_comes_late_is_of_no_other_model(browser, server) -> None:
    page = browser.new_page()
    page.goto(f"{server.url}/xray")
    look(page, "base", "the king")
    held = []
    page.route("**/v1/groundling/checkpoints*", lambda route: held.append(route))
    page.select_option("#model-0", "tale")
    page.wait_for_timeout(100)
    page.click("#expose")  # it is looked through when the list has come
    page.select_option("#model-0", "pairs")
    expect(page.locator(".panel[aria-busy]")).to_have_count(0)
    with suppress(Error):  # the page may have given it up
        held[0].continue_()
    page.wait_for_timeout(200)
    expect(page.locator(".slider")).to_be_hidden()
    tokens = page.locator(".reading .tok")
    assert tokens.count() < len("the king") == len("".join(tokens.all_text_contents()))
    page.close()


def test_a_server_with_other_models_is_taken_as_it_is(browser, server) -> None:
    page = browser.new_page()
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(f"{server.url}/xray")
    look(page, "base", "the king")
    known = server.ask("GET", "/v1/models")[1]
    known["data"] = [model for model in known["data"] if model["id"] == "pairs"]
    page.route("**/v1/models", lambda route: route.fulfill(json=known))
    gone = {"error": {"message": "there is no model 'base'", "type": "x", "param": None, "code": "model_not_found"}}
    page.route("**/v1/groundling/xray", lambda route: route.fulfill(status=404, json=gone), times=1)
    page.click("#expose")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#model-0")).to_have_value("pairs")
    expect(page.locator(".lens td").first).to_be_visible()
    expect(page.locator(".error")).to_have_count(0)
    assert broken == []
    page.close()


def test_what_one_model_cannot_read_is_said_of_that_one(browser, server) -> None:
    """The other one shows its pictures; those of the text before are gone."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"{server.url}/xray")
    look(page, "base", "the king")
    page.click("#beside")
    page.select_option("#model-1", "pairs")
    page.fill("#text", "the king and the fool " * 4)
    page.click("#expose")
    first, second = page.locator(".panel").nth(0), page.locator(".panel").nth(1)
    expect(first.locator(".error")).to_contain_text("64 can be looked through")
    expect(second.locator(".tok").nth(8)).to_be_visible()
    expect(first.locator(".error")).to_be_visible()
    expect(second.locator(".error")).to_have_count(0)
    expect(first.locator(".maps, .bars, .lens").first).to_be_hidden()
    page.fill("#text", "the king")
    page.click("#expose")
    expect(first.locator(".error")).to_have_count(0)
    expect(first.locator(".maps")).to_be_visible()
    page.close()


def test_tokens_are_one_stop_and_all_of_them_stand_below_the_arcs(page_at: Open) -> None:
    page = page_at("/xray")
    text = "the king and the fool did speak of love, so well and so long"
    look(page, "base", text)
    expect(page.locator(".tok[tabindex='0']")).to_have_count(1)
    page.locator(".tok[tabindex='0']").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".tok").nth(len(text) - 2)).to_be_focused()
    expect(page.locator(".tok[tabindex='0']")).to_have_count(1)
    expect(page.locator(".arcs text")).to_have_count(len(text))
    page.click("#beside")  # half as much room: the token that is looked from is still to be seen
    page.wait_for_function(
        """() => {
          const strip = document.querySelector(".strip");
          const parts = [strip, strip.querySelector("text[font-weight='700']")];
          const [room, label] = parts.map((one) => one.getBoundingClientRect());
          return room.width < 700 && label.left > room.left && label.right < room.right;
        }"""
    )
    seen = page.locator(".arcs").first.get_attribute("aria-label")
    assert seen is not None
    assert "looks at" in seen


def test_the_norms_are_those_of_the_stream(page_at: Open, server) -> None:
    page = page_at("/xray", width=360, theme="dark")
    look(page, "pairs", "the king and the fool")
    body = {"model": "pairs", "prompt": "the king and the fool"}
    norms = server.ask("POST", "/v1/groundling/xray", body)[1]["norms"]["stream"]
    means = [sum(row) / len(row) for row in norms]
    expected = f"mean over the text: {', '.join(f'{mean:.2f}' for mean in means)} from the embeddings to layer 2."
    label = page.locator(".norms").get_attribute("aria-label")
    assert label is not None
    assert label.endswith(expected)
    points = page.locator(".norms polyline").evaluate_all("all => all.map((one) => one.points.length)")
    assert points == [3, 2, 2], "the stream after the embeddings and each layer, and what each layer adds"


def peaked(route: Route) -> None:
    """What the server tells, as of a model that is sure of everything: the heaviest shades there are."""
    seen = route.fetch().json()
    n = len(seen["tokens"])
    first = base64.b64encode(bytes(255 * (s in (0, t)) for t in range(n) for s in range(t + 1))).decode()
    seen["attention"] = [[first] * seen["n_head"]] * seen["n_layer"]
    seen["lens"]["probabilities"] = [[[1.0, *row[1:]] for row in layer] for layer in seen["lens"]["probabilities"]]
    if seen["scores"]:
        seen["scores"] = {name: [[1.0] * seen["n_head"]] * seen["n_layer"] for name in seen["scores"]}
    route.fulfill(json=seen)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_gets_in(page_at: Open, axe, theme: str) -> None:
    page = page_at("/xray", theme=theme)
    page.route("**/v1/groundling/xray", peaked)
    look(page, "talker", "Who?")
    page.check("#as-chat")
    expect(page.locator(".tok.structure").first).to_be_visible()
    page.click("#beside")
    page.select_option("#model-1", "pairs")
    drag(page, "k", "3")
    expect(page.locator(".panel[aria-busy]")).to_have_count(0)
    for summary in page.locator(".panel summary").all():
        summary.click()
    page.locator(".tok.structure").first.hover()
    expect(page.locator(".tok.structure").first).to_have_attribute("aria-pressed", "true")
    axe(page)


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


def test_what_cannot_be_read_is_said(page_at: Open, browser, server) -> None:
    page = browser.new_page()
    page.goto(f"{server.url}/xray")
    look(page, "base", "a" * 65)
    expect(page.locator(".panel .trouble .error")).to_contain_text(
        "the text has 65 tokens, and 64 can be looked through"
    )
    page.close()
