"""The X-ray page: attention, logit lens, next token, checkpoints, and two models side by side."""

import base64
import math
from collections.abc import Callable
from contextlib import suppress

import pytest
from playwright.sync_api import Error, Page, Route, expect

pytestmark = pytest.mark.slow
Open = Callable[..., Page]


def analyze(page: Page, model: str, text: str, number: int = 0) -> None:
    page.wait_for_selector(".lens td")
    page.fill("#text", text)
    page.select_option(f"#model-{number}", model)
    page.click("#analyze")
    expect(page.locator(".panel[aria-busy]")).to_have_count(0)


def test_all_views_show_the_text(page_at: Open) -> None:
    page = page_at("/xray")
    analyze(page, "pairs", "the king and the fool")
    tokens = page.locator(".tokens .token")
    assert "".join(tokens.all_text_contents()) == "the king and the fool"
    expect(page.locator(".head")).to_have_count(4)
    expect(page.locator(".lens tbody tr")).to_have_count(3)
    assert page.locator(".lens thead th").count() == tokens.count() + 1
    before = page.locator(".selected-head canvas").evaluate("node => node.toDataURL()")
    page.locator(".head").nth(0).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".selected-head h3")).to_contain_text("layer 2, head 2")
    expect(page.locator(".head").nth(3)).to_be_focused()
    assert page.locator(".selected-head canvas").evaluate("node => node.toDataURL()") != before
    tokens.nth(2).hover()
    expect(tokens.nth(2)).to_have_attribute("aria-pressed", "true")
    assert page.locator(".arcs path").count() >= 1
    page.locator(".lens td").first.hover()
    expect(page.locator(".panel .caption").last).to_contain_text("after layer 2")
    page.locator(".maps summary").click()
    expect(page.locator(".scores tbody tr")).to_have_count(4)


def shares(page: Page) -> list[float]:
    """Lengths of the bars, percent."""
    return page.locator(".bars .bar > span").evaluate_all("bars => bars.map((bar) => parseFloat(bar.style.width))")


def drag(page: Page, name: str, value: str) -> None:
    page.locator(f"#{name}-0").evaluate(
        "(node, value) => { node.value = value; node.dispatchEvent(new Event('input')); }", value
    )


def test_the_bars_follow_the_sliders_without_a_request(page_at: Open, server) -> None:
    page = page_at("/xray")
    analyze(page, "pairs", "the king and the")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    plain = shares(page)
    body = {"model": "pairs", "prompt": "the king and the", "max_tokens": 1, "logprobs": 14}
    likely = server.ask("POST", "/v1/completions", body)[1]["choices"][0]["logprobs"]["top_logprobs"][0]
    ours = sorted((100 * math.exp(logprob) for logprob in likely.values()), reverse=True)[:14]  # the sampled one, too
    assert plain[: len(ours)] == pytest.approx(ours, abs=0.006), "the server's log-probabilities"
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


def test_the_checkpoint_slider(page_at: Open) -> None:
    page = page_at("/xray")
    analyze(page, "tale", "the king")
    expect(page.locator(".slider output")).to_contain_text("step 6")
    page.locator(".head").nth(3).click()
    last = page.locator(".bars").inner_text()
    page.locator("#step-0").press("ArrowLeft")
    expect(page.locator(".slider output")).to_contain_text("step 3")
    expect(page.locator(".panel[aria-busy]")).to_have_count(0)
    assert page.locator(".bars").inner_text() != last
    expect(page.locator(".selected-head h3")).to_contain_text("layer 2, head 2"), "the selected head stays"
    page.get_by_role("button", name="Play").click()
    expect(page.locator(".slider output")).to_contain_text("step 6")


def slide(page: Page, *values: int) -> None:
    for value in values:
        drag(page, "step", str(value))


def test_dragging_the_slider_sends_one_request(page_at: Open) -> None:
    page = page_at("/xray")
    analyze(page, "tale", "the king")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    slide(page, 0, 1, 0, 1, 0)
    expect(page.locator(".slider output")).to_contain_text("step 3")
    expect(page.locator(".panel[aria-busy]")).to_have_count(0)
    assert len(asked) == 1


