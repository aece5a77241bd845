"""Who may write in a folder: one command alone, or several tasks of one command together.

The lock is the kernel's and dies with its process, so none is ever stale.
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

#: What the holder's file says while a task prepares the folder for all of them.
_PREPARING = "a task that prepares it"
#: Seconds for which another command must be seen to hold the lock: some hold it for a moment, a killed one leaves its
#: name behind.
_SEEN = 1.0


@contextmanager
def hold(folder: Path, what: str = "") -> Iterator[None]:
    """Hold the lock of a folder (``.NAME.lock`` beside it) alone; ``what`` its holder does, for others to read.

    Whoever holds it for a moment is waited for. A command that is refused (``RequestError``) before it has begun
    anything leaves no lock and no folder behind.

    Raises:
        RequestError: another process holds it; the message names that process. Or it cannot be written there.
    """
    is_new = not _file(folder).exists()
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    with ExitStack() as stack:
        since = time.monotonic()
        # Opened each time: a command that was refused may have removed the file.
        while not _taken(stack.enter_context(_opened(folder)), fcntl.LOCK_EX, folder):
            stack.close()
            if time.monotonic() > since + _SEEN:
                raise _refusal(folder, what)
            time.sleep(0.05)
        _holder(folder).write_text(_oneself())
        try:
            yield
        except RequestError:
            if is_new and not folder.exists() and not (folder.parent / f".{folder.name}.partial").exists():
                _remove(folder, new_parents)
            raise
        finally:
            _holder(folder).unlink(missing_ok=True)


def _remove(folder: Path, parents: list[Path]) -> None:
    """Remove the lock of a folder, which this process holds, and those of these parents that are then empty."""
    for path in (_holder(folder), _file(folder)):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        for parent in parents:
            parent.rmdir()


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock of a folder alone; False where that cannot be seen."""
    try:
        with open(_file(folder), "rb+") as stream:
            return not _taken(stream.fileno(), fcntl.LOCK_SH, folder)
    except OSError:
        return False


def refuse_if_held(folder: Path, what: str = "") -> None:
    """Raise ``RequestError`` where a process holds the lock of a folder alone; ``what`` it does, beside its name."""
    if not _file(folder).exists():
        return
    with _opened(folder) as descriptor:
        if not _taken(descriptor, fcntl.LOCK_SH, folder):
            raise _refusal(folder, what)


@contextmanager
def share(folder: Path, prepare: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a folder together with others that share it; the first to come prepares the folder, alone.

    Raises:
        RequestError: a process that does not share holds it; the message names that process.
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
    """Share the lock once nobody holds it alone; refuse when that is not a task that prepares the folder."""
    since = time.monotonic()
    while not _taken(descriptor, fcntl.LOCK_SH, folder):
        if _named(folder) == _PREPARING:
            since = time.monotonic()
        elif time.monotonic() > since + _SEEN:
            raise _refusal(folder)
        time.sleep(0.05)


@contextmanager
def wait(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder alone, once whoever holds it has let go."""
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
            f"{folder.parent}: a file, or a link to nothing, is in the place of this folder (is a disk not mounted?): "
            "move it away, or set run.root or run.name"
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
        # A refused command may have removed the file since it was opened: a lock of that one keeps nobody out.
        return os.path.samestat(os.fstat(descriptor), _file(folder).stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _oneself() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f"process {os.getpid()} on {socket.gethostname()}{f' (SLURM job {job})' if job else ''}"


def _file(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def _holder(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.holder"


def _named(folder: Path) -> str | None:
    """Who is said to hold the lock alone."""
    try:
        return _holder(folder).read_text().strip()
    except FileNotFoundError:
        return None


def _refusal(folder: Path, what: str = "") -> RequestError:
    who = _named(folder) or "tasks of another command"
    return RequestError(f"{what or f'{folder} is being written'} by {who}: wait for it or stop it")
