"""Hostile requests, drawn from a seed: bytes that are hardly HTTP, and JSON that is hardly what a route takes."""

import copy
import gzip
import json
import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

from filefuzz import VALUES, changed, damaged, deep

KEY = "a-long-secret-key"
TALK = {"role": "user", "content": "to be"}
SAMPLING = {
    "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "n": 2, "stop": ["x"], "seed": 1, "presence_penalty": 0.1,
    "frequency_penalty": 0.1, "logit_bias": {"1": 5}, "stream": False, "user": "u", "top_k": 5, "min_p": 0.1,
    "typical_p": 0.9, "repetition_penalty": 1.1, "ignore_eos": True,
}  # fmt: skip
BODIES: dict[tuple[str, str], list[Any]] = {
    ("POST", "/v1/completions"): [
        {"model": "base", "prompt": "to be", "max_tokens": 3},
        {"model": "base", "prompt": [[1, 2], [3]], "logprobs": 3, "echo": True, **SAMPLING},
        {"model": "pairs", "prompt": ["a", "b"], "stream": True, "stream_options": {"include_usage": True}},
    ],
    ("POST", "/v1/chat/completions"): [
        {"model": "talker", "messages": [{"role": "system", "content": "be"}, TALK], "max_tokens": 3},
        {
            "model": "talker",
            "messages": [TALK],
            "logprobs": True,
            "top_logprobs": 3,
            "metadata": {"a": "b"},
            **SAMPLING,
        },
        {"model": "talker", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "stream": True},
    ],
    ("POST", "/v1/groundling/xray"): [
        {"model": "base", "prompt": "to be"},
        {"model": "talker", "messages": [TALK], "checkpoint": "last"},
    ],
    ("POST", "/v1/groundling/rankings"): [
        {"question": "q", "choice": {"best": 1}, "rater": "me", "key": "a-key-of-mine"},
        {"question": "q", "choice": [[1], [2, 3]], "rater": "me", "key": "a-key-of-mine"},
    ],
    ("POST", "/v1/groundling/rankings/train"): [{"model": "talker"}, {}],
}
"""Each route that takes a body, and what it takes."""
QUERIES: dict[tuple[str, str], dict[str, str]] = {
    ("GET", "/health"): {},
    ("GET", "/ready"): {},
    ("GET", "/v1/models"): {},
    ("GET", "/v1/models/{model}"): {},
    ("GET", "/v1/groundling/checkpoints"): {"model": "base"},
    ("GET", "/v1/groundling/rankings"): {"rater": "me"},
    ("GET", "/v1/groundling/rankings/next"): {"rater": "me", "n": "2", "prompt": "to be"},
    ("GET", "/v1/groundling/rankings/export"): {},
    ("GET", "/v1/groundling/rankings/train"): {},
    ("DELETE", "/v1/groundling/rankings/train"): {},
    ("GET", "/v1/groundling/runs"): {},
    ("GET", "/v1/groundling/runs/{name}/metrics"): {"after": "0", "mark": "x"},
    ("GET", "/v1/groundling/runs/{name}/ladder"): {},
}
"""Each route that takes none, and its parameters."""
NAMES = [
    "base",
    "talker",
    "pairs",
    "none",
    "..",
    "%2e%2e%2f",
    "%00",
    "a" * 3000,
    "%ff",
    "%F0%9F%98%80",
    "a%0d%0ab",
    "base/..",
]
WORDS = [
    "",
    "0",
    "-1",
    "1e9",
    "9" * 400,
    "NaN",
    "true",
    "\0",
    "\ud7ff",
    "\r\nX: y",
    "a" * 5000,
    "me",
    "[]",
    "2.0",
    "\u0661",
]
ENCODINGS = ["gzip", "x-gzip", "gzip, gzip", "identity", "deflate", "br", "zstd", "", "gzip\t", "a" * 500]
KINDS = [
    "application/json",
    "application/json; charset=utf-16",
    "text/plain",
    "",
    "application/json; charset=\"'",
    "a/b" * 900,
]


