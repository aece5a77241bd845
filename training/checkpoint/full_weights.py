"""Full weights out of a checkpoint of any number of ranks, expert-parallel size and ZeRO stage, without an engine.

Names are Hugging Face's on disk (``...mlp.experts.{j}.gate_proj.weight``), so a tensor is never larger than one
parameter of one expert. Files are memory-mapped: what is held is the tensor at hand.

DeepSpeed's own ``zero_to_fp32`` fails on AutoEP's layers, whose names are ``router.gate`` and ``w1/w2/w3``.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from artefacts import command_hints, manifest
from artefacts.errors import RequestError
from artefacts.manifest import Manifest
from training.checkpoint.index import Contents, fault_of_format

#: AutoEP's stacks and the projections they are.
_STACKS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_STACK = re.compile(r"(.*\.experts)\.(w[123])$")


def require_checkpoint(folder: Path, target: str) -> Manifest:
    """A checkpoint's manifest; its files are as it says.

    Args:
        folder: a ``step-NNNNNNNN`` folder.
        target: of make, which trains one.

    Raises:
        RequestError: there is none, it is damaged, or of another format.
    """
    found = manifest.require_sound(folder, target)
    if fault := fault_of_format(found):
        raise RequestError(
            f"{folder}: {fault}: go on with that version, or move it away and run `{command_hints.make(target)}`"
        )
    return found


def read_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer of a checkpoint, one at a time.

    Args:
        folder: a ``step-NNNNNNNN`` folder with its manifest.

    Yields:
        (name, tensor): Hugging Face's on-disk name; fp32 for the weights and router biases.

    Raises:
        RequestError: the folder is no checkpoint.
    """
    manifest.require(folder, "pretrain")
    contents = Contents(folder)
    for name, parameter in contents.parameters.items():
        match = _STACK.match(name)
        if not match:
            yield _released_name(name), contents.read(name).view(parameter.shape)
            continue
        experts, *one = parameter.shape
        size = math.prod(one)
        for expert in range(experts):
            weight = contents.read(name, start=expert * size, numel=size).view(one)
            yield f"{match[1]}.{expert}.{_STACKS[match[2]]}.weight", weight
    for name, buffer in contents.buffers().items():
        yield _released_name(name), buffer


def _released_name(name: str) -> str:
    return name.replace(".mlp.router.gate.", ".mlp.gate.").replace(".mlp.router.", ".mlp.gate.")
