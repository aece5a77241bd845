"""Builds and loads DeepSpeed's operator for offloading to disk, ignoring lock files left by killed builds.

torch guards the build with a plain ``lock`` file. A killed process leaves the file behind, and every later start then
waits forever for its removal. Here the build runs under a lock that is released when its process dies, so any ``lock``
file that it encounters is stale.
"""

import os
import shutil
from pathlib import Path

from artefacts import c_library, lock
from artefacts.errors import RequestError
from artefacts.progress import log

#: Folders of the two extensions: pinned memory, and the asynchronous I/O that uses it.
_FOLDERS = ("pin_memory", "async_io")


def build_file_access(extensions: Path) -> None:
    """Load the operator for offloading to disk. If needed, builds it first, which takes a minute or two.

    Args:
        extensions: torch's folder of compiled extensions.

    Raises:
        RequestError: the operator cannot be built on this node.
    """
    _prefer_pinned_ninja()
    if not c_library.may_write(extensions):
        extensions = _user_copy(extensions)
    with lock.wait(extensions / "async_io"):
        for folder in _FOLDERS:
            (extensions / folder / "lock").unlink(missing_ok=True)
        from deepspeed.accelerator import get_accelerator

        builder = get_accelerator().create_op_builder("AsyncIOBuilder")
        if builder is None or not builder.is_compatible(verbose=False):
            raise RequestError(
                "train.offload_optimizer=nvme needs a C++ compiler and libaio with its headers on every node: install "
                "them (Debian: libaio-dev), or set train.offload_optimizer=cpu"
            )
        if not any(extensions.glob("async_io/*.so")):
            log("compiling DeepSpeed's operator for offloading to a disk; this happens once and takes a minute or two")
        builder.load(verbose=False)


def _user_copy(extensions: Path) -> Path:
    """Copy a read-only folder of extensions to this user's cache, and return the copy."""
    copy = c_library.user_cache() / "torch_extensions"
    for name in _FOLDERS:
        if (extensions / name).is_dir() and not (copy / name).exists():
            shutil.copytree(extensions / name, copy / name)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(copy)
    return copy


def _prefer_pinned_ninja() -> None:
    """Put the pinned ninja first in PATH. There may be no other, and a different version would rebuild all files."""
    import ninja

    folders = os.environ.get("PATH", "").split(os.pathsep)
    if ninja.BIN_DIR and folders[0] != ninja.BIN_DIR:
        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, *folders])
