"""Row 37: a download is whole and right, or it is not there; what broke off goes on where it was."""

import email.utils
import hashlib
import threading
import time

import pytest
from flaky_server import CONTENT, FlakyServer, body, cut_after, hang, ignore_range, refuse, whole, without_length

from groundling.data import datasets
from groundling.errors import DataError
from groundling.storage import download

SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = download.RetryPolicy(timeout_s=0.5, attempts=3, first_pause_s=0.01, total_pause_s=3)
HTML = b"<!DOCTYPE html><html><body>Sign in to go on</body></html>".ljust(635)


@pytest.fixture
def server():
    with FlakyServer() as flaky:
        yield flaky


@pytest.fixture
def target(tmp_path):
    return tmp_path / "input.txt"


def get(server, target, retry=QUICK):
    download.download(server.url, target, SHA256, len(CONTENT), retry)


def part_of(target):
    return target.with_name("input.txt.part")


def test_a_good_server(server, target):
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == ["input.txt"]


def test_what_broke_off_goes_on_where_it_was(server, target):
    server.script = [cut_after(100_000), cut_after(70_000), whole]
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=170000-"]


def test_also_in_the_next_run(server, target):
    server.script = [cut_after(1000)] * 3 + [whole]
    with pytest.raises(DataError, match=r"broke off after 3,000 of 307,200 bytes \(attempt 3\)"):
        get(server, target)
    assert not target.exists()
    assert part_of(target).stat().st_size == 3000
    get(server, target)
    assert server.ranges[-1] == "bytes=3000-"
    assert target.read_bytes() == CONTENT


def test_a_server_that_knows_no_ranges_begins_again(server, target):
    part_of(target).write_bytes(CONTENT[:5000])
    server.script = [ignore_range]
    get(server, target)
    assert server.ranges == ["bytes=5000-"]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("n_bytes", [1, 5000, len(CONTENT), len(CONTENT) + 1])
def test_a_part_of_something_else_is_thrown_away(server, target, n_bytes):
    part_of(target).write_bytes(b"?" * n_bytes)
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.ranges[-1] is None


def test_a_whole_part_needs_no_server(server, target):
    part_of(target).write_bytes(CONTENT)
    get(server, target)
    assert server.ranges == []
    assert target.read_bytes() == CONTENT


def test_a_range_that_cannot_be_had_begins_again(server, target):
    part_of(target).write_bytes(CONTENT[:10])
    server.script = [refuse(416), whole]
    get(server, target)
    assert server.ranges == ["bytes=10-", None]


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_an_html_page_is_called_so(server, target, content_type):
    server.script = [body(HTML, content_type)]
    with pytest.raises(DataError, match="got an HTML page"):
        get(server, target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("data", [CONTENT[:-1] + b"?", CONTENT[:-1], CONTENT + b"?", b"", CONTENT * 2])
def test_another_file_is_refused_with_both_hashes(server, target, data):
    server.script = [body(data)]
    with pytest.raises(DataError, match=rf"not the expected file: .* expected 307,200 with {SHA256}"):
        get(server, target)
    assert list(target.parent.iterdir()) == []


def test_what_stood_there_stays_when_a_download_fails(server, target):
    target.write_text("old")
    server.script = [body(b"?" * len(CONTENT))]
    with pytest.raises(DataError):
        get(server, target)
    assert target.read_text() == "old"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server, target, status):
    server.script = [refuse(status), refuse(status), whole]
    get(server, target)
    assert len(server.ranges) == 3
    assert target.read_bytes() == CONTENT


@pytest.mark.slow
def test_pauses_double(server, target):
    server.script = [refuse(503)]
    begin = time.monotonic()
    with pytest.raises(DataError, match="HTTP 503"):
        get(server, target, download.RetryPolicy(attempts=4, first_pause_s=0.1))
    assert 0.7 <= time.monotonic() - begin < 60
    assert len(server.ranges) == 4


@pytest.mark.slow
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_kept_to(server, target, form):
    # A date has whole seconds: 2 s from now are at least 1.
    value = "1" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
    server.script = [refuse(429, ("Retry-After", value)), whole]
    begin = time.monotonic()
    get(server, target)
    assert time.monotonic() - begin >= 0.95


def test_too_long_a_wait_is_not_waited_for(server, target):
    server.script = [refuse(429, ("Retry-After", "3600"))]
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"HTTP 429 .*asks to wait 3600 s \(attempt 1\)"):
        get(server, target)
    assert time.monotonic() - begin < 600


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_repeated(server, target, status):
    server.script = [refuse(status)]
    with pytest.raises(DataError, match=f"HTTP {status}"):
        get(server, target)
    assert len(server.ranges) == 1


def test_a_server_that_hangs_is_left(server, target):
    server.script = [hang, whole]
    get(server, target, download.RetryPolicy(timeout_s=0.2, first_pause_s=0.01))
    assert len(server.ranges) == 2


def test_a_body_without_a_length_that_ends_early_is_continued(server, target):
    server.script = [without_length, whole]
    get(server, target)
    assert server.ranges == [None, "bytes=1000-"]
    assert target.read_bytes() == CONTENT


@pytest.mark.slow
@pytest.mark.parametrize("url", ["http://127.0.0.1:9/input.txt", "http://name.invalid/input.txt"])
def test_where_nobody_answers_it_says_so_soon(target, url):
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"(refused|Name|name|resolution).*\(attempt 3\)"):
        download.download(url, target, SHA256, len(CONTENT))
    assert time.monotonic() - begin < 100


def test_eight_that_ask_at_once_make_one_download(server, tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDLING_CACHE", str(tmp_path))
    source = datasets.DataSource(
        name="ours",
        title="",
        urls=(server.url,),
        package=datasets.SOURCES["tiny_shakespeare"].package,
        assemble=lambda members: b"",
        sha256=SHA256,
        n_bytes=len(CONTENT),
        licence="",
    )
    found = []
    threads = [threading.Thread(target=lambda: found.append(datasets.obtain(source, QUICK))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert found[0].read_bytes() == CONTENT
    assert len(server.ranges) == 1
