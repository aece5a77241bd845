"""Which device a recipe will run on and how much of its memory a rank may use, found without torch."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal

from configs.schema import Recipe

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
#: Bytes where GPUs are meant and none is here to ask.
_ASSUMED = 80 * 2**30


@dataclass(frozen=True)
class Device:
    """Where a rank computes.

    Attributes:
        kind: of device.
        bytes: what a rank may use of it.
        source: where that figure comes from.
        known: whether it is more than a guess.
    """

    kind: Literal["cpu", "cuda"]
    bytes: int
    source: str
    known: bool = True


def device_of(recipe: Recipe) -> Device:
    """``launch.device`` and ``launch.device_memory``; what is left to find is asked of this machine.

    ``auto`` is GPUs where ``nvidia-smi`` finds one or the recipe is for several machines; else CPU.
    """
    launch = recipe.launch
    elsewhere = launch.kind == "slurm" or launch.hostfile is not None
    found = None if launch.device == "cpu" or elsewhere else _gpu_bytes()
    on_gpus = launch.device == "cuda" or (launch.device == "auto" and (found is not None or launch.kind != "local"))
    kind: Literal["cpu", "cuda"] = "cuda" if on_gpus else "cpu"
    if launch.device_memory is not None:
        return Device(kind, in_bytes(launch.device_memory), "launch.device_memory")
    if not on_gpus:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Device(kind, whole // launch.processes, f"this machine's memory over {launch.processes} processes")
    if found is not None:
        return Device(kind, found, "nvidia-smi")
    return Device(kind, _ASSUMED, "assumed, as no GPU of it is here: set launch.device_memory", known=False)


def in_bytes(text: str) -> int:
    """``80G`` as bytes, of 1,024s."""
    return int(text[:-1]) * _UNITS[text[-1]]


def _gpu_bytes() -> int | None:
    """Memory of the smallest GPU of this machine; None: it has none, or processes started here are to see none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or os.environ.get("DS_ACCELERATOR") == "cpu"
    if hidden or shutil.which("nvidia-smi") is None:
        return None
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    sizes = [int(line) for line in said.split() if line.isdigit()]
    return min(sizes) * 2**20 if sizes else None
