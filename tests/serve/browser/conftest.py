"""Chromium on the pages of a real server with tiny models.

Without Chromium these tests are skipped, or fail if GROUNDLING_REQUIRE_BROWSER or CI is set.
"""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from groundling.storage import atomic
from servekit import Served, serving

AXE = ("4.11.0", "sha512-ilYanEU8vxxBexpJd8cWM4ElSQq4QctCLKih0TSfjIfCQTeyH/6zVrmIJfLPrKTKJRbiG+cfnZbQIjAlJmF1jQ==")
"""Version and npm integrity hash of axe-core."""


def missing(reason: str) -> None:
    if os.environ.get("GROUNDLING_REQUIRE_BROWSER") or os.environ.get("CI"):
        pytest.fail(f"the pages could not be tested: {reason}")
    pytest.skip(f"THE PAGES WERE NOT TESTED: {reason}")


@pytest.fixture(scope="module")  # no other event loop can run in this thread meanwhile
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        missing("no Chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(models, finished_run, tmp_path_factory) -> Iterator[Served]:
    """All tiny models, a run with checkpoints, and two safety rules."""
    folder = tmp_path_factory.mktemp("server")
    rule = '[[rule]]\nname = "oath"\nreason = "an oath"\naction = "block"\nwords = ["zounds"]\n'
    rule += '[[rule]]\nname = "vowel"\nreason = "it is an e"\naction = "redact"\nwhere = ["reply"]\npattern = "e"\n'
    (folder / "rules.toml").write_text(rule)
    words = (models["talker"], models["base"], models["pairs"], f"tale={finished_run}")
    with serving(*words, "--safety", folder / "rules.toml", "--runs", folder) as served:
        yield served


@pytest.fixture
def page_at(browser: Browser, server: Served) -> Iterator[Callable[..., Page]]:
    """Open a page: `page_at("/", width=1440, theme="light")`. Browser errors and warnings fail the test."""
    problems: list[str] = []
    contexts = []

    def open_page(path: str, width: int = 1440, theme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        contexts.append(context)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "requestfailed",
            lambda r: problems.append(f"{r.url}: {r.failure}") if "ERR_ABORTED" not in (r.failure or "") else None,
        )
        page.on("request", lambda r: None if r.url.startswith(server.url) else problems.append(f"asked {r.url}"))
        page.goto(server.url + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="session")
def axe_source() -> str:
    """Source of axe-core, from npm, cached."""
    version, expected = AXE
    folder = atomic.cache_folder() / "axe"
    package = folder / f"axe-core-{version}.tgz"
    if not package.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", f"axe-core@{version}", "--pack-destination", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            missing(f"axe-core could not be downloaded from npm: {error}")
    digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
    assert f"sha512-{digest}" == expected, f"unexpected hash of axe-core: sha512-{digest}"
    with tarfile.open(package) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.fixture
def axe(axe_source: str) -> Callable[[Page], None]:
    """Fail on accessibility violations."""

    def check(page: Page) -> None:
        page.evaluate(axe_source)
        found = page.evaluate("axe.run(document, { resultTypes: ['violations'], preload: false })")["violations"]
        violations = [{"rule": one["id"], "where": [node["target"] for node in one["nodes"]][:3]} for one in found]
        assert violations == [], json.dumps(violations, indent=1)

    return check


@pytest.fixture
def keep_picture(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Page, str], None]:
    """Save a screenshot, to GROUNDLING_SCREENSHOTS if set."""
    folder = Path(os.environ.get("GROUNDLING_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png") and None
