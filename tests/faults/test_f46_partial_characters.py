"""Row 46: a character that several tokens make is never cut: streams, joined, are the whole answer."""

import json

import pytest

from groundling.bundle import load_bundle
from servekit import Served, events

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("cut", [0, 1, 2, 3], ids=lambda n: f"{n} bytes too few")
def test_an_emoji_of_byte_tokens(server: Served, models, cut: int) -> None:
    """The model is led from byte to byte by what each may be followed by: it can only say this."""
    tokenizer = load_bundle(models["pairs"]).tokenizer
    ids = {bytes(tokenizer.decode_bytes([id])): id for id in range(tokenizer.vocab_size)}
    smile = "\N{GRINNING FACE}".encode()
    said, streamed = "", ""
    for seed in range(20):
        allowed = {str(ids[bytes([byte])]): 100 for byte in smile}
        body = {"model": "pairs", "prompt": "a", "logit_bias": allowed, "max_tokens": 40 - cut, "seed": seed}
        said += server.ask("POST", "/v1/completions", body)[1]["choices"][0]["text"]
        _, text, _ = server.ask("POST", "/v1/completions", {**body, "stream": True})
        *chunks, last = events(text)
        assert last == "[DONE]"
        streamed += "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
        json.dumps(chunks, ensure_ascii=False).encode()  # no half of anything
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert said == streamed
    assert "\N{REPLACEMENT CHARACTER}" in said, "bytes that are no text are shown as such"