def test_playing_can_be_stopped_and_keeps_the_focus(page_at: Open) -> None:
    page = page_at("/xray", width=360, theme="dark")
    analyze(page, "tale", "the king")
    said = page.locator("#announcer p").count()
    page.locator(".head").nth(2).click()
    press = "button => button.click()"  # keeps the focus at the head
    page.get_by_role("button", name="Play").evaluate(press)
    expect(page.locator(".slider output")).to_contain_text("step 3")
    page.get_by_role("button", name="Stop").evaluate(press)
    page.wait_for_timeout(600)
    expect(page.locator(".slider output")).to_contain_text("step 3")
    page.get_by_role("button", name="Play").evaluate(press)
    expect(page.locator("#announcer")).to_contain_text("Played to step 6")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    expect(page.locator(".head").nth(2)).to_be_focused()
    assert page.locator("#announcer p").count() == said + 1, "announced once, at the end"


def test_a_late_list_of_checkpoints_is_dropped(browser, server) -> None:
    page = browser.new_page()
    page.goto(f"{server.url}/xray")
    analyze(page, "base", "the king")
    held = []
    page.route("**/v1/groundling/checkpoints*", lambda route: held.append(route))
    page.select_option("#model-0", "tale")
    page.wait_for_timeout(100)
    page.click("#analyze")  # runs once the list is there
    page.select_option("#model-0", "pairs")
    expect(page.locator(".panel[aria-busy]")).to_have_count(0)
    with suppress(Error):  # the page may have aborted it
        held[0].continue_()
    page.wait_for_timeout(200)
    expect(page.locator(".slider")).to_be_hidden()
    tokens = page.locator(".tokens .token")
    assert tokens.count() < len("the king") == len("".join(tokens.all_text_contents()))
    page.close()


def test_a_restarted_server_with_other_models(browser, server) -> None:
    page = browser.new_page()
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(f"{server.url}/xray")
    analyze(page, "base", "the king")
    known = server.ask("GET", "/v1/models")[1]
    known["data"] = [model for model in known["data"] if model["id"] == "pairs"]
    page.route("**/v1/models", lambda route: route.fulfill(json=known))
    gone = {"error": {"message": "there is no model 'base'", "type": "x", "param": None, "code": "model_not_found"}}
    page.route("**/v1/groundling/xray", lambda route: route.fulfill(status=404, json=gone), times=1)
    page.click("#analyze")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#model-0")).to_have_value("pairs")
    expect(page.locator(".lens td").first).to_be_visible()
    expect(page.locator(".error")).to_have_count(0)
    assert broken == []
    page.close()


