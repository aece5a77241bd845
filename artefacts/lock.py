"""One command at a time in a folder; the lock dies with its process, so none is ever stale."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from configs.errors import RequestError


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder (``.NAME.lock`` beside it).

    Raises:
        RequestError: another process holds it; the message names that process.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f".{folder.name}.lock"
    holder = folder.parent / f".{folder.name}.holder"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = holder.read_text().strip() if holder.exists() else "another process"
        raise RequestError(f"{folder} is being written by {who}: wait for it or stop it") from None
    try:
        holder.write_text(f"process {os.getpid()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
