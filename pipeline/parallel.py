"""Ordered work over processes: the same results in the same order whatever their number."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing import connection
from typing import Any, NamedTuple, TypeVar

from artefacts.errors import WorkerKilledError

T = TypeVar("T")


#: Tasks, at most, that wait beside those under way.
_MOST_AHEAD = 16


#: Bytes, about, that all tasks under way and waiting may carry, whatever the number of processes.
_MOST_CARRIED = 512 << 20


def count(asked: int) -> int:
    """Processes to use: as asked, or one for each core that this process may use."""
    if asked:
        return asked
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(
    function: Callable[..., T],
    tasks: Iterable[tuple[Any, ...]],
    workers: int,
    prepare: Callable[..., None] | None = None,
    prepare_with: tuple[Any, ...] = (),
    carried: Callable[[tuple[Any, ...]], int] = lambda task: 0,
) -> Iterator[T]:
    """``function(*task)`` for each task, in the order of the tasks, over ``workers`` processes (1: in this one).

    ``prepare(*prepare_with)`` runs once in each process before its first task. Tasks are taken as they are needed, and
    no more than carry about ``_MOST_CARRIED`` bytes at a time, as ``carried`` says of each.

    Raises:
        WorkerKilledError: a process was killed from outside, mostly for want of memory.
    """
    tasks = iter(tasks)
    first: deque[tuple[Any, ...]] = deque()
    held = 0
    for task in islice(tasks, workers):
        first.append(task)
        held += carried(task)
        if held >= _MOST_CARRIED:
            break
    processes = len(first)
    tasks = chain(_drained(first), tasks)
    if processes <= 1:
        if prepare and first:
            prepare(*prepare_with)
        yield from (function(*task) for task in tasks)
        return
    del task
    try:
        yield from _spread(function, tasks, processes, (prepare, prepare_with), carried)
    except BrokenProcessPool:
        raise WorkerKilledError(
            "a worker process was killed, mostly for want of memory: run the same again, with fewer data.workers if it "
            "recurs; what is finished is kept"
        ) from None


def _drained(tasks: deque[T]) -> Iterator[T]:
    while tasks:
        yield tasks.popleft()


def _spread(
    function: Callable[..., T],
    tasks: Iterator[tuple[Any, ...]],
    workers: int,
    prepared: tuple[Any, ...],
    carried: Callable[[tuple[Any, ...]], int],
) -> Iterator[T]:
    # A forked child would inherit the threads' locks of Arrow without the threads.
    context = multiprocessing.get_context("spawn")
    with _no_signals():
        pool = ProcessPoolExecutor(workers, context, _begin, prepared)
    with pool:
        pending: deque[tuple[Future[T], int]] = deque()
        held = 0
        try:
            for task in tasks:
                with _no_signals():
                    pending.append((pool.submit(function, *task), carried(task)))
                held += pending[-1][1]
                while len(pending) >= workers + min(workers, _MOST_AHEAD) or held >= _MOST_CARRIED:
                    future, size = pending.popleft()
                    yield future.result()
                    held -= size
            while pending:
                yield pending.popleft()[0].result()
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.kill()
            raise
        except BaseException:
            for future, _ in pending:
                future.cancel()
            raise


@contextmanager
def _no_signals() -> Iterator[None]:
    """Processes that begin here do not hear what is sent to all: Ctrl-C, SLURM's warning. The parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(prepare: Callable[..., None] | None, prepare_with: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare:
        prepare(*prepare_with)


def _end_with_parent() -> None:
    """A killed parent must not leave workers waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


class Share(NamedTuple):
    """Task ``task`` of ``tasks``: it does every ``tasks``-th piece."""

    task: int
    tasks: int

    def owns(self, number: int) -> bool:
        return number % self.tasks == self.task


#: All of the work.
WHOLE = Share(0, 1)
