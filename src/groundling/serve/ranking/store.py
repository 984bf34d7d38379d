"""The thread that alone touches the file of rankings, and the short queue before it.

SQLite waits for locks, and disks can be slow. Nothing waits for them in the thread pool that all requests share: a few
requests at a time wait here, for a few seconds, and are then told to try again.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from groundling.align.preferences.database import BUSY_S
from groundling.align.preferences.judgement import Judgement
from groundling.errors import DataError, StorageError
from groundling.serve.http.errors import ApiError
from groundling.serve.ranking.ranking_cache import RankingCache

T = TypeVar("T")
MAX_WAITING = 32
"""Calls that wait or run; more are refused at once."""
MAYBE_DONE = "rankings_slow"
RETRY_S = 5
GRACE_S = 1.0
"""Longer than work may wait for a lock, for what comes after the wait."""
CLOSE_S = 2.0


class Store:
    """The rankings, for the event loop. A call that is cancelled while it runs may still be carried out.

    Args:
        path: the file.
        patience_s: how long a piece of work may wait, for others and for locks together.
        counted: is entered while a piece of work is waited for: a server that drains waits, too.
    """

    def __init__(
        self,
        path: Path,
        patience_s: float = BUSY_S,
        counted: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._path, self._patience_s, self._counted = path, patience_s, counted
        self._cache = RankingCache(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rankings")
        self._n_waiting = 0

    def deadline(self) -> float:
        """Until when what is asked now may wait: of work in several pieces, for all of them."""
        return time.monotonic() + self._patience_s

    async def call(self, work: Callable[[RankingCache], T], until: float | None = None) -> T:
        """Do something with the book, in its thread.

        Args:
            work: what to do.
            until: how long it may wait, by `deadline`; None: as long as work that is asked now.

        Raises:
            ApiError: 503: the file cannot be used, is locked for too long, or is waited for by many already. With the
                code MAYBE_DONE, the work is under way.
        """
        if self._n_waiting >= MAX_WAITING:
            raise self._busy(f"{self._n_waiting} requests wait for them")
        loop = asyncio.get_running_loop()
        if until is None:
            until = self.deadline()
        future = self._thread.submit(self._in_time, work, until)
        self._n_waiting += 1
        # Not when the caller has gone, but when the thread is done with it.
        future.add_done_callback(lambda _: self._is_over(loop))
        try:
            with self._counted():
                async with asyncio.timeout(until + GRACE_S - time.monotonic()):
                    return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.cancel():  # it was not begun
                raise self._busy("they have been locked since this was asked") from None
            raise self._busy("what was asked is under way", MAYBE_DONE) from None
        except (DataError, StorageError, OSError) as error:  # the last: what stands in the file's place, or above it
            raise ApiError(503, str(error), "rankings_unusable", retry_after_s=RETRY_S) from error

    def _is_over(self, loop: asyncio.AbstractEventLoop) -> None:
        def less() -> None:
            self._n_waiting -= 1

        if not loop.is_closed():
            loop.call_soon_threadsafe(less)

    def _in_time(self, work: Callable[[RankingCache], T], until: float) -> T:
        """In the thread: with the time that is left."""
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise self._busy("they have been locked since this was asked")
        self._cache.wait_at_most(left_s)
        return work(self._cache)

    def _busy(self, why: str, code: str = "rankings_busy") -> ApiError:
        message = f"the rankings at {self._path} are busy: {why}; try again in {RETRY_S} s"
        return ApiError(503, message, code, retry_after_s=RETRY_S)

    async def judgements(self) -> AsyncIterator[Judgement]:
        """All of them in the order of their coming; others may keep some meanwhile."""
        last = 0
        while rows := await self.call(partial(RankingCache.after, last=last)):
            for _, judgement in rows:
                yield judgement
            last = rows[-1][0]

    async def close(self) -> None:
        """Give the file back; what waits is not done any more."""
        closing: Future[None] = self._thread.submit(self._cache.close)
        with suppress(TimeoutError):  # SQLite is left in good order also without it
            async with asyncio.timeout(CLOSE_S):
                await asyncio.shield(asyncio.wrap_future(closing))
        self._thread.shutdown(wait=False, cancel_futures=True)
