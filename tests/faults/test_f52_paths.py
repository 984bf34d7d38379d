"""Row 52: no name of a client's becomes a path, and no part of a file can be asked for."""

import pytest

from servekit import Served

pytestmark = pytest.mark.slow

PATHS = [
    "/static/..%2f..%2fcli.py",
    "/static/../../cli.py",
    "/static/%2e%2e/%2e%2e/cli.py",
    "/static//etc/passwd",
    "/static/%2fetc%2fpasswd",
    "/static/base.css%00.js",
    "/static/shell.html",
    "/static/",
    "/static/..",
    "/static/....//cli.py",
    "/..%5c..%5cetc",
]


@pytest.mark.parametrize("path", PATHS)
def test_nothing_but_the_assets_is_served(server: Served, path: str) -> None:
    status, _, _ = server.ask("GET", path)
    assert status in (400, 404)


@pytest.mark.parametrize("name", ["/etc/passwd", "../base", "base/../base", "..", "base\x00", "", "C:\\", "."])
def test_a_model_is_known_by_its_name(server: Served, name: str) -> None:
    status, answer, _ = server.ask("POST", "/v1/completions", {"model": name, "prompt": "a"})
    assert status in (400, 404)
    assert answer["error"]["param"] == "model"


def test_ranges_are_not_cut(server: Served) -> None:
    ranges = "bytes=" + ",".join(f"{n}-{n + 1}" for n in range(1000))
    status, body, _ = server.ask("GET", "/static/base.css", headers={"Range": ranges})
    assert (status, body) == (200, server.ask("GET", "/static/base.css")[1])
