"""Bodies in other encodings, and requests by other names of the host: which are taken, and what the others are told."""

import asyncio
import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest
from starlette.testclient import TestClient

from groundling.serve.app import create_app
from groundling.serve.config import ServeConfig
from groundling.serve.http import encodings
from groundling.serve.http.encodings import decompressed
from groundling.serve.http.errors import ApiError
from groundling.serve.http.middleware import host_name
from groundling.serve.state import ServerState
from groundling.system.logs import EventLog

N_BYTES = 30_000
"""More than the 10,000 arrays in one another that the parser of Python 3.13 reads."""
NO = "is not supported here; leave it out"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The application without models: what is told of a body that was read is another thing than that."""
    folder = tmp_path_factory.mktemp("app")
    config = ServeConfig(paths=("nothing",), safety="off", rankings=folder / "r.sqlite", max_body_bytes=N_BYTES)
    return create_app(ServerState(config), EventLog((folder / "log").open("w")))


@pytest.fixture(scope="module")
def client(app):
    return TestClient(app, base_url="http://localhost")


def post(client, raw: bytes, **headers: str) -> tuple[int, dict[str, Any], Any]:
    kind = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    answer = client.post("/v1/completions", content=raw, headers=kind)
    return answer.status_code, answer.json()["error"], answer.headers


READ = json.dumps({"model": "base", "prompt": "a", "dance": 1}).encode()
"""A body that is understood when "dance" is complained of."""


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the body is empty; it must be an object with model and prompt"),
        (b"null", "the body is null; it must be an object with model and prompt"),
        (b'{"a":}', "the body is not JSON: Expecting value, at character 5"),
        (b'{"a": "\n"}', "the body is not JSON: Invalid control character, at character 7"),
        (b'{"model": "caf\xe9"}', "the body is not UTF-8: byte 14 is 0xE9; send JSON in UTF-8"),
        (b"\xff\xfe{\0}\0", "the body is not UTF-8: byte 0 is 0xFF; send JSON in UTF-8"),
        (READ.decode().encode("utf-16-le"), "the body is not UTF-8: byte 1 is 0x00; send JSON in UTF-8"),
        (READ.decode().encode("utf-32-be"), "the body is not UTF-8: byte 0 is 0x00; send JSON in UTF-8"),
        ("{é".encode()[:2], "the body is not UTF-8: byte 1 is 0xC3; send JSON in UTF-8"),
        (b"[" * 20_000, "the body cannot be read: its arrays or objects are nested too deeply"),
        (b'{"n": ' + b"1" * 5000 + b"}", "the body cannot be read: it has a number of too many digits"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_a_body_that_cannot_be_read(client, raw, message):
    status, error, _ = post(client, raw)
    assert (status, error["message"], error["param"]) == (400, message, None)


@pytest.mark.parametrize(
    ("kind", "raw", "status", "message"),
    [
        ("application/json; charset=utf-8", READ, 400, f"dance {NO}"),
        ('application/json; Charset="UTF-8"', "é".encode(), 400,
         "the body is not JSON: Expecting value, at character 0"),
        ("application/json; charset=iso-8859-1", READ, 400, f"dance {NO}"),
        ("application/json; charset=latin-1", b'{"\xe9', 415,
         "the body is in 'latin-1', and byte 2 is 0xE9; send JSON in UTF-8"),
        ("application/json; charset=latin-1", '{"é'.encode(), 415,
         "the body is in 'latin-1', and byte 2 is 0xC3; send JSON in UTF-8"),
    ],
)  # fmt: skip
def test_another_charset_is_not_guessed(client, kind, raw, status, message):
    found, error, _ = post(client, raw, Content_Type=kind)
    assert (found, error["message"]) == (status, message)


@pytest.mark.parametrize(("kind", "came"), [("", "is missing"), ("Text/Plain; charset=utf-8", "is 'text/plain'")])
def test_a_body_is_called_json(client, kind, came):
    status, error, _ = post(client, READ, Content_Type=kind)
    assert (status, error["message"]) == (415, f"Content-Type {came}; send application/json")


@pytest.mark.parametrize("name", ["gzip", "x-gzip", "GZIP", "identity, gzip"])
def test_a_gzip_body_is_read(client, name):
    halves = gzip.compress(READ[:9]) + gzip.compress(READ[9:]) + b"\0" * 8
    for packed in (gzip.compress(READ), halves):
        status, error, _ = post(client, packed, Content_Encoding=name)
        assert (status, error["param"]) == (400, "dance")


@pytest.mark.parametrize("name", ["br", "zstd", "deflate", "compress", "gzip, gzip", "gzip, br", "rot13"])
def test_another_encoding_is_refused_by_name(client, name):
    status, error, headers = post(client, zlib.compress(READ), Content_Encoding=name)
    assert (status, error["code"]) == (415, "unsupported_encoding")
    assert error["message"] == f"Content-Encoding is '{name}'; send the body uncompressed, or compressed once with gzip"
    assert headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize("name", ["identity", "", " , identity"])
def test_no_encoding_has_a_name_too(client, name):
    assert post(client, READ, Content_Encoding=name)[1]["param"] == "dance"


PACKED = gzip.compress(READ)


@pytest.mark.parametrize(
    ("raw", "status", "words"),
    [
        (READ, 400, "the body is not gzip, as Content-Encoding says"),
        (PACKED[:-1], 400, "the gzip body is truncated; send all of it"),
        (PACKED[:12], 400, "the gzip body is truncated; send all of it"),
        (PACKED[:-5] + b"\xff" + PACKED[-4:], 400, "the body is not gzip"),
        (PACKED + b"more", 400, "the body is not gzip"),
        (gzip.compress(b'"caf\xe9"'), 400, "the body is not UTF-8: byte 4 is 0xE9"),
        (gzip.compress(b" " * 30_001), 413, "the body has more than 30,000 bytes when decompressed; send less"),
        (gzip.compress(b" " * 15_001) * 2, 413, "the body has more than 30,000 bytes when decompressed; send less"),
        (gzip.compress(b""), 400, "the body is empty"),
        (b"", 400, "the body is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_or_too_large_gzip_body(client, raw, status, words):
    found, error, _ = post(client, raw, Content_Encoding="gzip")
    assert found == status
    assert error["message"].startswith(words)


def test_a_body_at_the_limit_is_decompressed_and_a_bomb_is_not():
    """A thousand times its size: only as much is unpacked as could be taken."""
    assert decompressed(gzip.compress(b"a" * 10_000), 10_000) == b"a" * 10_000
    bomb = gzip.compress(b"\0" * 100_000_000)
    tracemalloc.start()
    with pytest.raises(ApiError, match="more than 10,000 bytes"):
        decompressed(bomb, 10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_the_address_has_words_too(client):
    asked = {
        "": ("rater is missing; give it in the address: ?rater=...", "rater"),
        "?rater=": ("rater is empty; it must have at least 1 character", "rater"),
        "?rater=a&n=x": ('n is "x"; it must be an integer', "n"),
        "?rater=a&n=" + "9" * 5000: (f'n is "{"9" * 40}"; it must be an integer', "n"),
        "?rater=a&n=9": ('n is "9"; it must be less than or equal to 4', "n"),
    }
    for query, told in asked.items():
        error = client.get(f"/v1/groundling/rankings/next{query}").json()["error"]
        assert (error["message"], error["param"]) == told


def test_many_small_members_are_decompressed_in_linear_time(monkeypatch):
    """What is handed to zlib is counted: all that is left, again for each member, was the square."""
    make, read = zlib.decompressobj, []

    class Counted:
        def __init__(self, wbits: int) -> None:
            self._reader = make(wbits=wbits)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._reader, name)

        def decompress(self, data: bytes, most: int) -> bytes:
            read.append(len(data))
            return self._reader.decompress(data, most)

    monkeypatch.setattr(encodings.zlib, "decompressobj", Counted)
    work = []
    for n in (1000, 2000):
        read.clear()
        assert decompressed(gzip.compress(b"a") * n, 10_000) == b"a" * n
        work.append(sum(read))
    assert work[1] < 2.2 * work[0]


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "allowed"),
    [
        ("POST", "/chat/completions", 404, "not_found", None),
        ("POST", "/v1/embeddings", 404, "not_found", None),
        ("GET", "/v1/completions", 405, "method_not_allowed", "POST"),
    ],
)
def test_an_unknown_path_is_pointed_to_the_api(client, method, path, status, code, allowed):
    """Most often `/v1` is missing in a client's base URL."""
    answer = client.request(method, path, content=READ, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.headers.get("allow")) == (status, allowed)
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["message"] == f"there is no {method} {path}; the API is under /v1, and /openapi.json describes it"


