"""Screenshots of the pages for the documentation, at 1,440 pixels.

They show tiny untrained models unless GROUNDLING_RUNS is a folder with runs of real ones: `base` with checkpoints and
samples, and some chat models:

    GROUNDLING_RUNS=runs GROUNDLING_SCREENSHOTS=docs/images pytest tests/serve/browser/test_pictures.py
"""

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from servekit import Served, serving

pytestmark = pytest.mark.slow
MAX_BYTES = 150_000
Picture = Callable[[Page, str], None]
PROMPTS = ("What say you to the duke?", "What news, my lord?", "Where is the king?")


@pytest.fixture(scope="module")
def server(models: dict[str, Path], finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    places = ("--prompts", folder / "prompts.jsonl", "--rankings", folder / "kept.sqlite", "--safety", "off")
    if real := os.environ.get("GROUNDLING_RUNS"):
        runs = Path(real).resolve()
        models_served = [f"{bundle.parent.name}={bundle.parent}" for bundle in sorted(runs.glob("*/bundle"))]
    else:
        runs = finished_run.parent
        models_served = [f"base={models['base']}", f"sft={models['talker']}"]
    with serving(*models_served, *places, "--runs", runs) as served:
        yield served


@pytest.fixture
def picture(tmp_path: Path) -> Picture:
    """Save a screenshot as a small PNG."""
    folder = Path(os.environ.get("GROUNDLING_SCREENSHOTS") or tmp_path)

    def keep(page: Page, name: str) -> None:
        image = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
        path = folder / f"page_{name}.png"
        image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        assert image.width == 1440
        assert path.stat().st_size < MAX_BYTES

    return keep


def test_chat(page_at: Callable[..., Page], picture: Picture) -> None:
    page = page_at("/")
    page.set_viewport_size({"width": 1440, "height": 830})
    page.wait_for_selector("#models input")
    for label in page.locator("#models label").all():
        label.locator("input").check()
    page.locator(".settings summary").click()
    page.fill("#max_tokens", "72")
    page.fill("#seed", os.environ.get("GROUNDLING_SEED", "9"))
    page.locator(".settings summary").click()
    page.fill("#message", "Where is the king?")
    page.press("#message", "Enter")
    expect(page.locator("#stop")).to_be_hidden()
    page.evaluate("scrollTo(0, 0)")
    page.locator(".columns .message").nth(1).locator(".token").nth(6).hover()
    expect(page.locator("#token-info")).to_be_visible()
    picture(page, "chat")


def test_xray(page_at: Callable[..., Page], picture: Picture) -> None:
    page = page_at("/xray")
    page.set_viewport_size({"width": 1440, "height": 1640})
    expect(page.locator(".lens td").first).to_be_visible()
    page.fill("#text", "Good my lord, I am a poor man. Good my lord, I am a")
    page.click("#analyze")
    expect(page.locator(".panel[aria-busy]")).to_have_count(0)
    page.locator(".head").nth(int(os.environ.get("GROUNDLING_HEAD", "2"))).click()
    page.mouse.move(0, 0)
    picture(page, "xray")


def test_rank(page_at: Callable[..., Page], picture: Picture) -> None:
    page = page_at("/rank")
    page.set_viewport_size({"width": 1440, "height": 720})
    page.get_by_label("Rater name").fill("Hippolyta")
    page.get_by_label("Rater name").press("Tab")
    expect(page.locator(".reply:not([disabled])")).to_have_count(2)
    page.locator(".reply").first.click()
    expect(page.locator("#result")).to_contain_text("Saved")
    expect(page.locator(".reply:not([disabled])")).to_have_count(2)
    page.locator(".reply").nth(1).hover()
    picture(page, "rank")


def test_train(page_at: Callable[..., Page], server: Served, picture: Picture) -> None:
    names = [run["name"] for run in server.ask("GET", "/v1/groundling/runs")[1]["data"]]
    page = page_at(f"/train#{','.join(map(quote, names[:2]))}")
    page.set_viewport_size({"width": 1440, "height": 1250})
    expect(page.locator("#main-chart .line").first).to_be_visible()
    expect(page.locator("#charts .line").first).to_be_visible()
    page.mouse.move(0, 0)
    picture(page, "train")
