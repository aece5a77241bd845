"""Build and load DeepSpeed's shared-memory operator for CPU, so that no training start waits for a dead build.

torch guards such a build, and the look whether it must be built again at every start, with a plain ``lock`` file that a
killed process leaves behind and on which every later start waits for ever. Here both happen under a lock that dies with
its process, so a ``lock`` found then is stale. Once loaded in a process, the operator is not looked at again.

``python -m training.engine.prebuild`` builds it; ``make setup`` does so.
"""

import os
import sys
from pathlib import Path

from filelock import FileLock

from configs import command

_OPERATOR = "deepspeed_shm_comm"


def build(extensions: Path) -> None:
    """Build the operator into a folder, or find that it is there, and load it; waits for another that does so."""
    extensions.mkdir(parents=True, exist_ok=True)
    with FileLock(extensions / f".{_OPERATOR}.lock"):
        (extensions / _OPERATOR / "lock").unlink(missing_ok=True)
        from deepspeed.accelerator import get_accelerator

        builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
        if builder is not None:
            builder.load(verbose=False)


def main(_arguments: object) -> int:
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        build(Path(os.environ["TORCH_EXTENSIONS_DIR"]))
    return 0


if __name__ == "__main__":
    if "TORCH_EXTENSIONS_DIR" not in os.environ:
        sys.exit("error: TORCH_EXTENSIONS_DIR is not set: run `make setup`")
    command.run(main)
