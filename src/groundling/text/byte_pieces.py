"""Decode ids of byte-level tokenizers: whole, streamed, and with a check of ids."""

import codecs
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from groundling.text.tokenizer import StreamDecoder, check_ids


class BytePieces:
    """The decoding half of byte-level tokenizers.

    Args:
        pieces: bytes of each id.
        special: name to id of special tokens, which give no text.
        end_ids: ids that end a text.
    """

    def __init__(
        self, pieces: Sequence[bytes], special: Mapping[str, int] | None = None, end_ids: Sequence[int] = ()
    ) -> None:
        self.special: Mapping[str, int] = MappingProxyType(dict(special or {}))
        self.end_ids = tuple(end_ids)
        self._names = {id: name for name, id in self.special.items()}
        self._pieces = [b"" if id in self._names else piece for id, piece in enumerate(pieces)]

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self._pieces)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the concatenated bytes of `ids`.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        return b"".join([self._pieces[i] for i in check_ids(ids, self.vocab_size)])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD. Raises as `decode_bytes` does."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def piece(self, token: int) -> str:
        """Return one id as readable text: a special token's name; bytes that are not text as `<E2>`."""
        if token in self._names:
            return self._names[token]
        data = self.decode_bytes([token])
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(chr(byte) if byte < 0x80 else f"<{byte:02X}>" for byte in data)

    def stream_decoder(self) -> StreamDecoder:
        """Return a decoder that holds back incomplete characters."""
        return _ByteStream(self)


class _ByteStream:
    def __init__(self, pieces: BytePieces) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._pieces.decode_bytes([token]))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)
