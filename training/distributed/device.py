"""Which device this process computes on."""

import os

import torch

from artefacts.errors import RequestError


def choose(asked: str = "auto", processes: int = 1) -> torch.device:
    """A GPU where there is one, else Apple's (MPS), else CPU; or the one that is asked for.

    DeepSpeed, whose classes stand in checkpoints, is told what was chosen.

    Args:
        asked: ``launch.device``; where that is ``auto``, what the environment tells DeepSpeed is asked for.
        processes: on this node; several cannot share MPS, so that ``auto`` is CPU for them.

    Raises:
        RequestError: it is not here.
    """
    told = os.environ.get("DS_ACCELERATOR") if asked == "auto" else asked
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if (told == "cuda" and not cuda) or (told == "mps" and not mps):
        missing = "GPU" if told == "cuda" else "MPS (a Mac with Apple silicon)"
        raise RequestError(f"launch.device={told}, and torch sees no {missing} here: set launch.device=auto or cpu")
    best = "cuda" if cuda else "mps" if mps and processes == 1 else "cpu"
    kind = best if told is None else told if told in ("cuda", "mps") else "cpu"
    os.environ["DS_ACCELERATOR"] = told or kind
    return torch.device(kind)
