"""The thread that owns the rankings file, and its short queue.

SQLite waits for locks, and disks can be slow. So this does not use the shared thread pool: a few requests at a time
wait here, for a few seconds, and then get 503 with Retry-After.
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
"""Queued and running calls; more are refused."""
MAYBE_DONE = "rankings_slow"
RETRY_S = 5
GRACE_S = 1.0
"""Extra time after the wait for a lock, for the work itself."""
CLOSE_S = 2.0


class Store:
    """The rankings, for the event loop. A call cancelled while it runs may still take effect.

    Args:
        path: the file.
        timeout_s: how long a call may wait in the queue and for locks together.
        counted: context manager entered during a call, so that draining waits for it.
    """

    def __init__(
        self,
        path: Path,
        timeout_s: float = BUSY_S,
        counted: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._path, self._timeout_s, self._counted = path, timeout_s, counted
        self._cache = RankingCache(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rankings")
        self._n_waiting = 0

    def deadline(self) -> float:
        """Deadline of a call made now, or of several that belong together."""
        return time.monotonic() + self._timeout_s

    async def call(self, work: Callable[[RankingCache], T], until: float | None = None) -> T:
        """Run a function of the rankings in the thread.

        Args:
            work: the function.
            until: a `deadline`; None: that of a call made now.

        Raises:
            ApiError: 503: the file cannot be used, is locked for too long, or the queue is full. With the code
                MAYBE_DONE, the work has begun and may still take effect.
        """
        if self._n_waiting >= MAX_WAITING:
            raise self._busy(f"{self._n_waiting} requests are waiting")
        loop = asyncio.get_running_loop()
        if until is None:
            until = self.deadline()
        future = self._thread.submit(self._in_time, work, until)
        self._n_waiting += 1
        # Counted until the thread has finished, even if the caller has disconnected.
        future.add_done_callback(lambda _: self._is_over(loop))
        try:
            with self._counted():
                async with asyncio.timeout(until + GRACE_S - time.monotonic()):
                    return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.cancel():  # not begun
                raise self._busy("another program holds the lock") from None
            raise self._busy("the request is still in progress", MAYBE_DONE) from None
        except (DataError, StorageError, OSError) as error:  # OSError: something else is in the file's place
            raise ApiError(503, str(error), "rankings_unusable", retry_after_s=RETRY_S) from error

    def _is_over(self, loop: asyncio.AbstractEventLoop) -> None:
        def less() -> None:
            self._n_waiting -= 1

        if not loop.is_closed():
            loop.call_soon_threadsafe(less)

    def _in_time(self, work: Callable[[RankingCache], T], until: float) -> T:
        """Run the work with the time left; called in the thread."""
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise self._busy("another program holds the lock")
        self._cache.set_timeout(left_s)
        return work(self._cache)

    def _busy(self, why: str, code: str = "rankings_busy") -> ApiError:
        message = f"the rankings at {self._path} are busy: {why}; try again in {RETRY_S} s"
        return ApiError(503, message, code, retry_after_s=RETRY_S)

    async def judgements(self) -> AsyncIterator[Judgement]:
        """All judgements in insertion order; others may be added meanwhile."""
        last = 0
        while rows := await self.call(partial(RankingCache.after, last=last)):
            for _, judgement in rows:
                yield judgement
            last = rows[-1][0]

    async def close(self) -> None:
        """Close the file; drop queued calls."""
        closing: Future[None] = self._thread.submit(self._cache.close)
        with suppress(TimeoutError):  # SQLite recovers without a clean close
            async with asyncio.timeout(CLOSE_S):
                await asyncio.shield(asyncio.wrap_future(closing))
        self._thread.shutdown(wait=False, cancel_futures=True)
