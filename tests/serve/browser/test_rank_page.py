"""The comparison page, by mouse, keyboard and screen reader."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from groundling.align.preferences.judgement import SKIP, Judgement, tie_of
from groundling.align.preferences.store import Rankings
from servekit import Served, serving

sys.path.insert(0, str(Path(__file__).parents[2] / "align"))
from stagekit import write_rankings

pytestmark = pytest.mark.slow
NAMES = ("yorick", "ophelia")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rank")


@pytest.fixture(scope="module")
def server(models: dict[str, Path], folder: Path) -> Iterator[Served]:
    """Two models, and our own prompts; the first looks like HTML."""
    prompts = ["[img src=x onerror='alert(1)']", *(f"Speak, {n}." for n in range(60))]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    models_served = [f"{name}={models['talker']}" for name in NAMES]
    places = ("--rankings", folder / "kept.sqlite", "--prompts", folder / "prompts.jsonl", "--runs", folder / "runs")
    with serving(*models_served, *places, "--safety", "off") as served:
        yield served


@pytest.fixture
def opened(page_at: Callable[..., Page], request: pytest.FixtureRequest) -> Callable[..., Page]:
    """Open the page for a rater named after the test, and wait for a question."""

    def open_page(n: int = 2, **how: object) -> Page:
        page = page_at("/rank", **how)
        page.get_by_label("Rater name").fill(request.node.name)
        page.get_by_label("Rater name").press("Tab")
        page.get_by_label("Replies", exact=True).select_option(str(n))
        expect(page.locator(".reply:not([disabled])")).to_have_count(n)
        return page

    return open_page


def kept(folder: Path, rater: str) -> list[Judgement]:
    with Rankings(folder / "kept.sqlite") as rankings:
        return [row for row in rankings if row.rater == rater]


def texts(page: Page) -> list[str]:
    return [text.strip() for text in page.locator(".reply .text").all_text_contents()]


def test_a_click_saves_the_answer_and_reveals_the_models(opened, folder, request) -> None:
    page = opened(4)
    assert not any(name in page.locator("#question").inner_text() for name in NAMES)
    shown, prompt = texts(page), page.locator("#prompt").inner_text()
    page.locator(".reply").nth(2).click()
    expect(page.locator("#result")).to_contain_text("Saved: the third reply, from")
    expect(page.locator("#prompt")).not_to_have_text(prompt)
    (row,) = kept(folder, request.node.name)
    (best,) = row.choice[0]
    assert row.candidates[best].text.strip() == shown[2]
    assert [row.candidates[number].text.strip() for number in row.shown] == shown
    assert row.messages[-1].content == prompt
    expect(page.locator("#result b").first).to_have_text(row.candidates[best].model)
    expect(page.locator("#progress")).to_contain_text("1 answer by")
    expect(page.locator("#progress")).to_contain_text("1 of 61 prompts from prompts.jsonl")


@pytest.mark.parametrize("twice", ["double click", "key pressed twice"])
def test_one_answer_at_a_time(opened, folder, request, twice: str) -> None:
    """On a phone, in the dark theme; the next question is already prefetched."""
    page = opened(2, width=360, theme="dark")
    page.wait_for_timeout(300)  # for the prefetch
    if twice == "double click":
        page.locator(".reply").first.dblclick()
    else:
        page.locator("#question-title").press("s")
        page.locator("#question-title").press("s")
    expect(page.locator("#result")).to_contain_text("Saved")
    expect(page.locator(".reply:not([disabled])")).to_have_count(2)
    assert len(kept(folder, request.node.name)) == 1
    page.get_by_role("button", name="Skip").click()
    expect(page.locator("#progress")).to_contain_text("2 answers by")


def test_a_form_field_keeps_the_focus(opened, folder, request) -> None:
    page = opened(2)
    page.locator("#custom summary").click()
    page.route(re.compile(r"/rankings$"), lambda route: (page.wait_for_timeout(200), route.continue_()))
    page.get_by_role("button", name="Skip").click()
    page.get_by_label("Your prompt").focus()
    expect(page.locator("#result")).to_contain_text("Saved")
    expect(page.locator(".reply:not([disabled])")).to_have_count(2)
    page.keyboard.type("1st")
    expect(page.get_by_label("Your prompt")).to_have_value("1st")
    assert len(kept(folder, request.node.name)) == 1


def test_a_restarted_server_gets_new_questions(browser, server) -> None:
    """Neither the question on the page nor the prefetched one is valid any more."""
    page = browser.new_page()
    told: list[str] = []
    page.on("response", lambda r: told.append(r.json()["messages"][-1]["content"]) if "/next?" in r.url else None)
    page.goto(f"{server.url}/rank")
    page.get_by_label("Rater name").fill("of-another-server")
    page.get_by_label("Rater name").press("Tab")
    expect(page.locator(".reply:not([disabled])")).to_have_count(2)
    page.wait_for_timeout(300)
    assert len(told) == 2, "the shown and the prefetched question"
    gone = {"error": {"message": "not known", "type": "x", "param": None, "code": "no_question"}}
    page.route(re.compile(r"/rankings$"), lambda route: route.fulfill(status=404, json=gone), times=1)
    page.locator(".reply").first.click()
    expect(page.locator("#result")).to_contain_text("not saved")
    expect(page.locator(".reply:not([disabled])")).to_have_count(2)
    assert page.locator("#prompt").inner_text() not in told[:2]
    page.close()


def test_training_is_polled_again_after_a_failed_request(page_at) -> None:
    page = page_at("/rank")
    facts = {"state": "running", "model": "ophelia", "run": "reward-1", "error": None, "step": 3, "loss": 0.5}
    facts |= {"accuracy": None, "share": 0.5, "seconds": 2.0, "losses": [[1, 0.7], [3, 0.5]]}
    answers = ["abort", "answer"]

    def answer(route: Route) -> None:
        if answers and answers.pop(0) == "abort":
            route.abort("aborted")
        else:
            route.fulfill(json=facts)

    page.route("**/rankings/train", answer)
    page.clock.install()
    page.reload()
    expect(page.locator("#training-status")).to_contain_text("cannot be reached", use_inner_text=False)
    page.clock.run_for(2100)
    expect(page.locator("#training-status")).to_have_text("Step 3, loss 0.500 · 2 s · reward-1")
    facts["step"] = 4
    page.locator("#training-status a").focus()
    page.clock.run_for(1100)
    expect(page.locator("#training-status")).to_contain_text("Step 4")
    expect(page.locator("#training-status a")).to_be_focused()
    assert page.locator("#training-status").get_attribute("role") is None, "not announced each second"
    facts["state"] = "stopped"
    page.locator("#stop").focus()
    page.clock.run_for(1100)
    expect(page.locator("#training-status")).to_have_text("Stopped: reward-1")
    expect(page.locator("#stop")).not_to_be_focused()
    assert page.evaluate("document.activeElement.id") in ("train", "base")


def test_keyboard_shortcuts_except_in_form_fields(opened, folder, request) -> None:
    page = opened(2)
    body = page.locator("#question-title")  # a focused select handles keys itself
    for key, said in (("2", "the second reply"), ("t", "tie between"), ("s", "skipped")):
        prompt = page.locator("#prompt").inner_text()
        body.press(key)
        expect(page.locator("#result")).to_contain_text(said)
        expect(page.locator("#prompt")).not_to_have_text(prompt)
        expect(page.locator(".reply:not([disabled])")).to_have_count(2)
    page.locator("#custom summary").click()
    page.get_by_label("Your prompt").press_sequentially("1 t s 2")
    body.press("3")  # there are two
    body.press("Control+1")
    page.get_by_label("Keyboard shortcuts").uncheck()
    body.press("1")
    page.wait_for_timeout(300)
    rows = kept(folder, request.node.name)
    assert [row.choice for row in rows[1:]] == [tie_of(2), SKIP]
    assert len(rows) == 3
    assert rows[0].choice[0] == (rows[0].shown[1],)


def test_a_custom_prompt(opened, folder, request) -> None:
    page = opened(2)
    page.locator("#custom summary").click()
    page.get_by_label("Your prompt").fill("What news?")
    page.get_by_role("button", name="Generate replies").click()
    expect(page.locator("#prompt")).to_have_text("What news?")
    expect(page.locator(".reply:not([disabled])")).to_have_count(2)
    page.get_by_role("button", name="Skip").click()
    expect(page.locator("#result")).to_contain_text("Saved")
    assert kept(folder, request.node.name)[0].messages[-1].content == "What news?"


def test_an_answer_is_saved_once_when_its_response_is_lost(opened, folder, request) -> None:
    """The server saves the answer, but the response is lost."""
    page = opened(2)
    lost: list[bool] = []

    def lose_the_first(route: Route) -> None:
        if route.request.method == "POST" and not lost:
            lost.append(True)
            route.fetch()
            route.abort("aborted")
        else:
            route.continue_()

    page.route(re.compile(r"/rankings$"), lose_the_first)
    page.locator(".reply").first.click()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    assert len(kept(folder, request.node.name)) == 1
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#result")).to_contain_text("Saved: the first reply, from")
    assert len(kept(folder, request.node.name)) == 1


def test_text_from_models_and_users_is_not_parsed_as_html(page_at, folder) -> None:
    """Of prompts, replies and rater names."""
    page = page_at("/rank")
    question = {
        "question": "x",
        "messages": [{"role": "user", "content": HOSTILE}],
        "replies": [{"place": 1, "text": HOSTILE}, {"place": 2, "text": ""}],
    }
    page.route(re.compile(r"/next\?"), lambda route: route.fulfill(json=question))
    expect(page.locator("#prompt")).to_have_text("Enter a rater name below to start.")
    page.get_by_label("Rater name").fill(HOSTILE)
    page.get_by_label("Rater name").press("Tab")
    expect(page.locator("#prompt")).to_have_text(HOSTILE)
    expect(page.locator(".reply .text").first).to_have_text(HOSTILE)
    expect(page.locator(".reply .text").nth(1)).to_have_text("(empty reply)")
    expect(page.locator("#progress")).to_contain_text(HOSTILE)
    assert page.locator("img").count() == 0


def test_shortcuts_work_after_enter_in_the_rater_field(page_at, folder, request) -> None:
    page = page_at("/rank")
    page.keyboard.type(request.node.name)  # the field has the focus
    page.keyboard.press("Enter")
    expect(page.locator("#question-title")).to_be_focused()
    page.wait_for_timeout(450)  # new questions ignore input for 400 ms
    page.keyboard.press("1")
    expect(page.locator("#result")).to_contain_text("Saved")
    assert len(kept(folder, request.node.name)) == 1


def test_keyboard_and_screen_reader(opened) -> None:
    page = opened(2)
    expect(page.locator("#announcer")).to_contain_text("Reply 1:")
    page.locator(".reply").first.focus()
    page.keyboard.press("Tab")
    expect(page.locator(".reply").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
    expect(page.locator("#question-title")).to_be_focused()


def test_export(opened, folder) -> None:
    page = opened(2)
    page.locator(".reply").first.click()
    expect(page.locator("#result")).to_contain_text("Saved")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    rows = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    with Rankings(folder / "kept.sqlite") as rankings:
        assert [json.loads(row) for row in rows] == [row.to_json() for row in rankings]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1440])
def test_accessibility(opened, axe, keep_picture, width: int, theme: str) -> None:
    page = opened(4, width=width, theme=theme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    axe(page)
    keep_picture(page, f"rank-{width}-{theme}")


def test_training_a_reward_model(opened, folder, axe) -> None:
    """Runs last: it adds many answers to the file."""
    page = opened(2)
    expect(page.get_by_role("button", name="Train reward model")).to_be_disabled()
    write_rankings(folder / "kept.sqlite")
    page.reload()
    page.get_by_role("button", name="Train reward model").click()
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    expect(page.locator("#training-status")).to_contain_text("Step", timeout=60_000)
    expect(page.locator("#training-status")).to_contain_text("Done in", timeout=120_000)
    expect(page.locator("#training-chart .line")).to_have_count(1)
    axe(page)
    page.get_by_role("link", name="reward-1").click()
    expect(page.get_by_role("checkbox", name="reward-1")).to_be_checked()
    expect(page.locator("#main-chart .line").first).to_be_visible()
