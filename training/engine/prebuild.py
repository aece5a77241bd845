"""Build and load DeepSpeed's operators, so that no training start waits for a dead build.

torch guards such a build, and the look whether it must be built again at every start, with a plain ``lock`` file that a
killed process leaves behind and on which every later start waits for ever. Here both happen under a lock that dies with
its process, so a ``lock`` found then is stale. Once loaded in a process, an operator is not looked at again.

``python -m training.engine.prebuild`` builds what every run on CPU needs; ``make setup`` does so.
"""

import os
import sys
from pathlib import Path

from filelock import FileLock

from configs import command
from configs.errors import RequestError

#: DeepSpeed's name of a builder -> folders of what it builds: exchange over shared memory, and files read and written
#: while something else is done.
_FOLDERS = {"ShareMemCommBuilder": ("deepspeed_shm_comm",), "AsyncIOBuilder": ("pin_memory", "async_io")}


def build_shared_memory(extensions: Path) -> None:
    """Build in a folder, or find there, and load what collectives on CPU go through; waits for another that does so."""
    _build("ShareMemCommBuilder", extensions)


def build_file_access(extensions: Path) -> None:
    """Build in a folder, or find there, and load what offloading to a disk needs; minutes, the first time.

    Raises:
        RequestError: it cannot be built here.
    """
    if not _build("AsyncIOBuilder", extensions):
        raise RequestError(
            "train.offload_optimizer=nvme needs a C++ compiler and libaio with its headers on every node: install "
            "them (Debian: libaio-dev), or set train.offload_optimizer=cpu"
        )


def _build(name: str, extensions: Path) -> bool:
    """False: there is no such operator for this device, or not what it is built from."""
    extensions.mkdir(parents=True, exist_ok=True)
    _find_our_ninja()
    with FileLock(extensions / f".{_FOLDERS[name][-1]}.lock"):
        for folder in _FOLDERS[name]:
            (extensions / folder / "lock").unlink(missing_ok=True)
        from deepspeed.accelerator import get_accelerator

        builder = get_accelerator().create_op_builder(name)
        if builder is None or not builder.is_compatible(verbose=False):
            return False
        builder.load(verbose=False)
    return True


def _find_our_ninja() -> None:
    """Put the pinned ninja first on the path: there may be none, and after one of another version all is built anew."""
    import ninja

    folders = os.environ.get("PATH", "").split(os.pathsep)
    if ninja.BIN_DIR and folders[0] != ninja.BIN_DIR:
        os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, *folders])


def main(_arguments: object) -> int:
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        build_shared_memory(Path(os.environ["TORCH_EXTENSIONS_DIR"]))
    return 0


if __name__ == "__main__":
    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        sys.exit("error: TORCH_EXTENSIONS_DIR is not set: run `make setup`")
    command.run(main)
