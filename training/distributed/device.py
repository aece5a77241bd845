"""Chooses the device on which this process computes."""

import os

import torch

from artefacts.errors import RequestError


def choose_device(wanted: str = "auto", processes: int = 1) -> torch.device:
    """Return the requested device or, with ``auto``, a GPU if there is one, else MPS (Apple), else CPU.

    Sets ``DS_ACCELERATOR`` so that DeepSpeed makes the same choice.

    Args:
        wanted: ``launch.device``; ``auto`` follows ``DS_ACCELERATOR`` if that is set.
        processes: number of processes on this node. Several processes cannot share MPS, so ``auto`` picks CPU for them.

    Raises:
        RequestError: the requested device is not available here.
    """
    name = os.environ.get("DS_ACCELERATOR") if wanted == "auto" else wanted
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if (name == "cuda" and not cuda) or (name == "mps" and not mps):
        missing = "GPU" if name == "cuda" else "MPS (a Mac with Apple silicon)"
        raise RequestError(f"launch.device={name}, but torch sees no {missing} here: set launch.device=auto or cpu")
    best = "cuda" if cuda else "mps" if mps and processes == 1 else "cpu"
    kind = best if name is None else name if name in ("cuda", "mps") else "cpu"
    os.environ["DS_ACCELERATOR"] = name or kind
    return torch.device(kind)
