"""Slots, and who gets one: whose prompt can share what is read, and who may take how much memory for keys and values.

A sample is let in when the memory that it can come to need is there, besides what those that were let in before can
still come to need: what was begun can be ended. Memory is only taken as windows fill, and other programs take some too;
so free memory is read from the system each time. What slots still hold of samples that have ended, for prompts that
begin alike, goes when it is needed.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from weakref import WeakSet

from groundling import runtime
from groundling.errors import ConfigError
from groundling.memory import Memory, memory_of
from groundling.model.cache import PART, KVCache
from groundling.sample.backend import Backend, memory_told
from groundling.sample.sequences import Lane, Sample, common_length, most_positions

WORTH_WAITING = 8
"""Tokens that a prompt shares with one that is read in this step, for which it waits until it can copy them."""
UNASKED_BYTES = 1 << 28
"""Keys and values that take less than this in all are not worth asking the system how much memory there is."""
SPARED_PART = 16
"""One part in so many of the memory is left alone: a step needs some besides, and so do other programs."""


class Admitted(NamedTuple):
    """Where a sample's place is."""

    slot: int
    n_shared: int
    """Positions that the slot holds already."""


class NoMemoryError(ConfigError):
    """A sample can come to need more memory than there is, though nobody else is using any."""

    def __init__(self, message: str, sample: Sample | None = None) -> None:
        super().__init__(message)
        self.sample = sample


class CacheMemory:
    """The memory that the slots of several engines share. All are used by one thread."""

    def __init__(self, memory: Callable[..., Memory | None] = memory_of) -> None:
        self._memory = memory
        self._sharing: WeakSet[Slots] = WeakSet()

    def add(self, slots: "Slots") -> None:
        """Let some slots have a share."""
        self._sharing.add(slots)

    @property
    def is_in_use(self) -> bool:
        """Whether an admitted sample is still running."""
        return any(slots.is_in_use for slots in self._sharing)

    def held(self) -> int:
        """Bytes that slots have."""
        return sum(slots.held() for slots in self._sharing)

    def make_room(self, wanted: int, slots: "Slots", spared: Sequence[int]) -> bool:
        """Whether so many bytes can be had; releases what is only kept for prompts that begin alike, if need be.

        Args:
            wanted: bytes.
            slots: the requester; its own slots are released last.
            spared: of these the ones that stay.
        """
        wanted += sum(each.owed() for each in self._sharing)
        if wanted <= 0 or wanted + self.held() <= UNASKED_BYTES:
            return True
        return any(wanted <= self._free(slots) for _ in self._releases(slots, spared))

    def most(self, slots: "Slots") -> int:
        """Bytes that one sample could have now, if there were no others; at least `UNASKED_BYTES`."""
        return max(UNASKED_BYTES, self._free(slots) + self.held())

    def _free(self, slots: "Slots") -> int:
        found = self._memory(slots.device)
        if found is None:  # half of the memory there is, where the system does not tell how much is free
            total = runtime.memory_total_bytes()
            return total // 2 - self.held() if total else 1 << 62
        return found.free - found.total // SPARED_PART

    def _releases(self, slots: "Slots", spared: Sequence[int]) -> Iterator[None]:
        """Before the first release, and after each one."""
        yield
        for each in sorted(self._sharing, key=lambda each: each is slots):
            for slot in each.idle():
                if each is not slots or slot not in spared:
                    each.release(slot)
                    yield


