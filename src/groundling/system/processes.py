"""Jobs that have nothing to do with each other, done side by side in worker processes.

A worker is a fresh interpreter (spawned: a fork of a process that has threads may hang), so a script that uses this
needs `if __name__ == "__main__":`. It ends with its parent, however that ends.
"""

import multiprocessing
import os
import signal
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
    """What a worker sends back: a result, or why there is none."""

    result: Any = None
    error: Exception | None = None


def n_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(work: Callable[[J], R], jobs: Sequence[J], n_workers: int) -> Generator[R, None, None]:
    """Do jobs in worker processes; give each result as soon as it is there.

    When the generator is closed, or an error ends it, the workers end, whatever they are at.

    Args:
        work: a function that can be imported by its name. It, the jobs and the results are pickled.
        jobs: begun in this order; with the longest first, the workers end at about the same time.
        n_workers: how many at once.

    Raises:
        GroundlingError: as the work raised it.
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
    """Idle workers, each at the other end of a connection; at the end of the block they are no more."""
    spawn = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(n_workers):
            ours, theirs = spawn.Pipe()
            # A daemon, so that the interpreter does not wait for it at exit.
            workers[ours] = spawn.Process(target=_serve, args=(theirs, work), daemon=True)
            with _ignore_sigint():
                workers[ours].start()
            theirs.close()  # else the end of the worker would not be the end of the connection
        yield workers
    finally:
        started = [process for process in workers.values() if process.pid is not None]
        for process in started:
            process.terminate()
        for process in started:
            process.join()


@contextmanager
def _ignore_sigint() -> Iterator[None]:
    """What is started inside this block never sees Ctrl-C, which a terminal sends to every process of a command.

    The parent sees it, and ends its workers; they would only add a traceback each.
    """
    resource_tracker.ensure_running()  # started together with the first worker, it would undo what is set here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hand_out(job: object, connection: Connection) -> None:
    with suppress(ConnectionError):  # a worker that has died is noticed when its result does not come
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
    """What a worker does all its life."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError):
        while True:
            connection.send(_outcome(work, connection.recv()))


def _outcome(work: Callable[[Any], Any], job: Any) -> _Outcome:
    try:
        return _Outcome(result=work(job))
    except GroundlingError as error:
        return _Outcome(error=error)
    except Exception:  # our own bug: not every exception can be sent, and none takes its traceback along
        return _Outcome(error=RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))


def _end_with_parent() -> None:
    """End this process when its parent has ended, were it by SIGKILL."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
