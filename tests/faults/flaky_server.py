"""A web server on this machine that fails by a script."""

import http.server
import threading
import time
from collections.abc import Callable

CONTENT = bytes(range(256)) * 1200
"""What the server has: 307,200 bytes."""

Act = Callable[[http.server.BaseHTTPRequestHandler], None]


def reply(handler, status, body, headers=(), promised=None):
    handler.send_response(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body) if promised is None else promised))
    handler.end_headers()
    handler.wfile.write(body)


def whole(handler):
    """As a good server does: all, or the rest that is asked for."""
    if asked := handler.headers.get("Range"):
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(CONTENT):
            return reply(handler, 416, b"", [("Content-Range", f"bytes */{len(CONTENT)}")])
        where = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        return reply(handler, 206, CONTENT[start:], [("Content-Range", where)])
    return reply(handler, 200, CONTENT)


def cut_after(n_bytes: int) -> Act:
    """The connection breaks off in the middle of what was asked for."""

    def act(handler):
        start = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        where = [("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")] if start else []
        body = CONTENT[start:]
        reply(handler, 206 if start else 200, body[:n_bytes], where, promised=len(body))

    return act


def ignore_range(handler):
    """As a simple server does: always all."""
    reply(handler, 200, CONTENT)


def body(data: bytes, content_type: str = "text/plain") -> Act:
    """Something else than the file."""
    return lambda handler: reply(handler, 200, data, [("Content-Type", content_type)])


def refuse(status: int, *headers: tuple[str, str]) -> Act:
    """An HTTP error."""
    return lambda handler: reply(handler, status, b"no", headers)


def hang(handler):
    """No answer for longer than anyone waits."""
    time.sleep(2)


def without_length(handler):
    """The end of the body is the end of the connection, which comes early."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(CONTENT[:1000])


class FlakyServer:
    """Answers request number n by `script[n]`, and the rest by its last act.

    Attributes:
        ranges: the Range header of each request so far.
    """

    def __init__(self) -> None:
        self.script: list[Act] = [whole]
        self.ranges: list[str | None] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                number = len(owner.ranges)
                owner.ranges.append(self.headers.get("Range"))
                owner.script[min(number, len(owner.script) - 1)](self)

            def log_message(self, *_: object) -> None: ...

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/input.txt"

    def __enter__(self) -> "FlakyServer":
        self._thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()
        self._thread.join()
