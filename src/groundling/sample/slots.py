"""Admission of requests to the slots of an engine: prefix sharing, and memory for keys and values.

A request is admitted when there is memory for the most it can need, in addition to the most that the running requests
can still need: so every admitted request can finish. Memory is allocated only as windows fill, and other programs
allocate too, so free memory is read from the system each time. Slots of finished requests keep their keys and values
for prompts with the same prefix, until the memory is needed.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from weakref import WeakSet

from groundling.errors import ConfigError
from groundling.model.cache import CAPACITY_STEP, KVCache
from groundling.sample.auto_runner import AutoRunner, explain_out_of_memory
from groundling.sample.request import Request, Slot, common_length, most_positions, window_start
from groundling.system.memory import Memory, memory_of, memory_total_bytes

WORTH_WAITING = 8
"""A prompt waits to copy a prefix that is about to be read, if that saves this many tokens."""
UNASKED_BYTES = 1 << 28
"""Below this total of keys and values, free memory is not read from the system."""
SPARED_PART = 16
"""1/16 of the memory is kept free for activations and for other programs."""


class Admitted(NamedTuple):
    """The slot of an admitted request."""

    slot: int
    n_shared: int
    """Positions of the prompt that the slot already holds."""


class NoMemoryError(ConfigError):
    """A request can need more memory than is available, even when no other request is running."""


class CacheMemory:
    """Memory for keys and values, shared by the slots of several engines. Not thread-safe."""

    def __init__(self, memory: Callable[..., Memory | None] = memory_of) -> None:
        self._memory = memory
        self._sharing: WeakSet[SlotPool] = WeakSet()

    def add(self, slots: "SlotPool") -> None:
        """Share the memory with these slots, too."""
        self._sharing.add(slots)

    @property
    def is_in_use(self) -> bool:
        """Whether a request is running in any of the slots."""
        return any(slots.is_in_use for slots in self._sharing)

    def held(self) -> int:
        """Bytes that all slots have allocated."""
        return sum(slots.held() for slots in self._sharing)

    def make_room(self, wanted: int, slots: "SlotPool", spared: Sequence[int]) -> bool:
        """Whether `wanted` bytes are available; releases idle slots if necessary.

        Args:
            wanted: bytes.
            slots: the requester; its own idle slots are released last.
            spared: slots of the requester that are not released.
        """
        wanted += sum(each.owed() for each in self._sharing)
        if wanted <= 0 or wanted + self.held() <= UNASKED_BYTES:
            return True
        return any(wanted <= self._free(slots) for _ in self._releases(slots, spared))

    def most(self, slots: "SlotPool") -> int:
        """Bytes that a single request could have now; at least `UNASKED_BYTES`."""
        return max(UNASKED_BYTES, self._free(slots) + self.held())

    def _free(self, slots: "SlotPool") -> int:
        found = self._memory(slots.device)
        if found is None:  # unknown on this system: assume half of the total
            total = memory_total_bytes()
            return total // 2 - self.held() if total else 1 << 62
        return found.free - found.total // SPARED_PART

    def _releases(self, slots: "SlotPool", spared: Sequence[int]) -> Iterator[None]:
        """Yield before the first release and after each one."""
        yield
        for each in sorted(self._sharing, key=lambda each: each is slots):
            for slot in each.idle():
                if each is not slots or slot not in spared:
                    each.release(slot)
                    yield


class SlotPool:
    """The slots of an engine.

    Args:
        runner: of the engine.
        n_slots: number of slots.
        memory: shared with the slots of other engines.
    """

    def __init__(self, runner: AutoRunner, n_slots: int, memory: CacheMemory) -> None:
        self.slots = [Slot(slot, runner.block_size) for slot in range(n_slots)]
        self._runner, self._memory = runner, memory
        self._caches = [] if runner.cache is None else [runner.cache]
        self._free = deque(range(n_slots))  # least recently used first
        self._used: dict[int, Request] = {}
        memory.add(self)

    @property
    def device(self) -> object:
        """Where keys and values are."""
        return self._caches[0].device

    @property
    def is_in_use(self) -> bool:
        """Whether a request is running."""
        return bool(self._used)

    @property
    def longest(self) -> int:
        """Positions that a single request could have memory for now."""
        block_size = self._runner.block_size
        whole = sum(cache.n_bytes(block_size) for cache in self._caches)
        if whole <= UNASKED_BYTES:
            return block_size
        n_positions = block_size * self._memory.most(self) // whole
        return min(block_size, n_positions // CAPACITY_STEP * CAPACITY_STEP)

    def has_room_for(self, n_bytes: int) -> bool:
        """Whether there is memory for `n_bytes` of something else; idle slots are released for it."""
        return not self._caches or self._memory.make_room(n_bytes, self, ())

    def also(self, cache: KVCache) -> None:
        """Include the cache of a draft model."""
        self._caches.append(cache)

    def require(self, n_prompt: int, n_new: int) -> None:
        """Check that a request fits into memory when it runs alone.

        Raises:
            NoMemoryError: it does not.
        """
        wanted = sum(_n_wanted(cache, n_prompt, n_new) for cache in self._caches)
        if wanted > UNASKED_BYTES and wanted > (most := self._memory.most(self)):
            raise NoMemoryError(
                f"keys and values of {most_positions(n_prompt, n_new, self._runner.block_size):,} tokens need "
                f"{wanted / 1e9:,.1f} GB, and {most / 1e9:,.1f} GB of memory are available for them; "
                "ask for fewer new tokens, shorten the prompt, or load the model with a smaller --context"
            )

    def admit(self, request: Request) -> Admitted | None:
        """Give a request a free slot; None: it has to wait until others have finished, or have read their prompts.

        Raises:
            NoMemoryError: memory is short, and no other request is running.
            ConfigError: the system refused the memory.
        """
        if not self._free:
            return None
        start = window_start(len(request.tokens), self._runner.block_size)
        window = request.tokens[start:-1]  # the last token is read in any case: its logits are needed
        shared = [common_length(other.held, window) for other in self.slots]
        best = max(range(len(shared)), key=shared.__getitem__)
        soon = max((common_length(window, self._unread(other)) for other in self._used.values()), default=0)
        if soon >= shared[best] + WORTH_WAITING:
            return None
        n_shared = shared[best]
        slot = self._slot_for(best, n_shared)
        if n_shared and slot != best and not self._has_room(request, slot, (slot, best)):
            n_shared = 0  # no memory for both the copy and its source
        if not self._has_room(request, slot, (slot,)):
            if self._memory.is_in_use:
                return None
            self._refuse(request)
        self._occupy(request, slot, best, n_shared)
        return Admitted(slot, n_shared)

    def leave(self, slot: int) -> None:
        """Free the slot of a finished request; its keys and values stay for prompts with the same prefix."""
        del self._used[slot]
        self._free.append(slot)

    def forget(self) -> None:
        """Treat all slots as empty, after a step that failed."""
        for slot in self.slots:
            slot.forget()

    def idle(self) -> list[int]:
        """Free slots that hold memory, least recently used first."""
        return [slot for slot in self._free if any(cache.capacity(slot) for cache in self._caches)]

    def held(self) -> int:
        """Bytes that the slots have allocated."""
        return sum(_n_held(cache, slot) for cache in self._caches for slot in range(cache.n_slots))

    def owed(self) -> int:
        """Bytes that running requests can still need beyond what their slots have allocated."""
        return sum(self._missing(request, slot) for slot, request in self._used.items())

    def release(self, slot: int) -> None:
        """Free the memory of a slot, and treat it as empty."""
        for cache in self._caches:
            cache.release(slot)
        self.slots[slot].forget()

    def _slot_for(self, best: int, n_shared: int) -> int:
        """The slot with the longest common prefix, if it is free and at least half of it is shared; else another."""
        return best if best in self._free and 2 * n_shared >= len(self.slots[best].held) > 0 else self._free[0]

    def _has_room(self, request: Request, slot: int, spared: Sequence[int]) -> bool:
        return self._memory.make_room(self._missing(request, slot), self, spared)

    def _refuse(self, request: Request) -> None:
        self.require(len(request.tokens), request.n_left)
        raise NoMemoryError("other programs have just taken the memory that this text needs; try again")

    def _occupy(self, request: Request, slot: int, best: int, n_shared: int) -> None:
        self._free.remove(slot)
        self._used[slot] = request
        try:
            with explain_out_of_memory():
                for cache in self._caches:
                    n_most = most_positions(len(request.tokens), request.n_left, cache.config.block_size)
                    cache.limit(slot, n_most, n_shared if slot == best else 0)
                if n_shared and slot != best:
                    self._runner.copy(best, slot, n_shared)
        except BaseException:
            self.slots[slot].forget()
            self.leave(slot)
            raise
        self.slots[slot].begin(request.tokens, n_shared)

    def _missing(self, request: Request, slot: int) -> int:
        """Bytes that a request can need beyond what its slot has allocated."""
        return sum(
            max(0, _n_wanted(cache, len(request.tokens), request.n_left) - _n_held(cache, slot))
            for cache in self._caches
        )

    def _unread(self, request: Request) -> list[int]:
        """The window of a request whose prompt is about to be read; empty for other requests."""
        assert request.slot is not None
        start = self.slots[request.slot].start
        return request.tokens[start:] if len(request.tokens) == request.n_prompt else []


def _n_wanted(cache: KVCache, n_tokens: int, n_new: int) -> int:
    return cache.n_bytes(most_positions(n_tokens, n_new, cache.config.block_size))


def _n_held(cache: KVCache, slot: int) -> int:
    return cache.n_bytes(cache.capacity(slot))
