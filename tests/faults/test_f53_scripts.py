"""Row 53: what people and models say is text to a page, and no page may run anything but its own files."""

import re
from importlib import resources

import pytest

from groundling.serve.pages import PAGES
from servekit import Served

STATIC = resources.files("groundling.serve") / "static"
FORBIDDEN = [
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|createContextualFragment|setHTML",
    r"\beval\s*\(|new Function\b|setTimeout\s*\(\s*['\"`]|setInterval\s*\(\s*['\"`]",
    r"https?://(?!www\.w3\.org/)",
    r"javascript:",
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_may_run_only_its_own_files(server: Served, page: str) -> None:
    status, body, headers = server.ask("GET", page)
    assert status == 200
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    text = body.decode()
    assert "{{" not in text
    for script in re.findall(r"<script[^>]*>[^<]*</script>", text):
        assert re.fullmatch(r'<script type="module" src="/static/[\w.-]+\.js"></script>', script)
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)
    for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', text):
        assert server.ask("GET", path)[0] == 200, path


@pytest.mark.parametrize(
    "name", sorted(file.name for file in STATIC.iterdir() if file.name.endswith((".js", ".html", ".css")))
)
def test_no_file_makes_code_of_text(name: str) -> None:
    text = (STATIC / name).read_text(encoding="utf-8")
    for pattern in FORBIDDEN:
        assert not re.search(pattern, text), pattern


@pytest.mark.slow
def test_answers_are_never_pages(server: Served) -> None:
    body = {"model": "base", "prompt": "<img src=x onerror=alert(1)>", "echo": True, "max_tokens": 1}
    _, answer, headers = server.ask("POST", "/v1/completions", body)
    assert answer["choices"][0]["text"].startswith("<img")
    assert headers["content-type"] == "application/json"
    _, _, headers = server.ask("GET", "/<script>alert(1)</script>")
    assert headers["content-type"] == "application/json"
