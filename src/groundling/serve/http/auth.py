"""API keys. Every route of the API requires one, if keys are set."""

import hmac
from collections.abc import Awaitable, Callable, Sequence

from fastapi import Request

from groundling.serve.http.errors import ApiError


def key_checker(keys: Sequence[str]) -> Callable[[str], str | None]:
    """Return a function from an Authorization header to the name of its key, or None if no keys are set.

    The function raises ApiError (401) for a missing or wrong key.
    """
    known = [key.encode("ascii") for key in keys]

    def check_key(authorization: str) -> str | None:
        if not known:
            return None
        scheme, _, given = authorization.partition(" ")
        key = given.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""
        matches = [hmac.compare_digest(key, one) for one in known]  # compare all: constant time
        if not any(matches):
            message = "no API key was given" if not key else "the API key is unknown"
            raise ApiError(401, f"{message}; send one as Authorization: Bearer KEY", "invalid_api_key")
        return f"key {matches.index(True)}"

    return check_key


def require_api_key(keys: Sequence[str]) -> Callable[[Request], Awaitable[None]]:
    """A FastAPI dependency that requires an API key.

    It sets `request.state.client` for the fair queue: the key, or the address if no keys are set.
    """
    check_key = key_checker(keys)

    async def require_key(request: Request) -> None:
        address = request.client.host if request.client is not None else "?"
        request.state.client = address
        request.state.client = check_key(request.headers.get("authorization", "")) or address

    return require_key
