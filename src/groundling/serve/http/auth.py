"""Who may ask: whoever has a key, if keys were set. Every route of the API depends on it."""

import hmac
from collections.abc import Awaitable, Callable, Sequence

from fastapi import Request

from groundling.serve.http.errors import ApiError


def lock(keys: Sequence[str]) -> Callable[[str], str | None]:
    """What looks at a header Authorization: it says which key was given, or None where there are no keys.

    It raises ApiError (401) where none of them was.
    """
    known = [key.encode("ascii") for key in keys]

    def key_of(authorization: str) -> str | None:
        if not known:
            return None
        scheme, _, given = authorization.partition(" ")
        key = given.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
        matches = [hmac.compare_digest(key, one) for one in known]  # all are compared: no early end tells anything
        if not any(matches):
            message = "no key was given" if not key else "this key is not known"
            raise ApiError(401, f"{message}; send one as Authorization: Bearer KEY", "invalid_api_key")
        return f"key {matches.index(True)}"

    return key_of


def require_api_key(keys: Sequence[str]) -> Callable[[Request], Awaitable[None]]:
    """A dependency that lets clients with a key pass.

    It notes who they are, for clients take turns: by key, or by address where there are none.
    """
    key_of = lock(keys)

    async def require_key(request: Request) -> None:
        address = request.client.host if request.client is not None else "?"
        request.state.client = address
        request.state.client = key_of(request.headers.get("authorization", "")) or address

    return require_key
