"""Keys and values: memory that follows use, and never changes what is kept in it."""

import os

import pytest
import torch

from groundling.model import cache as cache_module
from groundling.model.cache import KVCache
from groundling.model.config import GPTConfig
from prockit import resident_bytes

CONFIG = GPTConfig(n_layer=3, n_head=2, n_kv_head=1, n_embd=16, block_size=5000, vocab_size=11, position="rotary")


def filled(cache: KVCache, slot: int, n_positions: int) -> list[torch.Tensor]:
    """Write random numbers into a slot; return them, layer by layer."""
    cache.reserve(slot, n_positions)
    generator = torch.Generator().manual_seed(slot)
    for kv_2HSD in cache.layers(slot):
        kv_2HSD[:, :, :n_positions] = torch.randn((2, 1, n_positions, 8), generator=generator)
    return [kv_2HSD[:, :, :n_positions].clone() for kv_2HSD in cache.layers(slot)]


def holds(cache: KVCache, slot: int, expected: list[torch.Tensor]) -> bool:
    return all(
        torch.equal(now[:, :, : then.size(2)], then) for now, then in zip(cache.layers(slot), expected, strict=True)
    )


@pytest.mark.parametrize("piece_bytes", [1, 40_000, 1 << 25], ids=["a layer", "two layers", "all"])
def test_a_slot_takes_memory_as_it_fills_and_keeps_every_bit(monkeypatch, piece_bytes):
    monkeypatch.setattr(cache_module, "PIECE_BYTES", piece_bytes)
    cache = KVCache(CONFIG, 2)
    assert cache.capacity(0) == 0, "nothing is taken before it is used"
    before = filled(cache, 0, 100)
    sizes = []
    for n in (100, 256, 257, 512, 513, 2000, 4097, 5000):
        cache.reserve(0, n)
        sizes.append(cache.capacity(0))
        assert holds(cache, 0, before)
        assert all(layer.data_ptr() % 64 == 0 and layer.is_contiguous() for layer in cache.layers(0))
    assert sizes == [256, 256, 512, 512, 1024, 2048, 4112, 5008], "doubled, up to the window, in parts of 16"
    assert cache.n_bytes(5000) == 2 * 3 * 5008 * 8 * 4
    assert cache.capacity(1) == 0
    cache.release(0)
    assert (cache.capacity(0), list(cache.layers(0))) == (0, [])


def test_a_slot_does_not_outgrow_its_limit_and_gives_back_far_more():
    cache = KVCache(CONFIG, 1)
    cache.limit(0, 600)
    before = filled(cache, 0, 400)
    cache.reserve(0, 401)
    assert cache.capacity(0) == 608
    cache.reserve(0, 4000)
    cache.limit(0, 300, n_kept=400)
    assert cache.capacity(0) == 400, "what is kept is more than the limit"
    assert holds(cache, 0, before)
    n_moves = cache.n_moves
    cache.limit(0, 250)
    assert (cache.capacity(0), cache.n_moves) == (400, n_moves), "what is not far more stays where it is"


def test_a_slot_begins_with_what_another_one_holds():
    cache = KVCache(CONFIG, 3)
    before = filled(cache, 1, 700)
    cache.copy(1, 2, 300)
    assert holds(cache, 2, [kv_2HSD[:, :, :300] for kv_2HSD in before])
    assert cache.capacity(2) < 700
    assert holds(cache, 1, before)


def test_memory_is_taken_when_it_is_promised_and_goes_back_at_once():
    """The system is asked how much is left: pages that are promised and never written to would not count."""

    def resident() -> int:
        return resident_bytes(os.getpid())

    wide = GPTConfig(n_layer=2, n_head=1, n_embd=1024, block_size=16_384, vocab_size=11)
    before, cache = resident(), KVCache(wide, 16)
    assert resident() - before < 1 << 24, "16 windows of 268 MB each"
    cache.reserve(3, 4096)
    assert 0.9 < (resident() - before) / cache.n_bytes(4096) < 1.3
    cache.release(3)
    assert resident() - before < 1 << 24


def test_too_little_memory_is_an_error_that_can_be_caught():
    huge = GPTConfig(n_layer=1, n_head=1, n_embd=2**40, block_size=1 << 22, vocab_size=11)
    cache = KVCache(huge, 1)
    with pytest.raises(MemoryError):
        cache.reserve(0, 1 << 21)
    assert cache.capacity(0) == 0
