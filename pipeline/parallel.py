"""Run tasks in worker processes. Results arrive in task order, regardless of the number of processes."""

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


#: Maximum number of tasks that are queued in addition to the running ones.
_MOST_AHEAD = 16
#: Approximate limit on the total bytes that running and queued tasks carry, regardless of the number of processes.
_MOST_CARRIED = 512 << 20


def count(workers: int) -> int:
    """Return the number of processes to use: ``workers`` or, if that is 0, one per core available to this process."""
    if workers:
        return workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(
    function: Callable[..., T],
    tasks: Iterable[tuple[Any, ...]],
    workers: int,
    prepare: Callable[..., None] | None = None,
    prepare_with: tuple[Any, ...] = (),
    carried: Callable[[tuple[Any, ...]], int] = lambda task: 0,
) -> Iterator[T]:
    """Yield the results of ``function(*task)``, in task order.

    Args:
        function: called for each task.
        tasks: arguments for each call. They are consumed lazily, so that the tasks in memory carry at most about
            ``_MOST_CARRIED`` bytes.
        workers: number of processes. With 1, the tasks run in this process.
        prepare: called with ``prepare_with`` once per process, before its first task.
        prepare_with: arguments for ``prepare``.
        carried: returns the number of bytes that a task carries.

    Raises:
        WorkerKilledError: a worker was killed from outside, usually because memory ran out.
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
            "a worker process was killed, usually because memory ran out: run the same command again, with fewer "
            "data.workers if it recurs; finished work is kept"
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
    # A forked child would inherit the locks of Arrow's threads, but not the threads.
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
    """Block SIGINT and SIGUSR1, so that processes started in this context ignore Ctrl-C and SLURM's warning signal.

    Both signals are sent to every process in the group. The parent handles them and stops the workers.
    """
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
    """Exit when the parent dies. Otherwise a killed parent would leave behind workers that wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


class TaskShard(NamedTuple):
    """The work assigned to task number ``task`` out of ``tasks``: every ``tasks``-th piece of work."""

    task: int
    tasks: int

    def owns(self, number: int) -> bool:
        return number % self.tasks == self.task


#: All the work, not divided between tasks.
ALL_TASKS = TaskShard(0, 1)
