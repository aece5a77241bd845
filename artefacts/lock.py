"""Folder locks. A lock is either held exclusively by one command or shared by several tasks of one command.

The kernel releases a lock when the process that holds it dies, so locks are never stale.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from artefacts import atomic
from artefacts.errors import RequestError

#: Content of the holder file while one task prepares the folder for all tasks.
_PREPARING = "a task that prepares it"
#: Seconds to wait for a lock before giving up. Some commands hold a lock only for a moment.
_PATIENCE = 1.0


@contextmanager
def hold(folder: Path, what: str = "") -> Iterator[None]:
    """Hold a folder's lock (``.NAME.lock`` next to it) exclusively.

    If the body raises ``RequestError`` before anything was written, the lock file and new parent folders are removed.

    Args:
        folder: the folder.
        what: what another holder of the lock is doing, for the error message.

    Raises:
        RequestError: another process holds the lock (the message names it), or the lock file cannot be written.
    """
    is_new = not _file(folder).exists()
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    with ExitStack() as stack:
        since = time.monotonic()
        # Reopen the file each time, because a command that was refused may have removed it.
        while not _taken(stack.enter_context(_opened(folder)), fcntl.LOCK_EX, folder):
            stack.close()
            if time.monotonic() > since + _PATIENCE:
                raise _refusal(folder, what)
            time.sleep(0.05)
        _holder(folder).write_text(_this_process())
        try:
            yield
        except RequestError:
            if is_new and not folder.exists() and not (folder.parent / f".{folder.name}.partial").exists():
                _remove(folder, new_parents)
            raise
        finally:
            _holder(folder).unlink(missing_ok=True)


def _remove(folder: Path, parents: list[Path]) -> None:
    """Remove the files of a lock that this process holds, and then any of ``parents`` that are empty."""
    for path in (_holder(folder), _file(folder)):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        for parent in parents:
            parent.rmdir()


def is_held(folder: Path) -> bool:
    """Return whether a process holds a folder's lock exclusively. Returns False if the lock file cannot be opened."""
    try:
        with open(_file(folder), "rb+") as stream:
            return not _taken(stream.fileno(), fcntl.LOCK_SH, folder)
    except OSError:
        return False


def refuse_if_held(folder: Path, what: str = "") -> None:
    """Raise ``RequestError`` if a process holds a folder's lock exclusively.

    ``what`` says what that process is doing, for the error message.
    """
    if not _file(folder).exists():
        return
    with _opened(folder) as descriptor:
        if not _taken(descriptor, fcntl.LOCK_SH, folder):
            raise _refusal(folder, what)


@contextmanager
def share(folder: Path, prepare: Callable[[], None]) -> Iterator[None]:
    """Share a folder's lock with other processes. The first process calls ``prepare`` while the others wait.

    Raises:
        RequestError: a process holds the lock exclusively; the message names it.
    """
    with _opened(folder) as descriptor:
        if _taken(descriptor, fcntl.LOCK_EX, folder):
            _holder(folder).write_text(_PREPARING)
            prepare()
            _holder(folder).unlink(missing_ok=True)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        else:
            _wait_for_preparation(descriptor, folder)
        yield


def _wait_for_preparation(descriptor: int, folder: Path) -> None:
    """Wait until the folder is prepared, then share its lock.

    Raises:
        RequestError: a process holds the lock exclusively for any other purpose.
    """
    since = time.monotonic()
    while not _taken(descriptor, fcntl.LOCK_SH, folder):
        if _named(folder) == _PREPARING:
            since = time.monotonic()
        elif time.monotonic() > since + _PATIENCE:
            raise _refusal(folder)
        time.sleep(0.05)


@contextmanager
def wait(folder: Path) -> Iterator[None]:
    """Wait for a folder's lock, and hold it exclusively."""
    with _opened(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(_file(folder), os.O_RDWR | os.O_CREAT, 0o666)
    except (FileExistsError, NotADirectoryError):
        raise RequestError(
            f"{folder.parent} is a file or a dangling link, not a folder (is a disk not mounted?): move it away, or "
            "set run.root or run.name"
        ) from None
    except OSError as error:
        raise atomic.refused(folder.parent, error) or error from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _taken(descriptor: int, how: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        # A refused command may have removed the file after it was opened. A lock on a removed file has no effect.
        return os.path.samestat(os.fstat(descriptor), _file(folder).stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _this_process() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f"process {os.getpid()} on {socket.gethostname()}{f' (SLURM job {job})' if job else ''}"


def _file(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def _holder(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.holder"


def _named(folder: Path) -> str | None:
    """Return the exclusive holder's description of itself, or None if there is no holder file."""
    try:
        return _holder(folder).read_text().strip()
    except FileNotFoundError:
        return None


def _refusal(folder: Path, what: str = "") -> RequestError:
    who = _named(folder) or "tasks of another command"
    return RequestError(f"{what or f'{folder} is being written'} by {who}: wait for it or stop it")