def test_an_error_of_one_model_leaves_the_other(browser, server) -> None:
    """The other panel shows its results; stale results are hidden."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"{server.url}/xray")
    analyze(page, "base", "the king")
    page.click("#compare")
    page.select_option("#model-1", "pairs")
    page.fill("#text", "the king and the fool " * 4)
    page.click("#analyze")
    first, second = page.locator(".panel").nth(0), page.locator(".panel").nth(1)
    expect(first.locator(".error")).to_contain_text("the X-ray shows at most 64")
    expect(second.locator(".token").nth(8)).to_be_visible()
    expect(first.locator(".error")).to_be_visible()
    expect(second.locator(".error")).to_have_count(0)
    expect(first.locator(".maps, .bars, .lens").first).to_be_hidden()
    page.fill("#text", "the king")
    page.click("#analyze")
    expect(first.locator(".error")).to_have_count(0)
    expect(first.locator(".maps")).to_be_visible()
    page.close()


def test_tokens_are_one_tab_stop_and_label_the_arcs(page_at: Open) -> None:
    page = page_at("/xray")
    text = "the king and the fool did speak of love, so well and so long"
    analyze(page, "base", text)
    expect(page.locator(".token[tabindex='0']")).to_have_count(1)
    page.locator(".token[tabindex='0']").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".token").nth(len(text) - 2)).to_be_focused()
    expect(page.locator(".token[tabindex='0']")).to_have_count(1)
    expect(page.locator(".arcs text")).to_have_count(len(text))
    page.click("#compare")  # half the width: the selected token stays visible
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
    assert "attends to" in seen


def test_the_norms_of_the_residual_stream(page_at: Open, server) -> None:
    page = page_at("/xray", width=375, theme="dark")
    analyze(page, "pairs", "the king and the fool")
    body = {"model": "pairs", "prompt": "the king and the fool"}
    norms = server.ask("POST", "/v1/groundling/xray", body)[1]["norms"]
    means = [[sum(row) / len(row) for row in norms[name]] for name in ("stream", "attention", "mlp")]
    chart = page.locator(".norms")
    chart.locator("summary").click()
    expect(chart.locator("tbody tr")).to_have_count(3)
    rows = [row.locator("td").all_text_contents() for row in chart.locator("tbody tr").all()]
    assert rows[0][1:] == ["", ""], "the embeddings have no block output"
    assert [float(row[0]) for row in rows] == pytest.approx(means[0], rel=1e-3)
    assert [[float(row[n]) for row in rows[1:]] for n in (1, 2)] == [pytest.approx(one, rel=1e-3) for one in means[1:]]


def peaked(route: Route) -> None:
    """A response of a fully confident model: the strongest shades."""
    seen = route.fetch().json()
    n = len(seen["tokens"])
    first = base64.b64encode(bytes(255 * (s in (0, t)) for t in range(n) for s in range(t + 1))).decode()
    seen["attention"] = [[first] * seen["n_head"]] * seen["n_layer"]
    seen["lens"]["probabilities"] = [[[1.0, *row[1:]] for row in layer] for layer in seen["lens"]["probabilities"]]
    if seen["scores"]:
        seen["scores"] = {name: [[1.0] * seen["n_head"]] * seen["n_layer"] for name in seen["scores"]}
    route.fulfill(json=seen)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessibility(page_at: Open, axe, theme: str) -> None:
    page = page_at("/xray", theme=theme)
    page.route("**/v1/groundling/xray", peaked)
    analyze(page, "talker", "Who?")
    page.check("#as-chat")
    expect(page.locator(".token.structure").first).to_be_visible()
    page.click("#compare")
    page.select_option("#model-1", "pairs")
    drag(page, "k", "3")
    expect(page.locator(".panel[aria-busy]")).to_have_count(0)
    for summary in page.locator(".panel summary").all():
        summary.click()
    page.locator(".token.structure").first.hover()
    expect(page.locator(".token.structure").first).to_have_attribute("aria-pressed", "true")
    axe(page)


def test_two_models_side_by_side(page_at: Open) -> None:
    page = page_at("/xray")
    analyze(page, "base", "the king")
    page.click("#compare")
    expect(page.locator(".panel")).to_have_count(2)
    page.select_option("#model-1", "pairs")
    expect(page.locator(".panel[aria-busy]")).to_have_count(0)
    first, second = (page.locator(".panel").nth(n).locator(".token").count() for n in (0, 1))
    assert first == len("the king") > second
    page.click("#compare")
    expect(page.locator(".panel")).to_have_count(1)


def test_a_user_message_is_shown_with_its_template(page_at: Open) -> None:
    page = page_at("/xray")
    analyze(page, "talker", "Who?")
    page.check("#as-chat")
    expect(page.locator(".token.structure").first).to_have_text("<user>")


def test_a_text_beyond_the_context_is_an_error(page_at: Open, browser, server) -> None:
    page = browser.new_page()
    page.goto(f"{server.url}/xray")
    analyze(page, "base", "a" * 65)
    expect(page.locator(".panel .panel-error .error")).to_contain_text(
        "the text has 65 tokens, and the X-ray shows at most 64"
    )
    page.close()
