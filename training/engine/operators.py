"""Build and load DeepSpeed's operator for offloading to a disk, so that no training start waits for a dead build.

torch guards such a build, and the look whether it must be built again at every start, with a plain ``lock`` file that a
killed process leaves behind and on which every later start waits for ever. Here both happen under a lock that dies with
its process, so a ``lock`` found then is stale. Once loaded in a process, an operator is not looked at again.
"""

import os
import shutil
from pathlib import Path

from artefacts import c_library, lock
from artefacts.errors import RequestError
from artefacts.progress import log

#: Folders of what is built: files read and written while something else is done.
_FOLDERS = ("pin_memory", "async_io")


def build_file_access(extensions: Path) -> None:
    """Build in a folder, or find there, and load what offloading to a disk needs; minutes, the first time.

    Raises:
        RequestError: it cannot be built here.
    """
    _find_our_ninja()
    if not c_library.may_write(extensions):
        extensions = _own_copy(extensions)
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
            log("compiling DeepSpeed's operator for offloading to a disk, once: a minute or two")
        builder.load(verbose=False)


def _own_copy(extensions: Path) -> Path:
    """A folder of this user's in place of one that may not be written, with what is built there."""
    own = c_library.user_cache() / "torch_extensions"
    for name in _FOLDERS:
        if (extensions / name).is_dir() and not (own / name).exists():
            shutil.copytree(extensions / name, own / name)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(own)
    return own


def _find_our_ninja() -> None:
    """Put the pinned ninja first on the path: there may be none, and after one of another version all is built anew."""
    import ninja

    folders = os.environ.get("PATH", "").split(os.pathsep)
    if ninja.BIN_DIR and folders[0] != ninja.BIN_DIR:
        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, *folders])
