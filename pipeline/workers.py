"""Ordered work over processes: the same results in the same order whatever their number."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection
from typing import Any, TypeVar

T = TypeVar("T")

#: Tasks handed out ahead of the one whose result is awaited, for each process.
_AHEAD = 3


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
) -> Iterator[T]:
    """``function(*task)`` for each task, in the order of the tasks, over ``workers`` processes (1: in this one).

    ``prepare(*prepare_with)`` runs once in each process before its first task.
    """
    if workers == 1:
        if prepare:
            prepare(*prepare_with)
        yield from (function(*task) for task in tasks)
        return
    # A forked child would inherit the threads' locks of Arrow without the threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (prepare, prepare_with)) as pool:
        pending: deque[Future[T]] = deque()
        try:
            for task in tasks:
                pending.append(pool.submit(function, *task))
                if len(pending) >= workers * _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


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
