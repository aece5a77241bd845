"""A recipe's compute device, and how much of its memory each rank may use. Does not import torch."""

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

from configs.schema import Recipe

#: Kinds of devices. An ``mps`` device shares the host's memory.
Kind = Literal["cpu", "cuda", "mps"]

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
#: Assumed GPU memory in bytes, if the recipe is for GPUs and this machine has none.
_ASSUMED = 80 * 2**30


@dataclass(frozen=True)
class Device:
    """A rank's compute device.

    Attributes:
        kind: kind of device.
        bytes: memory that a rank may use, in bytes.
        source: how the memory size was determined.
        known: False if the memory size is only assumed.
    """

    kind: Kind
    bytes: int
    source: str
    known: bool = True


def device_of(recipe: Recipe) -> Device:
    """Return the device kind and memory set in the recipe's ``launch`` section, or else detect them on this machine.

    ``auto`` means GPUs if ``nvidia-smi`` finds one or the recipe is for several machines. Otherwise it means MPS for a
    single process on a Mac with Apple silicon, or else the CPU.
    """
    launch = recipe.launch
    elsewhere = launch.kind == "slurm" or launch.hostfile is not None
    gpu_bytes = None if launch.device in ("cpu", "mps") or elsewhere else _gpu_bytes()
    on_gpus = launch.device == "cuda" or (launch.device == "auto" and (gpu_bytes is not None or launch.kind != "local"))
    kind: Kind = "cuda" if on_gpus else "mps" if _on_mps(recipe, elsewhere) else "cpu"
    if launch.device_memory is not None:
        return Device(kind, in_bytes(launch.device_memory), "launch.device_memory")
    if not on_gpus:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if kind == "mps":
            return Device(kind, total, "memory of this machine, which its GPU shares")
        return Device(kind, total // launch.processes, f"memory of this machine over {launch.processes} processes")
    if gpu_bytes is not None:
        return Device(kind, gpu_bytes, "nvidia-smi")
    return Device(kind, _ASSUMED, "assumed, as this machine has no GPU: set launch.device_memory", known=False)


def has_mps() -> bool:
    """Return whether this machine has a GPU that torch supports through MPS."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def _on_mps(recipe: Recipe, elsewhere: bool) -> bool:
    launch = recipe.launch
    if launch.device != "auto":
        return launch.device == "mps"
    hidden = os.environ.get("DS_ACCELERATOR", "mps") != "mps"
    return has_mps() and recipe.ranks == 1 and not elsewhere and not hidden


def in_bytes(text: str) -> int:
    """Convert a size such as ``80G`` to bytes. Units are powers of 1,024."""
    return int(text[:-1]) * _UNITS[text[-1]]


def _gpu_bytes() -> int | None:
    """Return the memory of this machine's smallest GPU in bytes, or None if there are no visible GPUs."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or os.environ.get("DS_ACCELERATOR") == "cpu"
    if hidden or shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    sizes = [int(line) for line in output.split() if line.isdigit()]
    return min(sizes) * 2**20 if sizes else None