async def call(app, path: str, headers: list[tuple[bytes, bytes]], method: str = "GET") -> int:
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "root_path": ""}
    scope |= {"query_string": b"", "headers": headers, "client": ("10.0.0.9", 1), "server": ("127.0.0.1", 8000)}
    scope |= {"scheme": "http", "http_version": "1.0", "asgi": {"version": "3.0"}}
    statuses = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    return statuses[0]


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/health", None, 200),
        ("/health", "10.0.0.3:8000", 200),
        ("/health", "", 200),
        ("/ready", "balancer", 503),
        ("/v1/models", None, 503),
        ("/v1/models", "localhost", 503),
        ("/v1/models", "LocalHost:8000", 503),
        ("/v1/models", "localhost.", 503),
        ("/v1/models", "localhost.:8000", 503),
        ("/v1/models", "127.0.0.1:1", 503),
        ("/v1/models", "[::1]", 503),
        ("/v1/models", "[::1]:8000", 503),
        ("/v1/models", "[0:0:0:0:0:0:0:1]:8000", 503),
        ("/v1/models", "", 403),
        ("/v1/models", "10.0.0.3:8000", 403),
        ("/v1/models", "localhost:8000@evil.example", 403),
        ("/v1/models", "evil.example:localhost", 403),
        ("/v1/models", "localhost..", 403),
        ("/v1/models", "[localhost", 403),
        ("/v1/models", "[::1]evil.example", 403),
        ("http://localhost/v1/models", "evil.example", 503),
        ("HTTP://localhost:8000/v1/models", None, 503),
        ("http://localhost/health", "localhost", 200),
        ("http://evil.example/v1/models", "localhost", 403),
        ("http:///v1/models", "localhost", 400),
        ("ftp://localhost/v1/models", "localhost", 400),
        ("localhost:8000", "localhost", 400),
        ("*", "localhost", 400),
    ],
)
def test_names_of_the_host(app, path, host, status):
    """503 is what is said of models that are not there yet: the name was taken."""
    headers = [] if host is None else [(b"host", host.encode())]
    assert asyncio.run(call(app, path, headers)) == status
    if host is None and path.startswith("/"):
        assert asyncio.run(call(app, path, [(b"origin", b"http://evil.example")], "POST")) == 403


