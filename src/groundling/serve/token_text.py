"""Text and bytes of tokens, as the API returns them."""

from groundling.errors import DataError
from groundling.text.tokenizer import Tokenizer


class TokenText:
    """Text and bytes of each id of a tokenizer, cached."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._special = tokenizer, set(tokenizer.special.values())
        self._known: dict[int, tuple[str, list[int] | None]] = {}

    def of(self, id: int) -> tuple[str, list[int] | None]:
        """The id's text and bytes; a special token has a name and no bytes."""
        if id not in self._known:
            self._known[id] = self._of(id)
        return self._known[id]

    def _of(self, id: int) -> tuple[str, list[int] | None]:
        if id in self._special:
            return self._tokenizer.piece(id), None
        try:
            data = self._tokenizer.decode_bytes([id])
        except DataError:
            return f"<{id}>", None
        return data.decode("utf-8", "replace"), list(data)
