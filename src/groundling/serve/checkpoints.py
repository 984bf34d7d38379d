"""Checkpoints of served runs, loaded on request and kept for a while."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from starlette.concurrency import run_in_threadpool

from groundling.bundle import Bundle, load_bundle
from groundling.bundle.layout import find_bundle
from groundling.errors import CheckpointError
from groundling.serve.http.errors import ApiError
from groundling.serve.state import Served
from groundling.storage import files
from groundling.storage.manifest import MANIFEST

T = TypeVar("T")
KEPT = 4
"""Checkpoints kept in memory."""


class CheckpointCache:
    """Recently used checkpoints; others, and those changed on disk, are loaded again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, tuple[_Stamp, Bundle]] = OrderedDict()
        self._loading: WeakValueDictionary[Path, asyncio.Lock] = WeakValueDictionary()

    async def get(self, served: Served, checkpoint: str | None) -> Bundle:
        """Return the served model, or another checkpoint of its run; concurrent requests load it once.

        Raises:
            ApiError: 404: it is not a run, or has no such checkpoint.
        """
        if checkpoint is None:
            return served.bundle
        if served.run is None:
            raise ApiError(404, f"{served.name} is not a run, and has no checkpoints", "no_checkpoint", "checkpoint")
        try:
            folder, stamp = await run_in_threadpool(_on_disk, served.run, checkpoint)
            lock = self._loading.setdefault(folder, asyncio.Lock())
            async with lock:
                if folder not in self._kept or self._kept[folder][0] != stamp:
                    bundle = await run_to_end(
                        run_in_threadpool(load_bundle, folder, context=served.bundle.config.block_size)
                    )
                    self._kept[folder] = stamp, bundle
        except CheckpointError as error:
            raise ApiError(404, str(error), "no_checkpoint", "checkpoint") from error
        bundle = self._kept[folder][1]
        self._kept.move_to_end(folder)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return bundle


_Stamp = tuple[int, int, int]


def _on_disk(run: Path, checkpoint: str) -> tuple[Path, _Stamp]:
    """Return a checkpoint's folder, and a stamp of its manifest, which is written last.

    Raises:
        CheckpointError: there is none.
    """
    folder = find_bundle(run, checkpoint)
    manifest = folder / MANIFEST
    try:
        facts = (manifest if files.is_regular(manifest) else folder.parent / MANIFEST).stat()
    except OSError as error:
        raise CheckpointError(f"{folder} was removed meanwhile") from error
    return folder, (facts.st_ino, facts.st_size, facts.st_mtime_ns)


async def run_to_end(work: Awaitable[T]) -> T:
    """Await work that cannot be cancelled, even if the caller is: its slot is free only when it has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # retrieve the exception, which has no caller left
        raise