@pytest.mark.parametrize("host", ["[", "[x", "a]:b", "\\", "a b"])
def test_an_invalid_host_breaks_nothing(app, host):
    """Where any name is taken, its address cannot be put together."""
    assert asyncio.run(call(app, "/health", [(b"host", host.encode())], "DELETE")) == 405


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("example.org", "example.org"),
        ("Example.org.:80", "example.org"),
        ("[2001:DB8::0:1]:80", "2001:db8::1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("[fe80::1%eth0]", "fe80::1"),
        ("::1", "::1"),
    ],
)
def test_a_name_has_one_spelling(given, name):
    """Of a request's Host, and of what --host and --allowed-hosts say."""
    assert host_name(given) == name


@pytest.mark.parametrize("allowed", ["example.org", "EXAMPLE.org.", "example.org:8000"])
def test_allowed_hosts_may_be_spelled_in_any_way(tmp_path, allowed):
    config = ServeConfig(
        paths=("x",), host="0:0:0:0:0:0:0:1", allowed_hosts=(allowed,), safety="off", rankings=tmp_path / "r.sqlite"
    )
    client = TestClient(create_app(ServerState(config), EventLog((tmp_path / "log").open("w"))))
    for host in ("example.org", "[::1]:8000"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 503
    assert client.get("/v1/models", headers={"Host": "example.com"}).status_code == 403
