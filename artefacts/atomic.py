"""Atomic writes: write a temporary file, fsync it, then rename it. Readers see either the old or the new content."""

import errno
import json
import os
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

from artefacts.errors import RequestError


def temp_path(path: Path) -> Path:
    """Return a unique temporary path next to ``path``, for a file that will be renamed to ``path`` once it is complete.

    If the writer is killed, the stage removes the file later (``artefacts/stage.py``). The name contains random digits
    rather than a process ID, because tasks on several machines may write the same file.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically and durably."""
    write_bytes(path, text.encode())


def refused(folder: Path, error: OSError) -> RequestError | None:
    """Return a RequestError if ``error`` means that the folder is not writable, or None for any other error."""
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return None
    return RequestError(
        f"{folder} cannot be written ({error.strerror}): set run.root to a folder of yours, and link the parts of that "
        'run that you want to use into it (docs/troubleshooting.md, "Using another user\'s run")'
    )


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content atomically and durably.

    Raises:
        RequestError: the folder is not writable.
    """
    partial = temp_path(path)
    try:
        stream = open(partial, "wb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise refused(path.parent, error) or error from None
    with stream:
        stream.write(content)
    rename_file(partial, path)
    sync_folder(path.parent)


def rename_file(partial: Path, path: Path) -> None:
    """Fsync a finished file, then rename it. After a power failure, ``path`` is never incomplete."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value with ``write_text``, indented and with sorted keys."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file and return its value.

    Raises:
        RequestError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: damaged ({error}); move {path.parent} away and build it again") from None


def sync_tree(folder: Path) -> None:
    """Fsync a folder and every file and folder below it."""
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(parent))


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that renames in it survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_folder(partial: Path, target: Path) -> None:
    """Publish a finished folder under its final name. The target must not exist or must be an empty folder."""
    sync_tree(partial)
    os.rename(partial, target)
    sync_folder(target.parent)


def move_aside(folder: Path) -> Path:
    """Move an outdated folder to ``previous/DATE-NAME`` next to it, on the same disk, and return its new path.

    Raises:
        RequestError: the folder cannot be moved because a disk is mounted there.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    shelf = folder.parent / "previous"
    shelf.mkdir(parents=True, exist_ok=True)
    aside, count = shelf / f"{stamp}-{folder.name}", 1
    while aside.exists():
        aside, count = shelf / f"{stamp}-{folder.name}-{count}", count + 1
    try:
        os.rename(folder, aside)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EBUSY):
            raise
        raise RequestError(
            f"{folder} cannot be moved aside ({error.strerror}): a disk is mounted there. Use a folder on that disk "
            "(by a link or run.root), or empty it by hand"
        ) from None
    return aside