class Attack(NamedTuple):
    """What is sent on one connection, piece by piece, and whether its client then waits for what comes back."""

    pieces: list[bytes]
    stays: bool

    def __str__(self) -> str:
        """Enough to see what it is; the seed makes the rest again."""
        shown = ", ".join(f"{piece[:400]!r}" + "..." * (len(piece) > 400) for piece in self.pieces[:6])
        return f"{len(self.pieces)} pieces, {sum(map(len, self.pieces)):,} bytes: {shown}"


@dataclass
class Request:
    """A request whose parts can be spoilt one by one."""

    method: str = "GET"
    target: str = "/health"
    version: str = "HTTP/1.1"
    host: list[tuple[str, str]] = field(default_factory=lambda: [("Host", "localhost")])
    headers: list[tuple[str, str]] = field(default_factory=lambda: [("Authorization", f"Bearer {KEY}")])
    framing: list[tuple[str, str]] | None = None
    """What says how long the body is; None: what is right."""
    body: bytes = b""
    end: bytes = b"\r\n"
    colon: str = ": "

    def render(self) -> bytes:
        """Its bytes."""
        framing = self.framing
        if framing is None:
            framing = [("Content-Length", str(len(self.body)))] if self.body else []
        lines = [f"{self.method} {self.target} {self.version}".strip()]
        lines += [f"{name}{self.colon}{value}" for name, value in [*self.host, *self.headers, *framing]]
        head = self.end.join(line.encode("latin-1", "replace") for line in lines)
        return head + 2 * self.end + self.body


def sound(chance: random.Random) -> Request:
    """A request that is all right."""
    if chance.random() < 0.5:
        return Request(
            chance.choice(["GET", "GET", "HEAD", "DELETE"]), chance.choice(["/health", "/v1/models", "/", "/metrics"])
        )
    (method, path), bodies = chance.choice(list(BODIES.items()))
    request = Request(method, path, body=json.dumps(chance.choice(bodies)).encode())
    request.headers.append(("Content-Type", "application/json"))
    return request


