"""Run independent jobs in parallel worker processes.

Workers are spawned, because a fork of a process with threads may hang; so a script needs `if __name__ == "__main__":`.
They end with their parent, however that ends.

Why not ProcessPoolExecutor: before Python 3.14 it cannot end workers in the middle of a job; it does not report a dead
worker's exit code; and its workers react to Ctrl-C until an initializer has run.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from groundling.errors import GroundlingError, TrainingError

J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True)
class _Outcome:
    """A worker's result or error."""

    result: Any = None
    error: Exception | None = None


def n_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(work: Callable[[J], R], jobs: Sequence[J], n_workers: int) -> Generator[R, None, None]:
    """Run jobs in worker processes; yield results in order of completion.

    Closing the generator, or an error, terminates the workers at once.

    Args:
        work: an importable function. It, the jobs and the results are pickled.
        jobs: started in this order; put the longest first to balance the load.
        n_workers: number of parallel workers.

    Raises:
        GroundlingError: as raised by the work.
        TrainingError: a worker was killed.
    """
    waiting = deque(jobs)
    with _workers(work, min(n_workers, len(jobs))) as workers:
        busy = set(workers)
        for connection in workers:
            _hand_out(waiting.popleft(), connection)
        while busy:
            for connection in busy.intersection(wait(list(busy))):
                result: R = _receive(connection, workers[connection])
                if waiting:
                    _hand_out(waiting.popleft(), connection)
                else:
                    busy.remove(connection)
                yield result


@contextmanager
def _workers(work: Callable[[J], R], n_workers: int) -> Iterator[dict[Connection, SpawnProcess]]:
    """Idle workers by connection; terminated at the end of the block."""
    spawn = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(n_workers):
            ours, theirs = spawn.Pipe()
            # Daemons, so that the interpreter does not wait for them at exit.
            workers[ours] = spawn.Process(target=_serve, args=(theirs, work), daemon=True)
            with _ignore_sigint():
                workers[ours].start()
            theirs.close()  # else the connection stays open when the worker ends
        yield workers
    finally:
        started = [process for process in workers.values() if process.pid is not None]
        for process in started:
            process.terminate()
        for process in started:
            process.join()


@contextmanager
def _ignore_sigint() -> Iterator[None]:
    """Block SIGINT in processes started inside the block.

    A terminal sends Ctrl-C to all processes of a command. The parent handles it and ends its workers; each worker would
    only add a traceback.
    """
    if sys.platform == "win32":  # which has no signal masks
        yield
        return
    resource_tracker.ensure_running()  # its start unblocks SIGINT, so start it first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hand_out(job: object, connection: Connection) -> None:
    with suppress(ConnectionError):  # `_receive` reports a dead worker
        connection.send(job)


def _receive(connection: Connection, process: SpawnProcess) -> Any:
    try:
        outcome = connection.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise TrainingError(
            f"a worker process ended with exit code {process.exitcode} and without a result; if memory was short, "
            "run one at a time: --at-once 1"
        ) from None
    if outcome.error is not None:
        raise outcome.error
    return outcome.result


def _serve(connection: Connection, work: Callable[[Any], Any]) -> None:
    """Main loop of a worker."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError):
        while True:
            connection.send(_outcome(work, connection.recv()))


def _outcome(work: Callable[[Any], Any], job: Any) -> _Outcome:
    try:
        return _Outcome(result=work(job))
    except GroundlingError as error:
        return _Outcome(error=error)
    except Exception:  # a bug; not every exception can be pickled, and none with its traceback
        return _Outcome(error=RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))


def _end_with_parent() -> None:
    """Exit when the parent has ended, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