class Slots:
    """The slots of an engine.

    Args:
        reader: by which it reads.
        n_slots: how many there are.
        memory: which the slots share with those of other engines.
    """

    def __init__(self, reader: Backend, n_slots: int, memory: CacheMemory) -> None:
        self.lanes = [Lane(slot, reader.block_size) for slot in range(n_slots)]
        self._reader, self._memory = reader, memory
        self._caches = [] if reader.cache is None else [reader.cache]
        self._free = deque(range(n_slots))  # the one that was free longest first
        self._used: dict[int, Sample] = {}
        memory.add(self)

    @property
    def device(self) -> object:
        """Where keys and values are."""
        return self._caches[0].device

    @property
    def is_in_use(self) -> bool:
        """Whether a sample has one."""
        return bool(self._used)

    @property
    def are_left(self) -> bool:
        """Whether there is one for another sample."""
        return bool(self._free)

    @property
    def longest(self) -> int:
        """Positions that a sample could have memory for now, if there were no others."""
        block_size = self._reader.block_size
        whole = sum(cache.n_bytes(block_size) for cache in self._caches)
        if whole <= UNASKED_BYTES:
            return block_size
        n_positions = block_size * self._memory.most(self) // whole
        return min(block_size, n_positions // PART * PART)

    def has_room_for(self, n_bytes: int) -> bool:
        """Whether there is memory for something else; what free slots hold goes for it."""
        return not self._caches or self._memory.make_room(n_bytes, self, ())

    def also(self, cache: KVCache) -> None:
        """Let each slot have memory for a draft model, too."""
        self._caches.append(cache)

    def require(self, n_prompt: int, n_new: int) -> None:
        """Check that a sample could have the memory that it can come to need, were there no others.

        Raises:
            NoMemoryError: it could not.
        """
        wanted = sum(_n_wanted(cache, n_prompt, n_new) for cache in self._caches)
        if wanted > UNASKED_BYTES and wanted > (most := self._memory.most(self)):
            raise NoMemoryError(
                f"keys and values of {most_positions(n_prompt, n_new, self._reader.block_size):,} tokens need "
                f"{wanted / 1e9:,.1f} GB, and {most / 1e9:,.1f} GB of memory are available for them; "
                "ask for fewer new tokens, shorten the prompt, or load the model with a smaller --context"
            )

    def admit(self, sample: Sample) -> Admitted | None:
        """Give a sample a slot that is free; None: it has to wait for others to end, or to be read.

        Raises:
            NoMemoryError: there is not enough memory for it, though all others have ended.
        """
        lane = Lane(-1, self._reader.block_size)
        lane.begin(sample.tokens, len(sample.tokens))
        window = lane.held[:-1]  # its last token is read in any case, for its scores
        shared = [common_length(other.held, window) for other in self.lanes]
        best = max(range(len(shared)), key=shared.__getitem__)
        soon = max((common_length(window, self._unread(other)) for other in self._used.values()), default=0)
        if soon >= shared[best] + WORTH_WAITING:
            return None
        n_shared = shared[best]
        slot = self._slot_for(best, n_shared)
        if n_shared and slot != best and not self._has_room(sample, slot, (slot, best)):
            n_shared = 0  # what it could copy is in the way
        if not self._has_room(sample, slot, (slot,)):
            if self._memory.is_in_use:
                return None
            self._refuse(sample)
        self._take(sample, slot, best, n_shared)
        return Admitted(slot, n_shared)

    def leave(self, slot: int) -> None:
        """A sample has ended; what its slot holds stays, for a prompt that begins alike."""
        del self._used[slot]
        self._free.append(slot)

    def forget(self) -> None:
        """Count nothing as held: a step was broken off."""
        for lane in self.lanes:
            lane.forget()

    def idle(self) -> list[int]:
        """Free slots that have memory, the one that was left first at the beginning."""
        return [slot for slot in self._free if any(cache.capacity(slot) for cache in self._caches)]

    def held(self) -> int:
        """Bytes that all slots have."""
        return sum(_n_held(cache, slot) for cache in self._caches for slot in range(cache.n_slots))

    def owed(self) -> int:
        """Bytes that samples can still come to need, besides those that their slots have."""
        return sum(self._missing(sample, slot) for slot, sample in self._used.items())

    def release(self, slot: int) -> None:
        """Give a slot's memory back; it holds nothing then."""
        for cache in self._caches:
            cache.release(slot)
        self.lanes[slot].forget()

    def _slot_for(self, best: int, n_shared: int) -> int:
        """A free slot that may hold the shared beginning: that of the best, unless the best is wanted as it is."""
        return best if best in self._free and 2 * n_shared >= len(self.lanes[best].held) > 0 else self._free[0]

    def _has_room(self, sample: Sample, slot: int, spared: Sequence[int]) -> bool:
        return self._memory.make_room(self._missing(sample, slot), self, spared)

    def _refuse(self, sample: Sample) -> None:
        try:
            self.require(len(sample.tokens), sample.n_left)
        except NoMemoryError as error:
            error.sample = sample
            raise
        raise NoMemoryError("other programs have just taken the memory that this text needs; try again", sample)

    def _take(self, sample: Sample, slot: int, best: int, n_shared: int) -> None:
        self._free.remove(slot)
        self._used[slot] = sample
        try:
            with memory_told():
                for cache in self._caches:
                    n_most = most_positions(len(sample.tokens), sample.n_left, cache.config.block_size)
                    cache.limit(slot, n_most, n_shared if slot == best else 0)
                if n_shared and slot != best:
                    self._reader.copy(best, slot, n_shared)
        except BaseException:
            self.leave(slot)
            raise
        self.lanes[slot].begin(sample.tokens, n_shared)

    def _missing(self, sample: Sample, slot: int) -> int:
        """Bytes that a sample can come to need besides those that its slot has."""
        return sum(
            max(0, _n_wanted(cache, len(sample.tokens), sample.n_left) - _n_held(cache, slot)) for cache in self._caches
        )

    def _unread(self, sample: Sample) -> list[int]:
        """The window of a sample that will be read in the next step as a whole, else nothing."""
        assert sample.slot is not None
        start = self.lanes[sample.slot].start
        return sample.tokens[start:] if len(sample.tokens) == sample.n_prompt else []


def _n_wanted(cache: KVCache, n_tokens: int, n_new: int) -> int:
    return cache.n_bytes(most_positions(n_tokens, n_new, cache.config.block_size))


def _n_held(cache: KVCache, slot: int) -> int:
    return cache.n_bytes(cache.capacity(slot))
