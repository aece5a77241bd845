"""Write beside the target, fsync, rename: a reader sees the old file or the new one, never half of one."""

import errno
import json
import os
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

from artefacts.errors import RequestError


def beside(path: Path) -> Path:
    """A name of its own, in the same folder, for a file that will be renamed to ``path`` once it is whole.

    A stage removes the files of such names that killed writers left (``artefacts/stage.py``). Tasks on several machines
    may write the same file: process numbers would not tell them apart.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically and durably."""
    write_bytes(path, text.encode())


def refused(folder: Path, error: OSError) -> RequestError | None:
    """What to say where a folder may not be written; None: the error is of another kind."""
    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        return None
    return RequestError(
        f"{folder} cannot be written ({error.strerror}): set run.root to a folder of yours, and link into it what you "
        "want to use of that run (docs/troubles.md, Another user's run)"
    )


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file's content atomically and durably.

    Raises:
        RequestError: its folder may not be written.
    """
    partial = beside(path)
    try:
        stream = open(partial, "wb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise refused(path.parent, error) or error from None
    with stream:
        stream.write(content)
    rename_file(partial, path)
    sync_folder(path.parent)


def rename_file(partial: Path, path: Path) -> None:
    """Give a finished file its name, its content safely on disk before: after a power failure it is whole or absent."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """``write_text`` of a JSON value, indented, in one spelling."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        RequestError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: damaged ({error}); move {path.parent} away and make it again") from None


def sync_tree(folder: Path) -> None:
    """fsync every file below a folder, and the folders."""
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(parent))


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that renames in it last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_folder(partial: Path, target: Path) -> None:
    """Publish a finished folder under its name; the name must be free, or that of an empty folder."""
    sync_tree(partial)
    os.rename(partial, target)
    sync_folder(target.parent)


def move_aside(folder: Path) -> Path:
    """Move a superseded folder to ``previous/DATE-NAME`` next to it, on its own disk, and return where it went.

    Raises:
        RequestError: it cannot be moved, as a disk is mounted there.
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
            f"{folder} cannot be moved aside ({error.strerror}): a disk is mounted there. Give the run a folder on "
            "that disk, by a link or run.root, or empty it by hand"
        ) from None
    return aside