def chunked(body: bytes, chance: random.Random) -> bytes:
    """A body in chunks, some of which are none."""
    size = f"{len(body):x}".encode()
    size = chance.choice(
        [size, size, size, b"-1", b"0x5", b"+5", b"f" * 16, b"f" * 30, b"", b" 5", b"5 ", b"00" + size, b"zz"]
    )
    mark = b";" + chance.choice([b"", b"a=b", b"a" * 20_000, b"a" * 2_000_000, b"\0", b"a\rb", b'"\n"', b"a;" * 3000])
    size += mark if chance.random() < 0.4 else b""
    end = chance.choice([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"", b"\r\n\r\n"])
    last = chance.choice(
        [b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\n", b"0\n\n", b"", b"0\r\nX: y\r\n\r\n", b"0\r\nX: y\n\r\n"]
    )
    trailers = [
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * 9000 + b"\r\n",
        b"0\r\n y\r\n\r\n",
        last,
        last,
    ]
    return size + end + body + end + chance.choice(trailers)


def spoil(request: Request, chance: random.Random) -> None:
    """Do one thing to a request that is not done."""
    parts = [*4 * [_spoil_line], _spoil_host, _spoil_length, *2 * [_spoil_coding], *2 * [_spoil_use]]
    parts += [*3 * [_spoil_fields], _spoil_body]
    kind = chance.randrange(len(parts))
    parts[kind](request, kind, chance)


def _spoil_line(request: Request, kind: int, chance: random.Random) -> None:
    """Line ends, colons, the version, the target."""
    pick = chance.choice
    if kind == 0:
        request.end = pick([b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n "])
    elif kind == 1:
        request.colon = pick([" : ", ":", "", " ", ":\t", ":\r\n ", ": \n"])
    elif kind == 2:
        request.version = pick(
            ["", "HTTP/0.9", "HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "HTTP/9.9", "http/1.1", "HTTP/1.10", "HTTP/1.1 x"]
        )
    else:
        near = ["*", "localhost:80", "http://localhost/health", "http://localhost", "http://[", "http://evil/v1/models"]
        odd = [
            "",
            "/%00",
            "//",
            "/../etc/passwd",
            "/health\0",
            "/\xff",
            "/" + "a" * 20_000,
            "/#x",
            "/?" + "&" * 9000,
            "/a b",
        ]
        request.target = pick(near + odd)


def _spoil_host(request: Request, kind: int, chance: random.Random) -> None:
    """Other hosts, none, or two."""
    del kind
    pick = chance.choice
    hosts = [
        "",
        "[",
        "a b",
        "evil.example",
        "localhost,localhost",
        "localhost\0",
        "[::1",
        "a" * 9000,
        "\\",
        "localhost:99999",
    ]
    request.host = pick([[], [("Host", "localhost")] * 2, [("host", pick(hosts))], [("Host", pick(hosts))]])


def _spoil_length(request: Request, kind: int, chance: random.Random) -> None:
    """A length that is none, or another."""
    del kind
    pick = chance.choice
    n = len(request.body)
    one = [
        f"+{n}",
        "-1",
        f"{n} {n}",
        f"{n}, {n}",
        f"{n},{n + 1}",
        f"0x{n:x}",
        "9" * 19,
        "9" * 25,
        "",
        "a",
        f"{n + 9}",
        f"{n // 2}",
    ]
    request.framing = [("Content-Length", pick(one)) for _ in range(pick([1, 1, 2]))]


def _spoil_coding(request: Request, kind: int, chance: random.Random) -> None:
    """Chunks, and codings that are not known."""
    del kind
    pick = chance.choice
    coding = pick(
        [
            "chunked",
            "chunked",
            "chunked",
            "chunked",
            "gzip",
            "chunked, chunked",
            "identity",
            "\x0bchunked",
            "xchunked",
        ]
    )
    length = [("Content-Length", str(len(request.body)))] if chance.random() < 0.2 else []
    request.framing = [*length, ("Transfer-Encoding", coding)]
    request.body = chunked(request.body or b"hello", chance)


def _spoil_use(request: Request, kind: int, chance: random.Random) -> None:
    """Upgrades, what is expected, keys."""
    pick = chance.choice
    if kind == 8:
        upgrades = [
            ("Upgrade", pick(["websocket", "h2c", "a" * 900])),
            ("Connection", pick(["Upgrade", "upgrade, keep-alive"])),
        ]
        others = [
            [("Connection", pick(["close", "keep-alive", "\0", ",,,"]))],
            [("Expect", pick(["100-continue", "200-ok"]))],
        ]
        request.headers += pick([upgrades, *others])
    else:
        keys = [
            "",
            "Bearer",
            "Bearer ",
            f"Bearer {KEY}x",
            f"Basic {KEY}",
            "Bearer \xe9",
            f"Bearer  {KEY}",
            "a" * 12_000,
        ]
        request.headers = [(name, value) for name, value in request.headers if name != "Authorization"]
        request.headers += [("Authorization", pick(keys))] if chance.random() < 0.7 else []


def _spoil_fields(request: Request, kind: int, chance: random.Random) -> None:
    """Methods, names and values of headers, origins."""
    pick = chance.choice
    if kind == 10:
        request.method = pick(
            ["CONNECT", "TRACE", "OPTIONS", "PRI", "PUT", "PATCH", "get", "", "A" * 20_000, "G\0T", "POST", "\xff"]
        )
    elif kind == 11:
        values = ["\0", "\x01", "\x7f", "\xff", "a\rb", "a\nb", "a\r\n b", "x" * 40_000, " ", "", "\t", "a\r\nY: b"]
        name = pick(
            [
                "X",
                "",
                "X Y",
                "X\0",
                "\xe9",
                "Content-Encoding",
                "Content-Type",
                "Origin",
                "Range",
                "If-None-Match",
                "X:",
            ]
        )
        request.headers += [(name, pick(values))] * pick([1, 1, 1, 900])
    else:
        request.headers += [("Origin", pick(["null", "http://localhost", "http://evil", "http://[", "*"]))]
        request.headers += [("Access-Control-Request-Method", "POST"), ("Cookie", "a=b; " * 300)]


def _spoil_body(request: Request, kind: int, chance: random.Random) -> None:
    """Cut it off."""
    del kind
    pick = chance.choice
    request.body = request.body[: chance.randrange(len(request.body) + 1)]
    request.framing = request.framing or [("Content-Length", str(len(request.body) + pick([0, 1, 5000])))]


def raw_attack(seed: int) -> Attack:
    """Requests whose framing is spoilt, in pieces."""
    chance = random.Random(f"raw {seed}")
    if chance.random() < 0.05:
        openings = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(range(200)),
        ]
        openings += [b"", b"\r\n" * 500, b"\0" * 70_000, b"SSH-2.0-x\r\n", b"GET /\r\n\r\n", chance.randbytes(3000)]
        return Attack([chance.choice(openings)], stays=True)
    data = b""
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        request = sound(chance)
        for _ in range(chance.choice([0, 1, 1, 1, 2, 3])):
            spoil(request, chance)
        rendered = request.render()
        data += damaged(rendered, chance) if chance.random() < 0.15 else rendered
    places = sorted(chance.randrange(len(data) + 1) for _ in range(chance.choice([0, 0, 1, 3])))
    pieces = [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
    return Attack(pieces, stays=chance.random() < 0.9)


def json_attack(seed: int) -> Attack:
    """A request of a documented route with a body, or parameters, that it does not expect."""
    chance = random.Random(f"json {seed}")
    if chance.random() < 0.25:
        return Attack([_queried(chance).render()], stays=True)
    (method, path), bodies = chance.choice(list(BODIES.items()))
    request = Request(method, path)
    kind = "application/json" if chance.random() < 0.9 else chance.choice(KINDS)
    request.headers.append(("Content-Type", kind))
    value = copy.deepcopy(chance.choice(bodies))
    how = chance.randrange(12)
    if how < 7:
        text = changed(value, chance).encode("utf-8", "surrogatepass")
    elif how == 7:
        value[chance.choice(["help", "tools", "\ud800", "", "functions", "x" * 3000])] = chance.choice(VALUES)
        text = json.dumps(value).encode()
    elif how == 8:
        text = damaged(json.dumps(value).encode(), chance)
    elif how == 9:
        text = chance.choice(
            [deep(600), deep(100_000), '{"a":' * 50_000, f"[{'9' * 9000}]", '{"model":1e999}', "[1," * 90_000]
        ).encode()
    elif how == 10:
        value["model"] = chance.choice(["none", "BASE", "../base", "", "base\0", "\ud800", 5, None])
        text = json.dumps(value).encode()
    else:
        text = json.dumps(value).encode(chance.choice(["utf-16", "utf-32", "utf-8-sig"]))
    if chance.random() < 0.15:
        bombs = [
            gzip.compress(bytes(20_000_000)),
            gzip.compress(gzip.compress(bytes(2_000_000))),
            gzip.compress(text)[:-5],
        ]
        text = chance.choice([gzip.compress(text), text, damaged(gzip.compress(text), chance), *bombs])
        request.headers.append(("Content-Encoding", chance.choice(["gzip", "gzip", *ENCODINGS])))
    request.body = text
    return Attack([request.render()], stays=chance.random() < 0.95)


def _queried(chance: random.Random) -> Request:
    (method, path), sound_query = chance.choice(list(QUERIES.items()))
    query = dict(sound_query)
    for _ in range(chance.choice([0, 1, 2])):
        query[chance.choice([*query, "x", "", "a" * 500])] = chance.choice(WORDS)
    for name in ("{model}", "{name}"):
        path = path.replace(name, chance.choice(NAMES))
    shown = "&".join(f"{quote(name)}={quote(value)}" for name, value in query.items())
    more = chance.choice(["", "", "", "&n=2&n=3", "&%ff=%fe", "&&&=", "&a[b]=c"])
    return Request(method, f"{path}?{shown}{more}" if shown or more else path)
