"""Who may write in a folder: one command alone, or several tasks of one command together.

The lock is the kernel's and dies with its process, so none is ever stale.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import RequestError

#: Seconds that a task waits for another that prepares the folder for all of them.
_PREPARING = 60.0


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder (``.NAME.lock`` beside it) alone.

    Raises:
        RequestError: another process holds it; the message names that process.
    """
    with _opened(folder) as descriptor:
        if not _taken(descriptor, fcntl.LOCK_EX):
            raise _refusal(folder)
        _holder(folder).write_text(f"process {os.getpid()}")
        try:
            yield
        finally:
            _holder(folder).unlink(missing_ok=True)


@contextmanager
def share(folder: Path, prepare: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a folder together with others that share it; the first to come prepares the folder, alone.

    Raises:
        RequestError: a process that does not share holds it; the message names that process.
    """
    with _opened(folder) as descriptor:
        if _taken(descriptor, fcntl.LOCK_EX):
            # A killed holder leaves its name.
            _holder(folder).unlink(missing_ok=True)
            prepare()
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        else:
            until = time.monotonic() + _PREPARING
            while not _taken(descriptor, fcntl.LOCK_SH):
                if time.monotonic() > until or _holder(folder).exists():
                    raise _refusal(folder)
                time.sleep(0.05)
        yield


@contextmanager
def wait(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder alone, once whoever holds it has let go."""
    with _opened(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.parent / f".{folder.name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _taken(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.holder"


def _refusal(folder: Path) -> RequestError:
    try:
        who = _holder(folder).read_text().strip()
    except FileNotFoundError:
        who = "tasks of another command"
    return RequestError(f"{folder} is being written by {who}: wait for it or stop it")
