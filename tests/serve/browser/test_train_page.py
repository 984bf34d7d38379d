"""The training page: live curves, cursors and tables, overlaid runs."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from servekit import Served, serving

pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=alert(1)>"
RUNGS = [("s1", 2.5, 2.5), ("s2", 2.51, None), ("s3", 2.4, 2.4)]


def rows(first: int, last: int, offset: float = 0.0) -> str:
    found = []
    for step in range(first, last):
        loss = 4 * math.exp(-step / 40) + 1 + offset
        row = {"step": step, "loss": loss, "lr_factor": 1 / step, "n_tokens": 64 * step, "train_s": step / 10}
        found.append(json.dumps({**row, "grad_norm": 1.0, "tokens_per_s": 640.0, "memory_mb": 9.0}))
        if step % 20 == 0:
            found.append(json.dumps({"step": step, "val_loss": loss + 0.1}))
    return "".join(row + "\n" for row in found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in ("live", "old", "group/ppo", "ladder"):
        (folder / name).mkdir(parents=True)
    (folder / "live/metrics.jsonl").write_text(rows(1, 101))
    (folder / "live/.lock.pid").write_text(str(os.getpid()))
    (folder / "old/metrics.jsonl").write_text(rows(1, 61, 1) + json.dumps({"step": 60, "sample": HOSTILE}) + "\n")
    (folder / "old/summary.json").write_text(json.dumps({"reason": "finished"}))
    steps = [{"step": n, "reward": n / 5, "kl": n / 9, "entropy": 3.0, "seconds": 2.0} for n in range(1, 11)]
    (folder / "group/ppo/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    (folder / "group/ppo/env.json").write_text(json.dumps({"stage": "ppo"}))
    rungs = [
        {"rung": name, "adds": "a head", "val_loss": ours, "val_loss_random_batches": ours, "lecture_val_loss": theirs}
        for name, ours, theirs in RUNGS
    ]
    (folder / "ladder/ladder.json").write_text(json.dumps({"rungs": rungs}))
    return folder


@pytest.fixture(scope="module")
def server(models: dict[str, Path], folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    kept = tmp_path_factory.mktemp("kept") / "kept.sqlite"
    with serving(models["base"], "--runs", folder, "--rankings", kept, "--safety", "off") as served:
        yield served


def opened(page_at: Callable[..., Page], *names: str, **how: object) -> Page:
    page = page_at(f"/train#{','.join(names)}".replace("group/", "group%2F"), **how)
    for name in names:
        expect(page.get_by_role("checkbox", name=re.compile("^" + name.replace("/", ".")))).to_be_checked()
    return page


def figure(page: Page, title: str):
    return page.locator("figure.chart").filter(has=page.locator(".chart-title", has_text=re.compile(f"^{title}$")))


def test_a_live_run_is_selected_and_updates(page_at, folder: Path) -> None:
    page = page_at("/train")
    expect(page.get_by_role("checkbox", name="live")).to_be_checked()
    expect(page.locator("#run-count")).to_have_text("4 runs, 1 live")
    readout = figure(page, "Loss").locator(".chart-readout")
    expect(readout).to_contain_text("1.341")
    before = figure(page, "Loss").locator("path.raw").get_attribute("d")
    with (folder / "live/metrics.jsonl").open("a") as file:
        file.write(rows(101, 301) + '{"step": 301, "lo')
    expect(readout).to_contain_text("live 1.00", timeout=5000)
    after = figure(page, "Loss").locator("path.raw").get_attribute("d")
    assert after is not None
    assert before is not None
    assert (before.count("L"), after.count("L")) == (99, 299)
    (folder / "live/metrics.jsonl").write_text(rows(1, 101))  # restarted
    expect(readout).to_contain_text("1.341", timeout=5000)
    again = figure(page, "Loss").locator("path.raw").get_attribute("d")
    assert again == before


def test_a_hidden_page_does_not_poll(page_at) -> None:
    page = opened(page_at, "live")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert 1 <= len([url for url in asked if "metrics" in url]) <= 4
    page.evaluate(
        """() => { Object.defineProperty(document, "hidden", { value: true, configurable: true });
                   document.dispatchEvent(new Event("visibilitychange")); }"""
    )
    page.wait_for_timeout(1200)
    asked.clear()
    page.wait_for_timeout(2000)
    assert asked == []
    page.evaluate(
        """() => { Object.defineProperty(document, "hidden", { value: false, configurable: true });
                   document.dispatchEvent(new Event("visibilitychange")); }"""
    )
    page.wait_for_timeout(1500)
    assert any("metrics" in url for url in asked)


TRIGGER_POLL = "() => document.dispatchEvent(new Event('visibilitychange'))"


def trigger_poll(page: Page) -> None:
    """Make the page refresh the list of runs."""
    for _ in range(6):
        page.evaluate(TRIGGER_POLL)
        page.wait_for_timeout(60)


def test_updates_keep_focus_and_scroll_position(page_at, folder: Path) -> None:
    """On a phone: updates do not scroll back to the list."""
    page = opened(page_at, "live", width=360, theme="dark")
    box = page.get_by_role("checkbox", name=re.compile("^old"))
    box.check()
    expect(figure(page, "Loss").locator(".line")).to_have_count(4)
    node = box.element_handle()
    page.evaluate("scrollTo({ top: document.body.scrollHeight, behavior: 'instant' })")
    before = page.evaluate("scrollY")
    assert before > 300
    with (folder / "live/metrics.jsonl").open("a") as file:
        file.write(rows(101, 121))
    trigger_poll(page)
    expect(page.locator(".runs .facts").first).to_contain_text("step 120")
    assert page.evaluate("scrollY") == before
    assert node.evaluate("node => node.isConnected && document.activeElement === node")
    (folder / "live/metrics.jsonl").write_text(rows(1, 101))


def test_a_run_named_in_the_url_is_awaited(page_at, folder: Path) -> None:
    page = page_at("/train#reward-9")
    expect(page.locator("#empty")).to_have_text("reward-9: no metrics yet; this page updates itself.")
    assert page.locator(".runs input:checked").count() == 0, "no other run is selected"
    try:
        (folder / "reward-9").mkdir()
        (folder / "reward-9/metrics.jsonl").write_text(rows(1, 5))
        trigger_poll(page)
        expect(page.get_by_role("checkbox", name=re.compile("^reward-9"))).to_be_checked()
        expect(figure(page, "Loss").locator(".line").first).to_be_visible()
    finally:
        shutil.rmtree(folder / "reward-9")


def test_runs_are_overlaid_and_remembered(page_at) -> None:
    page = opened(page_at, "live", "old")
    expect(figure(page, "Loss").locator(".line")).to_have_count(4)
    tints = figure(page, "Loss").locator(".raw").evaluate_all("all => all.map((one) => getComputedStyle(one).stroke)")
    assert len(set(tints)) == 2
    page.get_by_role("checkbox", name=re.compile("^old")).uncheck()
    expect(figure(page, "Loss").locator(".line")).to_have_count(2)
    assert page.url.endswith("#live")
    page.get_by_role("checkbox", name=re.compile("^group.ppo")).check()
    expect(figure(page, "Reward").locator(".line")).to_have_count(1)
    page.goto("about:blank")
    page.go_back()
    expect(page.get_by_role("checkbox", name=re.compile("^group.ppo"))).to_be_checked()


def test_the_training_loss_estimate_is_drawn_with_the_losses(page_at, folder: Path) -> None:
    """As crosses in the loss chart, not as a chart of its own."""
    (folder / "both").mkdir()
    both = [{"step": step, "val_loss": 2.0, "train_loss": 1.5} for step in (20, 40)]
    (folder / "both/metrics.jsonl").write_text(rows(1, 61) + "".join(json.dumps(row) + "\n" for row in both))
    try:
        page = opened(page_at, "both")
        expect(figure(page, "Loss").locator(".dot.cross")).to_have_count(2)
        expect(figure(page, "Loss").locator(".chart-readout")).to_contain_text("both, training estimate 1.5")
        expect(figure(page, "train loss")).to_have_count(0)
    finally:
        shutil.rmtree(folder / "both")


def test_every_metric_is_drawn(page_at) -> None:
    page = opened(page_at, "group/ppo")
    for title in ("Reward", "KL", "Entropy"):
        expect(figure(page, title).locator(".line")).to_have_count(1)
    page.locator("#more summary").first.click()
    expect(figure(page, "seconds").locator(".line")).to_have_count(1)
    expect(figure(page, "Loss")).to_have_count(0)


def test_a_chart_has_a_keyboard_cursor_and_a_table(page_at) -> None:
    page = opened(page_at, "old")
    chart = figure(page, "Learning rate")
    slider = chart.get_by_role("slider")
    slider.focus()
    slider.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "step 1: old 1")
    slider.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "step 2: old 0.5")
    expect(figure(page, "Loss").locator(".where")).to_have_text("step 2")
    slider.press("End")
    expect(slider).to_have_attribute("aria-valuetext", "step 60: old 0.01667")
    slider.press("Escape")
    expect(chart.locator(".where")).to_have_text("last")
    description = chart.locator("svg desc").text_content()
    assert description == "old: from 1 at step 1 to 0.01667 at step 60"
    chart.locator("summary").click()
    cells = chart.get_by_role("row").all_text_contents()
    assert (cells[0], cells[1], cells[-1]) == ("stepold", "11", "600.01667")
    assert 20 <= len(cells) <= 42


def test_x_axes_and_log_scale(page_at) -> None:
    page = opened(page_at, "old", "group/ppo")
    slider = figure(page, "Loss").get_by_role("slider")
    expect(slider).to_have_attribute("aria-valuemax", "60")
    page.get_by_label("X axis", exact=True).select_option("n_tokens")
    expect(slider).to_have_attribute("aria-valuemax", str(60 * 64))
    expect(page.locator("#empty")).to_have_text("group/ppo: no tokens recorded; not drawn.")
    page.get_by_label("X axis", exact=True).select_option("train_s")
    expect(slider).to_have_attribute("aria-valuemax", "6")
    expect(figure(page, "Reward").get_by_role("slider")).to_have_attribute("aria-valuemax", "20")
    straight = figure(page, "Loss").locator(".raw").get_attribute("d")
    page.get_by_label("Log scale").check()
    expect(figure(page, "Loss").locator(".raw")).not_to_have_attribute("d", straight or "")
    assert "NaN" not in (figure(page, "Loss").locator(".raw").get_attribute("d") or "NaN")


def test_the_ladder_is_compared_with_the_lecture(page_at) -> None:
    page = opened(page_at, "ladder")
    chart = figure(page, "Ladder")
    expect(chart.locator(".dot.diamond")).to_have_count(2)
    expect(chart.locator(".dot.cross")).to_have_count(3)
    chart.locator("summary").click()
    expect(chart.get_by_role("row", name="s2")).to_have_text("s22.512.51")
    expect(chart.get_by_role("row", name="s3")).to_have_text("s32.42.42.4")


def test_two_ladders_share_their_rungs(page_at, folder: Path) -> None:
    """Aligned by name, not by position; the lecture is drawn once."""
    (folder / "second").mkdir()
    rungs = [
        {"rung": n, "val_loss": loss, "lecture_val_loss": 2.5} for n, loss in (("s1", 2.6), ("s1b", 2.5), ("s3", 2.3))
    ]
    (folder / "second/ladder.json").write_text(json.dumps({"rungs": rungs}))
    try:
        page = opened(page_at, "ladder", "second")
        chart = figure(page, "Ladder")
        chart.locator("summary").click()
        heads = chart.get_by_role("columnheader").all_text_contents()
        assert heads.count("lecture") == 1
        found = {
            cells[0]: cells
            for cells in (row.locator("th, td").all_text_contents() for row in chart.get_by_role("row").all())
        }
        assert list(found)[1:] == ["s1", "s1b", "s2", "s3"]
        ours, theirs = (
            heads.index("ladder, full validation set"),
            heads.index("second, full validation set"),
        )
        assert [found[name][ours] for name in ("s1", "s1b", "s2", "s3")] == ["2.5", "", "2.51", "2.4"]
        assert [found[name][theirs] for name in ("s1", "s1b", "s2", "s3")] == ["2.6", "2.5", "", "2.3"]
    finally:
        shutil.rmtree(folder / "second")


def test_a_long_run_is_summed_and_smoothed_like_a_short_one(page_at, folder: Path) -> None:
    """9,000 steps: every 50th takes 51 s with a gradient norm of 51, all others 1 s and 1."""
    (folder / "long").mkdir()
    peaks = [51 if step % 50 == 0 else 1 for step in range(1, 9001)]
    lines = [json.dumps({"step": step, "seconds": n, "grad_norm": n, "kl": -1.0}) for step, n in enumerate(peaks, 1)]
    lines.insert(100, json.dumps({"step": 100, "loss": math.nan}))
    (folder / "long/metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    try:
        page = opened(page_at, "long")
        expect(page.locator("#warning")).to_contain_text("long: 1 non-finite values")
        page.locator("#smoothing").fill("0.98")
        last = figure(page, "Gradient norm").locator(".chart-readout b")
        assert float(last.inner_text()) == pytest.approx(2, abs=0.75), "the mean of all steps, not of the peaks"
        page.get_by_label("X axis", exact=True).select_option("train_s")
        slider = figure(page, "Gradient norm").get_by_role("slider")
        expect(slider).to_have_attribute("aria-valuemax", str(sum(peaks)))
        page.get_by_label("Log scale").check()
        assert "NaN" not in (figure(page, "KL").locator(".line").get_attribute("d") or "NaN"), "nothing is above 0"
    finally:
        shutil.rmtree(folder / "long")


def test_a_sample_is_text(page_at) -> None:
    page = opened(page_at, "old")
    expect(page.locator(".sample p")).to_have_text(HOSTILE)
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1440])
def test_accessibility(page_at, axe, keep_picture, width: int, theme: str) -> None:
    page = opened(page_at, "live", "old", "group/ppo", "ladder", width=width, theme=theme)
    expect(figure(page, "Loss").locator(".line")).to_have_count(4)
    figure(page, "Loss").locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    axe(page)
    keep_picture(page, f"train-{width}-{theme}")
