"""Pages and static files, from a map built when the server starts.

A page is `shell.html` with a fragment in it. Request paths never reach the file system: nothing to traverse.
"""

import hashlib
from importlib import resources

from fastapi import APIRouter, Request
from starlette.responses import Response

from groundling.serve.http.errors import ApiError

KINDS = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
PAGES = {
    "/": ("chat", "Chat"),
    "/xray": ("xray", "X-ray"),
    "/rank": ("rank", "Compare"),
    "/train": ("train", "Training runs"),
}


class _Asset:
    def __init__(self, data: bytes, kind: str) -> None:
        self.data, self.kind = data, kind
        self.etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'

    def response(self, request: Request) -> Response:
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == self.etag:
            return Response(status_code=304, headers=headers)
        return Response(self.data, media_type=self.kind, headers=headers)


def router() -> APIRouter:
    """Routes of the pages and their assets; they need no key and hold no user data."""
    folder = resources.files("groundling.serve") / "static"
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    assets = {
        name: _Asset(data, KINDS[suffix])
        for name, data in files.items()
        if (suffix := "." + name.rpartition(".")[2]) in KINDS
    }
    shell = files["shell.html"].decode()
    routes = APIRouter(include_in_schema=False)

    async def static(name: str, request: Request) -> Response:
        if name not in assets:
            raise ApiError(404, f"there is no {name[:100]!r}", "not_found")
        return assets[name].response(request)

    routes.add_api_route("/static/{name}", static, methods=["GET", "HEAD"])
    for path, (page, title) in PAGES.items():
        text = shell.replace("{{title}}", title).replace("{{page}}", page).replace("{{nav}}", _nav(path))
        text = text.replace("{{main}}", files[f"{page}.html"].decode())
        asset = _Asset(text.encode(), "text/html; charset=utf-8")
        routes.add_api_route(path, _shows(asset), methods=["GET", "HEAD"], name=page)
    return routes


def _nav(here: str) -> str:
    """Links to all pages."""
    current = ' aria-current="page"'
    return "".join(f'<a href="{path}"{current * (path == here)}>{title}</a>' for path, (_, title) in PAGES.items())


def _shows(asset: _Asset):  # type: ignore[no-untyped-def]  # FastAPI reads the inner function's types
    async def page(request: Request) -> Response:
        return asset.response(request)

    return page
